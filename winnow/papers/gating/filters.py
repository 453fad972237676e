"""FILTERS: VGG-16 on CIFAR-10: the largest FLOP speed-up within 5 and 10 points of the best accuracy (section 6.5)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import winnow
from winnow.jobs.train import evaluate

from ..base import Bench, Cell, Experiment, Outcome, Row, Settings, Table, Verdict, among
from ..data import images
from ..plots import curve, label, panels
from ..texts import GATING
from ..training import Stream, Training, cosine

CLAIMS = (
    "within 5 points of the best accuracy, gates speed up further than L2,1 + magnitude and network slimming",
    "the same within 10 points",
    "FLOP speed-up within 5 points ≥ 19×",
    "after removal the model is faster on this machine by a like factor, its outputs the same",
)
PUBLISHED = {
    "D=2": "16.13 / 52.70",
    "D=3": "11.17 / 25.51",
    "D=4": "18.88 / 48.97",
    "L2,1": "6.97 / 6.97",
    "slimming": "2.45 / 4.91",
}
GATED = ("D=2", "D=3", "D=4", "units")
DIRECT = ("L2,1", "slimming")
PAPERS = ("D=2", "D=3", "D=4")
PLAN = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)
"""Widths over 64, 0 a pooling."""


class VGG16(nn.Module):
    """VGG-16 with batch normalisation and one dense layer (the paper's): (n, 3, 32, 32) -> (n, 10)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for times in PLAN:
            if times:
                layers += [
                    nn.Conv2d(before, times * width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(times * width),
                    nn.ReLU(),
                ]
                before = times * width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.dense, self.head = nn.Linear(before, 8 * width), nn.Linear(8 * width, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.dense(self.features(x).flatten(1))))
        return out


def cells(settings: Settings, seeds: int) -> list[Cell]:
    methods = ("dense", *GATED, *DIRECT)
    plain = [
        {"method": m, "value": v, "width": settings["width"]} for m in methods for v in settings["values"].get(m, [])
    ]
    return [*plain, *({"method": "units", "value": v, "width": w} for w, v in settings["wider"])]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    data = images()
    torch.manual_seed(0)
    method, value = cell["method"], cell["value"]
    model = VGG16(cell["width"])
    lr = settings["lr"].get(method, settings["lr"]["dense"])
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    if method == "units":
        return {"points": [_shrunk_early(model, optimizer, value, data, settings, bench)]}
    handle = _attach(model, optimizer, method, value)
    filters, scales = ([pair[k].weight for pair in pairs(model)] for k in (0, 1))

    def extra() -> Tensor:
        sizes = [w.flatten(1).norm(dim=1) for w in filters] if method == "L2,1" else [s.abs() for s in scales]
        return torch.cat(sizes).sum() * float(value)

    _train(model, optimizer, data, settings, settings["steps"], bench, extra if method in DIRECT else None)
    if handle:
        handle.settle()
        _silence(model)
    ratios = [0.0] if method in (*GATED, "dense") else settings["ratios"]
    return {"points": [_point(model, ratio, method, data, settings) for ratio in ratios]}


def _train(
    model: nn.Module,
    optimizer: Any,
    data: Any,
    settings: Settings,
    steps: int,
    bench: Bench,
    extra: Any = None,
    seed: int = 0,
) -> None:
    batches = Stream(data, settings["batch"], seed, steps)
    Training(model, optimizer, batches, batches.parts, cosine(optimizer, steps), extra=extra).fit(bench)


def _shrunk_early(
    model: VGG16, optimizer: Any, share: float, data: Any, settings: Settings, bench: Bench
) -> dict[str, Any]:
    """Whole units, down to a share of the MACs in the first part of the training; the smaller model trains on alone."""
    example, early = torch.zeros(2, 3, 32, 32), round(settings["early"] * settings["steps"])
    where = winnow.Channels(example, count=winnow.MACs())
    when = winnow.Toward(density=share, steps=early, begin=0.2, heal=0.0)
    run = winnow.attach(model, optimizer, how=winnow.Gating(depth=3), where=where, when=when, fused=False)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, early)
    batches = Stream(data, settings["batch"], 0, early)
    Training(model, optimizer, batches, batches.parts, rates).fit(bench.part("wide"))
    run.settle()
    small, proof = winnow.compact(model.eval(), example)
    second = torch.optim.SGD(small.parameters(), settings["lr"]["small"], momentum=0.9)
    _train(small, second, data, settings, settings["steps"] - early, bench.part("small"), seed=1)
    timed = winnow.measure(model, small.eval(), torch.randn(64, 3, 32, 32), batches=(64,), seconds=settings["seconds"])
    return {
        "ratio": 0.0,
        "accuracy": 100 * evaluate(small, data)[1],
        "flops": proof.macs[0] / proof.macs[1],
        "faster": timed.speedup[0],
        "error": proof.max_error,
    }


