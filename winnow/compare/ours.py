"""OURS: Winnow's routes to a target, as a user would attach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

import winnow
from winnow.schedules import Pace

from .base import RATES, Method, Setting, Training, numbers

PULLS = numbers(Pace().pull, 1.0, 3.0)


def toward(setting: Setting) -> winnow.Toward:
    """The target, with the `pull` that is tuned, if it is."""
    return winnow.Toward(setting.keep, setting.steps, pull=setting.trial.number)


class Attached(Training):
    """A run that steers itself; nothing is left to do but to settle it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting, how: winnow.Route) -> None:
        super().__init__(model, optimizer, setting)
        when = toward(setting)
        self.run = winnow.attach(model, optimizer, how=how, where=winnow.Elements(), when=when)

    def finish(self) -> None:
        self.run.settle()


@final
@dataclass(frozen=True)
class Ours(Method):
    """A route; its own number, if it has one, is how hard `Toward` pulls."""

    make: Callable[[nn.Module, torch.optim.Optimizer, Setting, winnow.Route], Training]
    how: winnow.Route

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> Training:
        return self.make(model, optimizer, setting, self.how)


METHODS: tuple[Method, ...] = (
    Ours("gating, D = 3", "a gate of depth 3 on every weight", PULLS, Attached, winnow.Gating(depth=3)),
    Ours("gating, D = 2", "a gate of depth 2 on every weight", PULLS, Attached, winnow.Gating(depth=2)),
    Ours("masking", "m ⊙ v from a gap of 1 (PILoT)", PULLS, Attached, winnow.Masking(1.0)),
    Ours("decay, p = 1/2", "p-norm weight decay", PULLS, Attached, winnow.Decay(winnow.Lp(0.5))),
    Ours("decay, LogSum", "the η-trick for LogSum(2)", PULLS, Attached, winnow.Decay(winnow.LogSum(2.0))),
    Ours("dropout, LogSum", "adaptive dropout for LogSum(2)", PULLS, Attached, winnow.Dropout(winnow.LogSum(2.0))),
    Ours("latent, garrote", "latent weights under the garrote", RATES, Attached, winnow.Latent()),
)
