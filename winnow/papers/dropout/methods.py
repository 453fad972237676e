"""METHODS: the case study's seven ways to a sparse LeNet-300-100, as its notebook has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import winnow
from winnow.penalties import LogSum
from winnow.routes import Decay, Dropout, Expected, Local, Variational, WeightNoise

from ..base import Settings

TOLERANCE = 0.05
PENALTY = LogSum(2.0)
RATES = {"VarDrop+LR": 1e-3, "VarDrop": 1e-3, "η-Trick": 1e-3}  # the others 1e-4


@dataclass
class Task:
    """A model under one method: its optimizer, what is added to the loss, and which weights count as left."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    left: Callable[[], list[Tensor]]
    extra: Callable[[], Tensor] | None = None
    run: winnow.Run | None = None


def weights_of(model: nn.Module) -> list[Tensor]:
    """The 266,200 weights, without biases."""
    return [theta for name, theta in model.named_parameters() if theta.dim() == 2 and name.startswith("fc")]


def published(model: nn.Module, method: str, settings: Settings) -> Task:
    """One of the seven on `model`."""
    strength, weights = settings["lambda"], weights_of(model)

    def kept() -> list[Tensor]:
        return [PENALTY.keep(w.detach().abs(), strength) >= TOLERANCE for w in weights]

    if method == "η-Trick":
        return _joint(model, weights, strength, RATES[method])
    optimizer = torch.optim.Adam(model.parameters(), RATES.get(method, 1e-4))
    if method == "LogSum":
        return Task(model, optimizer, kept, lambda: strength * sum(PENALTY.value(w.abs()).sum() for w in weights))
    if method in ("AdaProx", "AdaTikhonov"):
        how: Any = Decay(PENALTY, metric="adaptive") if method == "AdaProx" else Dropout(PENALTY, mask=Expected())
        winnow.attach(model, optimizer, how=how, where=winnow.Elements(), when=strength, fused=settings["fused"])
        return Task(model, optimizer, kept)
    additive = method == "VarDrop+LR+AR"
    if additive:
        _narrow(model)
    how = Variational(WeightNoise() if method == "VarDrop" else Local(), additive=additive, tolerance=TOLERANCE)
    run = winnow.attach(
        model, optimizer, how=how, where=winnow.Elements(), when=1 / settings["examples"], fused=settings["fused"]
    )
    return Task(model, optimizer, lambda: list(run.masks().values()))


@torch.no_grad()
def _narrow(model: nn.Module) -> None:
    for theta in model.parameters():
        theta.normal_(0, 0.02) if theta.dim() == 2 else theta.zero_()


def _joint(model: nn.Module, weights: list[Tensor], strength: float, lr: float) -> Task:
    """Descent on w and log(η/λ) together, η from λe⁵, with the published extra term (λ/2)·1e-3·Σlog(η/λ)."""
    logs = nn.ParameterList([torch.full_like(w, 5.0) for w in weights])  # of the model, so that checkpoints hold it
    model.logs = logs
    optimizer = torch.optim.Adam(model.parameters(), lr)

    def extra() -> Tensor:
        terms = []
        for w, u in zip(weights, logs, strict=True):
            eta = strength * u.exp()
            terms.append((w.square() / eta + PENALTY.dual(eta) + 1e-3 * u).sum())
        return strength / 2 * torch.stack(terms).sum()

    return Task(model, optimizer, lambda: [u.detach().sigmoid() >= TOLERANCE for u in logs], extra)