def _attach(model: VGG16, optimizer: Any, method: str, value: float) -> winnow.Run | None:
    """The paper's gates on filters at a constant λ."""
    if method not in PAPERS:
        return None
    names = [f"features.{i}.weight" for i, m in enumerate(model.features) if isinstance(m, nn.Conv2d)]
    depth = int(method[-1])
    how = winnow.Gating(depth=depth)
    return winnow.attach(model, optimizer, how=how, where=dict.fromkeys(names, winnow.Rows()), when=2 * value / depth)


def pairs(model: VGG16) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution and the normalisation behind it."""
    layers = itertools.pairwise(model.features)
    return [(a, b) for a, b in layers if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)]


@torch.no_grad()
def _silence(model: VGG16) -> None:
    """A zero filter's normalisation goes with it: its output would be the constant shift."""
    for conv, norm in pairs(model):
        _kill(conv, norm, ~conv.weight.flatten(1).any(1))


def _kill(conv: nn.Conv2d, norm: nn.BatchNorm2d, dead: Tensor) -> None:
    for theta in (conv.weight, norm.weight, norm.bias):
        theta[dead] = 0


@torch.no_grad()
def _point(model: VGG16, ratio: float, method: str, data: Any, settings: Settings) -> dict[str, Any]:
    """Accuracy, MACs and speed with a share of the filters removed by norm (or scale), nothing retrained."""
    kept = {name: x.clone() for name, x in model.state_dict().items()}
    if ratio:
        _remove(model, ratio, method)
    accuracy = 100 * evaluate(model, data)[1]
    point = {"ratio": ratio, "accuracy": accuracy, "flops": 1.0, "faster": 1.0, "error": 0.0}
    small, proof = winnow.compact(model.eval(), torch.zeros(2, 3, 32, 32), check=False)
    if proof.macs[1] < proof.macs[0]:
        timed = winnow.measure(model, small, torch.randn(64, 3, 32, 32), batches=(64,), seconds=settings["seconds"])
        point |= {"flops": proof.macs[0] / proof.macs[1], "faster": timed.speedup[0], "error": proof.max_error}
    model.load_state_dict(kept)
    return point


def _remove(model: VGG16, ratio: float, method: str) -> None:
    """The globally smallest filters (by norm) or normalisation scales, at least one per layer kept."""
    found = pairs(model)
    sizes = [b.weight.abs() if method == "slimming" else a.weight.flatten(1).norm(dim=1) for a, b in found]
    threshold = torch.cat(sizes).sort().values[round(ratio * sum(map(len, sizes))) - 1]
    for (conv, norm), size in zip(found, sizes, strict=True):
        dead = size <= threshold
        dead[size.argmax()] = False
        _kill(conv, norm, dead)


def furthest(rows: list[Row], method: str, within: float) -> dict[str, Any] | None:
    """The point of the largest FLOP speed-up within so many points of the best accuracy of all runs."""
    best = max(point["accuracy"] for row in rows for point in row["points"])
    found = [p for row in among(rows, method=method) for p in row["points"] if p["accuracy"] >= best - within]
    return max(found, key=lambda p: p["flops"], default=None)


def _flops(point: dict[str, Any] | None) -> float:
    return point["flops"] if point else 0.0


