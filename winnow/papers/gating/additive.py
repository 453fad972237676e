"""ADDITIVE: a neural additive model that must find 5 of 20 features (D-Gating, E.6)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import winnow

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim, mean, spread
from ..plots import curve, label, panels
from ..texts import GATING
from ..training import Training, cosine, count_steps, shuffled

METHODS = ("D=2", "D=3", "D=4", "SNAM", "L1", "L2")
ZERO = 1e-3  # the paper's threshold on a feature's first-layer norm
TRUE = 5


class Additive(nn.Module):
    """Sum of one small network (100, 100, 64) per feature: (n, features) -> (n,); `first` holds a row per feature."""

    def __init__(self, features: int, hidden: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = hidden
        self.first = nn.Parameter(torch.randn(features, a) / a**0.5)
        self.offset = nn.Parameter(torch.randn(features, 1, a))
        self.second = nn.Parameter(torch.randn(features, a, b) * (2 / a) ** 0.5)
        self.third = nn.Parameter(torch.randn(features, b, c) * (2 / b) ** 0.5)
        self.last = nn.Parameter(torch.randn(features, c, 1) / c**0.5)
        self.shifts = nn.ParameterList([torch.zeros(features, 1, b), torch.zeros(features, 1, c)])
        self.bias = nn.Parameter(torch.zeros(()))

    def parts(self, x: Tensor) -> Tensor:
        """(features, n): what each feature adds, without its value at an input that the first layer does not see."""
        h = self._behind(torch.relu(x.T[..., None] * self.first[:, None] + self.offset))
        return h - self._behind(torch.relu(self.offset))

    def _behind(self, h: Tensor) -> Tensor:
        h = torch.relu(torch.baddbmm(self.shifts[0], h, self.second))
        h = torch.relu(torch.baddbmm(self.shifts[1], h, self.third))
        out: Tensor = (h @ self.last).squeeze(-1)
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.parts(x).sum(0) + self.bias
        return out


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """x (1000, 20) uniform on [−2, 2], y a sum of five smooth functions of the first five features plus N(0, 1)."""
    dice = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(1000, 20, generator=dice) - 2
    parts = (
        2 * torch.sin(2 * x[:, 0]),
        x[:, 1].square(),
        1.5 * x[:, 2],
        2 * torch.tanh(3 * x[:, 3]),
        2 * torch.cos(3 * x[:, 4]),
    )
    y = torch.stack(parts).sum(0)
    return x, y - y.mean() + torch.randn(1000, generator=dice)


def cells(settings: Settings, seeds: int) -> list[Cell]:
    return [
        {"fold": f, "method": m, "lambda_paper": c}
        for f in range(seeds)
        for m in METHODS
        for c in settings["lambda_paper"]
    ]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    x, y = problem(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    held = order.chunk(5)[cell["fold"]]
    train = torch.cat([part for i, part in enumerate(order.chunk(5)) if i != cell["fold"]])
    torch.manual_seed(cell["fold"])
    model = Additive(20, tuple(settings["hidden"]))
    optimizer = torch.optim.Adam(model.parameters(), settings["lr"])
    method, c = cell["method"], cell["lambda_paper"]
    handle: winnow.Run | None = None
    if method.startswith("D"):
        depth = int(method[-1])
        where = {"first": winnow.Rows()}
        handle = winnow.attach(
            model, optimizer, how=winnow.Gating(depth=depth), where=where, when=2 * c / depth, fused=False
        )

    squares = nn.functional.mse_loss
    penalty = None if handle else lambda: c * _direct(method, model.first)
    steps = count_steps(len(train), settings["batch"], settings["epochs"])
    batches = shuffled(x[train], y[train], settings["batch"], cell["fold"])
    Training(model, optimizer, batches, settings["epochs"], cosine(optimizer, steps), loss=squares, extra=penalty).fit(
        bench
    )
    if handle:
        handle.settle(ZERO)
    with torch.no_grad():
        active = model.first.norm(dim=1) > ZERO
        mse = float((model(x[held]) - y[held]).square().mean())
    return {"mse": mse, "active": int(active.sum()), "true": int(active[:TRUE].sum())}


def _direct(method: str, first: Tensor) -> Tensor | float:
    """The penalty of the methods that put it on the loss."""
    if method == "SNAM":
        norms: Tensor = first.norm(dim=1)
        return norms.sum()
    return first.abs().sum() if method == "L1" else first.square().sum() if method == "L2" else 0.0


def _best(rows: list[Row], method: str, settings: Settings) -> tuple[float, list[Row]]:
    """The λ of least mean error over the folds, and its rows."""

    def score(c: float) -> float:
        values = [row["mse"] for row in among(rows, method=method, lambda_paper=c)]
        return mean(values) if values and all(math.isfinite(v or math.inf) for v in values) else math.inf

    best = min(settings["lambda_paper"], key=score)
    return best, among(rows, method=method, lambda_paper=best)


def _at_best(rows: list[Row], settings: Settings, key: str) -> dict[str, float]:
    """Mean of `key` at each method's best λ."""
    return {m: mean([row[key] for row in _best(rows, m, settings)[1]]) for m in METHODS}


