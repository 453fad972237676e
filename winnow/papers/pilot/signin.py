"""SIGNIN: training under a fixed random mask: Sign-In's reset and HAM's step (the successors of PILoT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import winnow
from winnow.jobs.models import LeNet300100

from ..base import Bench, Cell, Experiment, Found, Outcome, Row, Settings, Table, Verdict, among, claim, mean, spread
from ..data import examples
from ..plots import curve, label, panels
from ..texts import PILOT
from ..training import Training, cosine, count_steps, error, shuffled

METHODS = ("plain", "m⊙v, no reset", "Sign-In", "HAM")


def cells(settings: Settings, seeds: int) -> list[Cell]:
    masked = [
        {"kind": "mask", "method": m, "sparsity": s, "seed": k}
        for s in settings["sparsity"]
        for m in METHODS
        for k in range(seeds)
    ]
    return [*({"kind": "neuron", "method": m, "inputs": d} for m in METHODS[:3] for d in (1, 8)), *masked]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    return _neurons(cell, settings) if cell["kind"] == "neuron" else _masked(cell, settings, bench)


class Neurons(nn.Module):
    """Many neurons a·relu(w·x) side by side: (n, d) -> (n, count); `a` (count,), `w` (count, d)."""

    def __init__(self, a: Tensor, w: Tensor) -> None:
        super().__init__()
        self.a, self.w = nn.Parameter(a.clone()), nn.Parameter(w.clone())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a * torch.relu(x @ self.w.T)
        return out


def _neurons(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Balanced starts, |a| = ‖w‖, by the signs of a and of w's share along the teacher's; which of them learn relu(w*·x)."""
    d, count, method = cell["inputs"], settings["starts"], cell["method"]
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(256, d, generator=dice, dtype=torch.float64)
    teacher = torch.full((d,), d**-0.5, dtype=torch.float64)
    w = torch.randn(count, d, generator=dice, dtype=torch.float64) / d**0.5
    w = w * (w @ teacher).sign()[:, None]
    signs = {"a>0<w": (1, 1), "a<0<w": (-1, 1), "a>0>w": (1, -1), "a<0>w": (-1, -1)}
    starts = torch.cat([s[1] * w for s in signs.values()])
    model = Neurons(torch.cat([s[0] * w.norm(dim=1) for s in signs.values()]), starts)
    optimizer = torch.optim.SGD(model.parameters(), settings["neuron_lr"])
    handle = None
    if method != "plain":
        where = {"a": winnow.Elements(), "w": winnow.Elements()}
        handle = winnow.attach(model, optimizer, how=winnow.Masking(1.0), where=where, when=0.0, fused=False)
    wanted = torch.relu(x @ teacher)[:, None]
    for step in range(settings["neuron_steps"]):
        optimizer.zero_grad()
        loss = 0.5 * (model(x) - wanted).square().mean(0).sum()
        loss.backward()
        optimizer.step()
        if handle and method == "Sign-In" and (step + 1) % settings["neuron_reset"] == 0:
            handle.rebalance(1.0)
    learnt = 0.5 * (model(x) - wanted).square().mean(0).detach() < 1e-2 * wanted.square().mean()
    return {"learnt": {name: float(part.double().mean()) for name, part in zip(signs, learnt.chunk(4), strict=True)}}