def judge(rows: list[Row], settings: Settings) -> list[Verdict]:
    shown = [m for m in (*GATED, "L2,1", "slimming") if among(rows, method=m)]
    verdicts = []
    for claim, within in zip(CLAIMS[:2], (5.0, 10.0), strict=True):
        top = {m: _flops(furthest(rows, m, within)) for m in shown}
        rest = max(top[m] for m in shown if m not in GATED)
        verdicts.append(
            Verdict(
                claim,
                "16.1, 11.2, 18.9 | 7.0, 2.5" if within == 5 else "52.7, 25.5, 49.0 | 7.0, 4.9",
                ", ".join(f"{m} {x:.1f}×" for m, x in top.items()),
                Outcome.of(max((top[m] for m in shown if m in PAPERS), default=0.0) > rest),
            )
        )
    points = [p for p in (furthest(rows, m, 5.0) for m in GATED if among(rows, method=m)) if p]
    first = max(points, key=lambda p: p["flops"], default={"flops": 0.0, "faster": 0.0, "error": 1.0})
    verdicts.append(Verdict(CLAIMS[2], "18.88× (D = 4)", f"{first['flops']:.1f}×", Outcome.of(first["flops"] >= 19)))
    verdicts.append(
        Verdict(
            CLAIMS[3],
            "theoretical FLOPs only",
            f"{first['faster']:.1f}× at {first['flops']:.1f}× fewer FLOPs, outputs within {first['error']:.0e}",
            Outcome.of(first["flops"] >= 2 and first["faster"] > 0.5 * first["flops"] and first["error"] < 1e-4),
        )
    )
    return verdicts


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (ax,) = panels(1, width=5.6, height=4.0)
    for i, method in enumerate(m for m in (*GATED, "L2,1", "slimming") if among(rows, method=m)):
        points = sorted((p for row in among(rows, method=method) for p in row["points"]), key=lambda p: p["flops"])
        curve(ax, i, [p["flops"] for p in points], [p["accuracy"] for p in points], method)
    ax.set_xscale("log")
    label(ax, "VGG-16, CIFAR-10 (JPEG copy)", "FLOPs before / after", "test accuracy %")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = []
    for method in (m for m in (*GATED, "L2,1", "slimming") if among(rows, method=m)):
        found = [furthest(rows, method, within) for within in (5.0, 10.0)]
        cells = [
            f"{p['flops']:.1f}× ({p['accuracy']:.1f} %, measured {p['faster']:.1f}×)" if p else "none" for p in found
        ]
        lines.append([method, PUBLISHED.get(method, ""), *cells])
    dense = max(p["accuracy"] for row in among(rows, method="dense") for p in row["points"])
    lines.append([f"dense: {dense:.1f} %", "", "", ""])
    return Table(("method", "published, 5 / 10 points", "here, 5 points", "here, 10 points"), lines)


FULL = {
    "width": 16,
    "wider": [[32, 0.025]],
    "steps": 1955,
    "early": 0.35,
    "batch": 128,
    "lr": {"dense": 0.05, "D=2": 0.1, "D=3": 0.1, "D=4": 0.1, "units": 0.05, "small": 0.05},
    "values": {
        "dense": [0.0],
        "D=2": [1e-2],
        "D=3": [1e-2],
        "D=4": [1e-2],
        "units": [0.1, 0.05],
        "L2,1": [1e-4, 1e-3],
        "slimming": [1e-4, 1e-3],
    },
    "seconds": 2.0,
    "ratios": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99],
}
EXPERIMENT = Experiment(
    name="gating-filters",
    paper=GATING,
    title="Filters of VGG-16 on CIFAR-10",
    claims=CLAIMS,
    differs="Shrunk for two cores: a quarter of the width (0.93 M parameters instead of 15 M), 5 epochs instead of 200, "
    "one λ per depth (two for L2,1 and slimming), the JPEG copy of the data with shifts and mirrorings. "
    '"units" is Winnow\'s own: whole '
    "units, gate of depth 3, down to a share of the MACs in the first third of the training; what is left trains on as "
    "a smaller model; once from half of the published width. Selected on test accuracy, as published.",
    full=FULL,
    quick=FULL
    | {
        "width": 2,
        "wider": [],
        "steps": 30,
        "batch": 32,
        "values": {"dense": [0.0], "D=3": [1e-1], "units": [0.5], "L2,1": [1e-4]},
        "ratios": [0.5],
        "seconds": 0.1,
    },
    beyond=(
        Verdict(
            "the same on SVHN with VGG-16 and on CIFAR-100 with ResNet-18",
            "SVHN 175 to 267×, CIFAR-100 5 to 13× within 5 points",
            "neither data set is at hand",
            Outcome.NOT_RUN,
        ),
        Verdict(
            "ResNet-18 on CIFAR-10",
            "not published: CIFAR-100 in the paper",
            "0.56 GMACs an image: days on two cores; a ResNet-9 is in records/cifar10-channels-macs-0.3",
            Outcome.NOT_RUN,
        ),
    ),
    cells=cells,
    run=run,
    judge=judge,
    draw=draw,
    table=table,
    minutes=100.0,
)
