"""ONESHOT: train once, remove the smallest weights, look: PILoT against seven others over the published sparsities (Fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import winnow
from winnow.jobs.models import LeNet300100, ResNet20
from winnow.jobs.train import evaluate

from ..base import Bench, Cell, Experiment, Outcome, Settings, Verdict
from ..data import examples, images
from ..texts import PILOT
from ..training import Stream, Training, cosine
from .curves import (
    ALSO,
    GRID,
    balanced_lags,
    continuous_below,
    controller_level,
    draw,
    l1_collapses,
    l1_on_m_below,
    leads_where_sparse,
    masks_help,
    methods,
    spred_below,
    strengths,
    table,
)
from .learnt_masks import fold, reparametrise

FACTORED = ("m⊙v", "PILoT", "balanced (spred)", *ALSO)


def cells(settings: Settings, seeds: int) -> list[Cell]:
    return [
        {"net": net, "method": m, "strength": s, "seed": k}
        for net in settings["nets"]
        for m in methods(settings["nets"][net])
        for s in strengths(m, settings["nets"][net], settings)
        for k in range(min(seeds, settings["nets"][net]["seeds"]))
    ]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    net = settings["nets"][cell["net"]]
    data: Any = images() if cell["net"] == "resnet" else examples(net["data"])
    torch.manual_seed(cell["seed"])
    model = build(cell["net"], net, data)
    names = [name for name, theta in model.named_parameters() if theta.dim() >= 2]
    steps, method = net["steps"], cell["method"]
    masks = reparametrise(model, names, method)
    optimizer = torch.optim.SGD(model.parameters(), net["lr"] * (2 if method in FACTORED else 1), momentum=0.9)
    weights = [model.get_parameter(name) for name in names] if not masks else []
    handle = _attach(model, optimizer, cell, settings, steps)

    def extra() -> Tensor:
        if method == "plain":
            costs = [0.5 * w.square().sum() for w in weights]
        else:
            costs = [w.abs().sum() for w in weights] if method == "L1 on x" else [mask.cost() for mask in masks]
        return torch.stack(costs).sum() * float(cell["strength"])

    rates = cosine(optimizer, steps)
    source = Stream(data, net["batch"], cell["seed"], steps, net["parts"])

    def batches(part: int) -> Iterator[tuple[Tensor, Tensor]]:
        for pair in source(part):
            for mask in masks:
                mask.progress = rates.last_epoch / steps
            yield pair

    def each(part: int, loss: float) -> dict[str, Any]:
        if handle and method == "PILoT, controller":
            handle.feedback(-loss)
        return {"part": part, "loss": loss}

    penalised = masks or method in ("plain", "L1 on x")
    Training(model, optimizer, batches, source.parts, rates, each, extra=extra if penalised else None).fit(bench)
    for mask in masks:
        mask.progress = 1.0
    dose = handle.dose if handle else None
    if handle:
        handle.release()
    fold(model, names)
    zeros = _zeros(model, names)
    return {"accuracy": _removed(model, names, data, settings["grid"]), "dose": dose, "zeros": zeros}


def build(name: str, net: Settings, data: Any) -> nn.Module:
    """The network, with Kaiming's normal start."""
    if name == "resnet":
        return ResNet20(data.classes, tuple(net["widths"]))
    model = LeNet300100(data.x[0].numel(), data.classes, tuple(net["hidden"]))
    for layer in (model.fc1, model.fc2, model.fc3):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def _attach(model: nn.Module, optimizer: Any, cell: Cell, settings: Settings, steps: int) -> winnow.Run | None:
    """PILoT's strength is its dose over the run, so that networks of different lengths compare; it is off for the last half."""
    how: dict[str, Any] = {
        "m⊙v": winnow.Masking(1.0),
        "PILoT": winnow.Masking(1.0),
        "PILoT, controller": winnow.Masking(1.0),
        "balanced (spred)": winnow.Masking(0.0),
        "HAM": winnow.Hyperbolic(cell["strength"], rescale=False),
    }
    if cell["method"] not in how:
        return None
    rate = optimizer.param_groups[0]["lr"]
    when: Any = settings["ham_beta"] if cell["method"] == "HAM" else 0.0
    if cell["method"] == "PILoT":  # Σlr/(1−μ) over a cosine's first half: lr·steps·(¼ + 1/2π)/(1−μ)
        when = winnow.Off(winnow.Constant(cell["strength"] / (rate * 10 * steps * (0.25 + 0.5 / math.pi))), steps, 0.5)
    elif cell["method"] == "balanced (spred)":
        when = cell["strength"] / (rate * 10 * steps * 0.5)
    elif cell["method"] == "PILoT, controller":
        when = winnow.Feedback(settings["nets"][cell["net"]]["parts"], initial=cell["strength"], delta=1.1)
    return winnow.attach(
        model, optimizer, how=how[cell["method"]], where=winnow.Elements(), when=when, fused=settings["fused"]
    )


@torch.no_grad()
def _zeros(model: nn.Module, names: list[str]) -> float:
    weights = [model.get_parameter(name) for name in names]
    return 1 - sum(int(torch.count_nonzero(w)) for w in weights) / sum(w.numel() for w in weights)