def _masked(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    data = examples(settings["data"])
    x, y = data.x[: settings["most"]], data.y[: settings["most"]]
    torch.manual_seed(cell["seed"])
    model = LeNet300100(x.shape[1], 10, tuple(settings["hidden"]))
    for layer in (model.fc1, model.fc2, model.fc3):
        _mask(layer, cell["sparsity"])
    method = cell["method"]
    optimizer = torch.optim.SGD(model.parameters(), settings["lr"], momentum=0.9)
    handle = None
    if method != "plain":
        ham = method == "HAM"
        how: Any = winnow.Hyperbolic(settings["ham_alpha"], rescale=False) if ham else winnow.Masking(1.0)
        when = settings["ham_beta"] if ham else 0.0
        handle = winnow.attach(model, optimizer, how=how, where=winnow.Elements(), when=when, fused=False)

    def each(epoch: int, loss: float) -> dict[str, Any]:
        if handle and method == "Sign-In" and epoch % settings["reset"] == 0:
            handle.rebalance(1.0)
        return {"epoch": epoch, "loss": loss}

    steps = count_steps(len(x), settings["batch"], settings["epochs"])
    batches = shuffled(x, y, settings["batch"], cell["seed"])
    Training(model, optimizer, batches, settings["epochs"], cosine(optimizer, steps), each).fit(bench)
    left = sum(int((layer.weight != 0).sum()) for layer in (model.fc1, model.fc2, model.fc3))
    return {"error": 100 * error(model, data.test_x, data.test_y), "left": left}


@torch.no_grad()
def _mask(layer: nn.Linear, sparsity: float) -> None:
    """Zeroes a random share of the weights and their gradients; the rest is scaled up to the layer's variance."""
    mask = (torch.rand_like(layer.weight) >= sparsity).to(layer.weight.dtype)
    layer.weight.mul_(mask / (1 - sparsity) ** 0.5)
    layer.weight.register_hook(lambda g: g * mask)  # type: ignore[no-untyped-call]


def _learnt(rows: list[Row], method: str, inputs: int) -> dict[str, float]:
    """Share of starts of each kind from which one neuron is learnt."""
    return dict(among(rows, kind="neuron", method=method, inputs=inputs)[0]["learnt"])


def _errors(rows: list[Row], method: str, s: float) -> list[float]:
    return [row["error"] for row in among(rows, method=method, sparsity=s)]


def _against(rows: list[Row], settings: Settings, method: str, rival: str) -> str:
    pairs = ((s, mean(_errors(rows, method, s)), mean(_errors(rows, rival, s))) for s in settings["sparsity"])
    return "; ".join(f"{100 * s:g} %: {a:.2f} against {b:.2f}" for s, a, b in pairs)


def _ahead(rows: list[Row], settings: Settings, method: str, rival: str) -> bool:
    """By more than a standard error of the paired difference, at every sparsity."""
    for s in settings["sparsity"]:
        gains = [a - b for a, b in zip(_errors(rows, rival, s), _errors(rows, method, s), strict=True)]
        if mean(gains) <= spread(gains) / len(gains) ** 0.5:
            return False
    return True


@claim(
    "one neuron a·relu(w·x), |a| = ‖w‖ at the start: m ⊙ v recovers starts with a < 0 < w·w* that plain descent misses",
    published="yes (theory)",
)
def recovers_signs(rows: list[Row], settings: Settings) -> Found:
    case = {m: _learnt(rows, m, 8)["a<0<w"] for m in METHODS[:3]}
    single = {m: _learnt(rows, m, 1)["a<0<w"] for m in METHODS[:3]}
    said, alone = (", ".join(f"{m} {100 * x:.0f} %" for m, x in found.items()) for found in (case, single))
    return f"8 inputs: {said} learnt; one input: {alone}", case["Sign-In"] > case["plain"] + 0.25


@claim("with one input, no start with w < 0 is repaired", published="yes (theory)")
def one_input_is_lost(rows: list[Row], settings: Settings) -> Found:
    most = max(_learnt(rows, m, 1)[name] for m in METHODS[:3] for name in ("a>0>w", "a<0>w"))
    return f"at most {100 * most:.0f} % learnt", most == 0


@claim(
    "under a random mask, Sign-In beats plain training at every sparsity",
    published="+1.1 to +1.6 points (ResNet-20, 80 to 95 %)",
)
def beats_plain(rows: list[Row], settings: Settings) -> Found:
    return _against(rows, settings, "Sign-In", "plain"), _ahead(rows, settings, "Sign-In", "plain")


@claim("the reset is essential: without it m ⊙ v is worse than with it", published="yes (ablation)")
def reset_matters(rows: list[Row], settings: Settings) -> Found:
    return _against(rows, settings, "Sign-In", "m⊙v, no reset"), _ahead(rows, settings, "Sign-In", "m⊙v, no reset")


@claim("HAM's step under the same mask is at or above plain training", published="not published with random masks")
def ham_level(rows: list[Row], settings: Settings) -> Found:
    level = (mean(_errors(rows, "HAM", s)) < mean(_errors(rows, "plain", s)) + 0.05 for s in settings["sparsity"])
    return _against(rows, settings, "HAM", "plain"), all(level)


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (ax,) = panels(1, width=5.0, height=3.8)
    for i, method in enumerate(METHODS):
        values = [mean([r["error"] for r in among(rows, method=method, sparsity=s)]) for s in settings["sparsity"]]
        curve(ax, i, [100 * s for s in settings["sparsity"]], values, method)
    label(ax, "random masks, LeNet-300-100", "sparsity %", "test error %")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = []
    for method in METHODS:
        found = [[r["error"] for r in among(rows, method=method, sparsity=s)] for s in settings["sparsity"]]
        lines.append([method, *(f"{mean(f):.2f} ± {spread(f):.2f}" for f in found)])
    return Table(("test error %, random mask", *(f"{100 * s:g} %" for s in settings["sparsity"])), lines)


FULL = {
    "data": "fashion",
    "hidden": [300, 100],
    "most": 60_000,
    "sparsity": [0.9, 0.95, 0.98],
    "lr": 0.1,
    "batch": 256,
    "epochs": 30,
    "reset": 3,
    "ham_alpha": 20.0,
    "ham_beta": 1e-3,
    "starts": 25,
    "neuron_lr": 0.02,
    "neuron_steps": 6000,
    "neuron_reset": 200,
}
EXPERIMENT = Experiment(
    name="pilot-signin",
    paper=PILOT,
    title="Sign-In's reset and HAM's step under random masks",
    claims=(recovers_signs, one_input_is_lost, beats_plain, reset_matters, ham_level),
    differs="LeNet-300-100 on Fashion-MNIST in place of ResNet-20 on CIFAR-10 and ResNet-50 on ImageNet; SGD with "
    "momentum 0.9, rate 0.1 with cosine for all methods, 30 epochs, resets every 3 epochs (open in the paper), HAM with "
    "its published β and α = 20 (at 200 this network does not train), sparsities 90, 95 and 98 % (published 80, 90 and "
    "95 %), 3 seeds.",
    failed="At 98 % the error is the mask's, not the method's: plain, m ⊙ v and Sign-In agree seed by seed to 0.5 points "
    "(about 15.9, 37.1 and 28.1 %); a uniform mask leaves about 20 of the last layer's 1,000 weights, which perhaps cuts "
    "classes off. At 90 % Sign-In is worse than plain training on all three seeds. The reset does nothing here, in the "
    "one neuron either (96 % with and without it): in 30 epochs without weight decay the gap has little to die of, we "
    "think.",
    beyond=(
        Verdict(
            "the same with ResNet-20 on CIFAR-10 and ResNet-50 on ImageNet",
            "88.25 → 89.37, 86.25 → 87.83, 83.56 → 84.74 (ResNet-20)",
            "hundreds of epochs of a ResNet; ImageNet is not at hand",
            Outcome.NOT_RUN,
        ),
    ),
    full=FULL,
    quick=FULL
    | {"data": "digits", "hidden": [64, 32], "sparsity": [0.9], "batch": 32, "epochs": 4, "neuron_steps": 800},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    seeds=3,
    minutes=30.0,
)
