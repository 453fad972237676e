"""OVERHEAD: what a gate costs: extra numbers, and the time of a training step beside a dense one (Table 5, Fig. 13)."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import winnow
from winnow.jobs.models import GPTConfig, LeNet300100, NanoGPT

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim, mean
from ..plots import curve, label, panels
from ..texts import GATING
from ..training import cross_entropy
from .vgg import VGG16

NETS = ("LeNet-300-100", "VGG-16", "nanoGPT")
PUBLISHED = {"LeNet-300-100": 8.8e-3, "VGG-16": 8.4e-4, "nanoGPT": 2.0e-5}
"""Share of the gates at D = 4 in the published sizes."""

NOISE = 0.03  # what two dense steps differ by


def cells(settings: Settings, seeds: int) -> list[Cell]:
    counted = [{"kind": "count", "net": net} for net in settings["nets"]]
    sizes = [(net, batch) for net in settings["nets"] for batch in settings["nets"][net]]
    timed = [
        {"kind": "time", "net": net, "batch": batch, "depth": D} for net, batch in sizes for D in settings["depths"]
    ]
    return [*counted, *timed]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    torch.manual_seed(0)
    if cell["kind"] == "count":
        return _counted(*network(cell["net"], settings["divide"]["count"]))
    model, where = network(cell["net"], settings["divide"]["time"])
    twins = [step(model, where, cell["batch"], depth) for depth in (None, None, cell["depth"])]
    for take in twins * 3:
        take()
    taken = [[take() for take in twins] for _ in range(settings["repeats"])]
    same, gated = (statistics.median(row[k] / row[0] for row in taken) for k in (1, 2))
    return {"ratio": gated, "same": same, "dense_seconds": min(row[0] for row in taken)}


def network(net: str, divide: int) -> tuple[nn.Module, dict[str, winnow.Grouping]]:
    """The published network, its width divided, and its gated groups."""
    if net == "LeNet-300-100":
        return LeNet300100(784, 10), {"fc1.weight": winnow.Columns()}
    if net == "VGG-16":
        model = VGG16(64 // divide)
        names = [f"features.{i}.weight" for i, m in enumerate(model.features) if isinstance(m, nn.Conv2d)]
        return model, dict.fromkeys(names, winnow.Rows())
    heads: winnow.Grouping = winnow.Heads(12, fused=3)
    return NanoGPT(GPTConfig(65, 6, 12, 384 // divide, 256)), {f"h.{i}.attn.c_attn.weight": heads for i in range(6)}


def example(model: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    """Inputs of the published shape, and labels."""
    if isinstance(model, NanoGPT):
        codes = torch.randint(0, 65, (batch, 128))
        return codes, codes
    x = torch.randn(batch, 3, 32, 32) if isinstance(model, VGG16) else torch.randn(batch, 784)
    return x, torch.randint(0, 10, (batch,))


def _counted(model: nn.Module, where: dict[str, winnow.Grouping]) -> dict[str, Any]:
    """The numbers that a gate of depth 4 adds, counted in the optimizer's state."""
    weights = sum(theta.numel() for theta in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = winnow.attach(model, optimizer, how=winnow.Gating(depth=4), where=where, when=0.0, fused=False)
    shelves = [optimizer.state[model.get_parameter(name)]["winnow"] for name in where]
    factors = sum(factor["value"].numel() for shelf in shelves for factor in shelf.values())
    groups = sum(layer.groups for layer in run.layers())
    return {"weights": weights, "groups": groups, "extra": factors - sum(layer.size for layer in run.layers())}


def step(like: nn.Module, where: dict[str, winnow.Grouping], batch: int, depth: int | None) -> Callable[[], float]:
    """A training step on a copy of a network, dense or gated: it returns its seconds."""
    model = copy.deepcopy(like)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    if depth:
        winnow.attach(model, optimizer, how=winnow.Gating(depth=depth), where=where, when=1e-5, fused=False)
    x, y = example(model, batch)

    def take() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.perf_counter() - start

    return take


@claim(
    "at D = 4 the gates are less than 1 % of the weights of every network",
    published=", ".join(f"{net} {share:.1e}" for net, share in PUBLISHED.items()),
)
def gates_are_few(rows: list[Row], settings: Settings) -> Found:
    shares = {row["net"]: row["extra"] / row["weights"] for row in among(rows, kind="count")}
    said = ", ".join(f"{net} {share:.1e}" for net, share in shares.items())
    return said, all(0 < share < 0.01 for share in shares.values())


@claim("a training step takes 0–30 % longer, the less the larger the batch", published="+0–30 %")
def steps_cost_little(rows: list[Row], settings: Settings) -> Found:
    timed = among(rows, kind="time")
    ratios = {
        (r["net"], r["batch"]): mean([s["ratio"] for s in among(timed, net=r["net"], batch=r["batch"])]) for r in timed
    }
    falls = all(ratios[net, max(sizes)] <= ratios[net, min(sizes)] + NOISE for net, sizes in settings["nets"].items())
    noise = max(abs(row["same"] - 1) for row in timed)
    said = "; ".join(f"{net}, batch {batch}: {100 * (x - 1):+.1f} %" for (net, batch), x in ratios.items())
    said += f" (dense against itself: up to {100 * noise:.1f} % off)"
    return said, max(row["ratio"] for row in timed) < 1.3 and falls


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, axes = panels(len(settings["nets"]), "a gated training step beside a dense one")
    for ax, net in zip(axes, settings["nets"], strict=True):
        for i, depth in enumerate(settings["depths"]):
            found = among(rows, kind="time", net=net, depth=depth)
            curve(ax, i, [row["batch"] for row in found], [row["ratio"] for row in found], f"D = {depth}")
        ax.axhline(1.0, color="0.6", lw=0.8)
        ax.set_xscale("log")
        sizes = settings["nets"][net]
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.set_xticks([], minor=True)
        label(ax, net, "batch", "time / dense")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = []
    for row in among(rows, kind="time"):
        count = among(rows, kind="count", net=row["net"])[0]
        lines.append(
            [
                row["net"],
                f"{count['extra']} ({count['extra'] / count['weights']:.1e})",
                str(row["batch"]),
                str(row["depth"]),
                f"{1000 * row['dense_seconds']:.1f}",
                f"{row['ratio']:.3f}",
                f"{row['same']:.3f}",
            ]
        )
    return Table(
        ("network", "gates at D = 4 (share)", "batch", "D", "dense ms", "gated / dense", "dense / dense"), lines
    )


FULL = {
    "nets": {"LeNet-300-100": [32, 256, 2048], "VGG-16": [8, 64], "nanoGPT": [2, 16]},
    "depths": [2, 3, 4],
    "divide": {"count": 1, "time": 2},
    "repeats": 30,
}
EXPERIMENT = Experiment(
    name="gating-overhead",
    paper=GATING,
    title="What a gate costs",
    claims=(gates_are_few, steps_cost_little),
    differs="On two CPU cores in place of a GPU: the networks at half of their published width for the times (full width "
    "for the counts), windows of 128 characters, medians of 30 steps taken in turns with dense ones. Winnow keeps one "
    "shared gate per group at every depth, where the paper has D − 1. The plain step; what the compiled one gains is in "
    "records/step-time-*.json. Memory: counted, not measured.",
    full=FULL,
    quick=FULL | {"nets": {"LeNet-300-100": [32]}, "depths": [3], "divide": {"count": 4, "time": 8}, "repeats": 3},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    minutes=8.0,
)