@torch.no_grad()
def _removed(model: nn.Module, names: list[str], data: Any, grid: list[int]) -> list[list[float]]:
    """[sparsity, accuracy %] after the globally smallest weights are set to zero, without retraining."""
    weights = [model.get_parameter(name) for name in names]
    order = torch.cat([w.abs().flatten() for w in weights]).sort().values
    out = []
    for k in grid:
        sparsity = GRID[k - 1]
        threshold = order[round(sparsity * len(order)) - 1]
        for w in weights:
            w.mul_(w.abs() > threshold)
        out.append([sparsity, 100 * evaluate(model, data)[1]])
    return out


STRENGTHS = {
    "plain": [0.0, 1e-4, 5e-4],
    "PILoT": [2.0, 4.0, 8.0, 16.0],
    "balanced (spred)": [1.0, 2.0, 4.0, 8.0],
    "L1 on x": [1e-4, 3e-4, 1e-3, 3e-3],
    "continuous sparsification": [1e-6, 1e-5, 1e-4, 1e-3],
    "STR": [5e-4, 1e-3, 2e-3, 5e-3],
    "HAM": [5.0, 20.0, 60.0],
    "PILoT, controller": [6e-4, 2e-3, 6e-3],
    "L1 on m": [1e-4, 3e-4, 1e-3, 3e-3],
    "spred, independent start": [1e-5, 3e-5, 1e-4, 3e-4],
}
LENET = {
    "data": "fashion",
    "hidden": [300, 100],
    "steps": 4690,
    "lr": 0.05,
    "batch": 128,
    "seeds": 3,
    "parts": 10,
    "also": True,
    "only": {},
    "title": "LeNet-300-100, Fashion-MNIST",
}
RESNET = {
    "widths": [8, 16, 32],
    "steps": 1173,
    "lr": 0.1,
    "batch": 128,
    "seeds": 1,
    "parts": 10,
    "also": False,
    "only": {
        "plain": [1e-4, 5e-4],
        "PILoT": [4.0, 8.0],
        "balanced (spred)": [2.0, 4.0],
        "L1 on x": [1e-4, 3e-4],
        "continuous sparsification": [1e-5],
        "STR": [1e-3, 2e-3],
        "HAM": [20.0],
    },
    "title": "ResNet-20, half width, CIFAR-10",
}
FULL = {
    "nets": {"lenet": LENET, "resnet": RESNET},
    "strengths": STRENGTHS,
    "grid": list(range(3, 26)),
    "ham_beta": 1e-3,
    "fused": None,
}
EXPERIMENT = Experiment(
    name="pilot-oneshot",
    paper=PILOT,
    title="Removal right after training, without retraining",
    claims=(
        masks_help,
        leads_where_sparse,
        l1_collapses,
        balanced_lags,
        controller_level,
        l1_on_m_below,
        spred_below,
        continuous_below,
    ),
    differs="Networks shrunk for two cores: LeNet-300-100 on Fashion-MNIST (10 epochs) and ResNet-20 of half width on "
    "the JPEG copy of CIFAR-10 (3 epochs; published: full width, 150 epochs). SGD with momentum 0.9, cosine; 0.1 on the "
    "ResNet and 0.05 on LeNet, for m ⊙ v twice that, as published (0.1 and 0.2: m ⊙ v diverges on LeNet). A strength of "
    "PILoT and spred is a dose Λ over the run (the published λ = 2e-4, 6e-4, 2e-3 have Λ = 5.9, 18, 59), PILoT's on in "
    "the first half; powerpropagation as printed is the identity and left out; HAM added, its strengths being α; "
    "continuous sparsification has one round instead of three; STR's threshold starts at σ(−8) and rises by weight "
    "decay. Three or four strengths each around where the method makes a sparse network, on the ResNet one or two (none "
    "for m ⊙ v), the best for every sparsity by test accuracy (our choice). Global ranking. LeNet: 3 seeds, ResNet: 1. "
    "The controller (Algorithm 1) listens to the loss of an epoch, δ = 1.1, its start the grid. HAM is not sparse by "
    "itself, as its authors say; it is shown as it is.",
    failed="On LeNet ten epochs of strong L1, on x or on m, and of continuous sparsification hold to the end, with PILoT "
    "within 1.8 points of the first at every sparsity from 95 % on; on the ResNet three epochs are too few for m ⊙ v, "
    "and the one or two strengths of the comparisons too weak for the tail, so that PILoT's lead there says little.",
    full=FULL,
    quick=FULL
    | {
        "nets": {"lenet": LENET | {"data": "digits", "hidden": [64, 32], "steps": 150, "batch": 32}},
        "strengths": {"PILoT": [0.5], "balanced (spred)": [0.5], "L1 on x": [1e-5], "STR": [1e-4], "HAM": [2.0]}
        | {name: STRENGTHS[name][:1] for name in ALSO},
        "fused": False,
        "grid": [5, 10, 14, 20],
    },
    beyond=(
        Verdict(
            "the same on CIFAR-100 with ResNet-18 and on ImageNet with ResNet-50",
            "ImageNet, 90 %: 74.73 against spred 71.84 and STR 72.40",
            "neither data set is at hand",
            Outcome.NOT_RUN,
        ),
    ),
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    seeds=3,
    minutes=120.0,
)
