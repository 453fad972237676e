"""MOMENT: what a lane may know of the step under way, and how torch's optimizers turn their settings into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

from winnow.errors import AttachError


@final
@dataclass(frozen=True)
class Moment:
    """What a lane may know of the step under way."""

    strength: float
    step: int
    group: Mapping[str, Any]
    """The optimizer's parameter group of the weight: learning rate, betas, …"""
    scale: float | Tensor = 1.0
    """Gradients are this many times too large (fused optimizers under a gradient scaler)."""
    ridge: float = 0.0
    """The optimizer's own coupled weight decay: L2 on the weight, part of L."""

    def whole_gradient(self, theta: Tensor) -> Tensor:
        """The loss's gradient (itself, not a copy) or, with a ridge, a new tensor: that of the loss and its L2."""
        assert theta.grad is not None
        return theta.grad + self.ridge * self.scale * theta.detach() if self.ridge else theta.grad

    @property
    def rate(self) -> float:
        return flow_rate(self.group)


def flow_rate(group: Mapping[str, Any]) -> float:
    """Learning rate per step of the flow an optimizer follows: lr·(1−dampening)/(1−μ) for SGD, lr for the others."""
    lr = float(group["lr"])
    if "momentum" in group and "dampening" in group:
        return lr * (1 - float(group["dampening"] if group["momentum"] else 0)) / (1 - float(group["momentum"]))
    return lr


COUPLED = (SGD, Adam, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, ASGD)
"""Optimizers whose `weight_decay` is added to the gradient, unless a group says otherwise."""


ENTRYWISE = (*COUPLED, AdamW, Adafactor, Rprop)
"""Optimizers that leave alone an entry whose value, gradient and memory are zero; Muon, which mixes entries, does not."""


def ridge_of(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """λ₂ of the L2 penalty λ₂/2·‖w‖² that a group's `weight_decay` stands for: itself if coupled, 0 if decoupled or unknown.

    A decoupled decay is the penalty of no objective that all routes share: on factors it would be Lp(2/D).
    """
    if type(optimizer) not in COUPLED or group.get("decoupled_weight_decay"):
        return 0.0
    return float(group["weight_decay"])


def group_of(optimizer: Optimizer, theta: Tensor) -> dict[str, Any]:
    """The parameter group that holds `theta`; raises `AttachError` if none does."""
    for group in optimizer.param_groups:
        if any(p is theta for p in group["params"]):
            return group
    raise AttachError("the weight is not held by the optimizer; build the optimizer from model.parameters()")