@claim(
    "D = 3 and D = 4 have a clearly lower cross-validated error than D = 2, SNAM (direct group norm), L1 and L2",
    published="yes (curves)",
)
def lower_error(rows: list[Row], settings: Settings) -> Found:
    mse = {m: [row["mse"] for row in _best(rows, m, settings)[1]] for m in METHODS}
    clear = [(d, m) for d in ("D=3", "D=4") for m in ("D=2", "SNAM", "L1", "L2") if _clearly_below(mse[d], mse[m])]
    said = ", ".join(f"{m} {mean(mse[m]):.3f}" for m in METHODS)
    return f"{said}; by more than a standard error of the difference over folds: {len(clear)} of 8 pairs", len(
        clear
    ) == 8


def _clearly_below(ours: list[float], theirs: list[float]) -> bool:
    """By more than a standard error of the difference, fold by fold."""
    gains = [b - a for a, b in zip(ours, theirs, strict=True)]
    return mean(gains) > spread(gains) / math.sqrt(len(gains))


@claim("at their best λ they are sparser than D = 2 and SNAM", published="yes")
def sparser(rows: list[Row], settings: Settings) -> Found:
    active, true = (_at_best(rows, settings, key) for key in ("active", "true"))
    said = ", ".join(f"{m} {active[m]:.1f} ({true[m]:.1f} true)" for m in METHODS[:4]) + " features"
    return said, max(active["D=3"], active["D=4"]) < min(active["D=2"], active["SNAM"])


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (errors, sizes) = panels(2)
    grid = settings["lambda_paper"]
    for i, method in enumerate(METHODS):
        for ax, key in ((errors, "mse"), (sizes, "active")):
            curve(
                ax,
                i,
                grid,
                [mean([row[key] for row in among(rows, method=method, lambda_paper=c)]) for c in grid],
                method,
            )
            ax.set_xscale("log")
    errors.axhline(1, color="0.5", linestyle=":")
    sizes.axhline(TRUE, color="0.5", linestyle=":")
    label(errors, "cross-validated error (dotted: noise)", "λ_paper", "MSE")
    label(sizes, "features above 1e-3 (dotted: true)", "λ_paper", "features", legend=False)
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = []
    for method in METHODS:
        c, found = _best(rows, method, settings)
        mse = [row["mse"] for row in found]
        lines.append(
            [
                method,
                f"{c:g}",
                f"{mean(mse):.3f} ± {spread(mse):.3f}",
                f"{mean([r['active'] for r in found]):.1f}",
                f"{mean([r['true'] for r in found]):.1f}",
            ]
        )
    return Table(("method", "best λ_paper", "cross-validated MSE", "features of 20", "true ones of 5"), lines)


FULL = {
    "hidden": [100, 100, 64],
    "lambda_paper": [0.03, 0.1, 0.3, 1.0, 3.0],
    "lr": 1e-3,
    "batch": 32,
    "epochs": 100,
}
EXPERIMENT = Experiment(
    name="gating-additive",
    paper=GATING,
    title="Sparse neural additive model",
    claims=(lower_error, sparser),
    differs="1,000 samples, 5 of 20 features, sub-networks (100, 100, 64), Adam 1e-3, batch 32, as published; 3 of 5 "
    "folds, λ_paper from 3e-2 (published: 1e-2), 100 epochs with cosine instead of 1,000, and no batch normalisation: "
    "behind a normalisation the penalised first layer is scale-free, and no penalty on it has a stationary point but "
    'zero. Features uniform on [−2, 2], the five functions and noise N(0, 1) are ours (there: "N(0,1)").',
    failed="D = 3 is worse than SNAM in two of three folds, D = 4 in one; their lead on the mean is a fraction of the "
    "spread over folds. At its best λ D = 3 still holds one to five superfluous features, fewer at the next λ and at D = "
    "4: perhaps as these are a tenth of the published epochs.",
    full=FULL,
    quick=FULL | {"hidden": [20, 20, 10], "lambda_paper": [0.1, 0.3], "epochs": 12},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    seeds=3,
    minutes=25.0,
)
