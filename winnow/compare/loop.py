"""LOOP: the one training loop of all methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from winnow.errors import WinnowError
from winnow.jobs.data import Data

from .base import Method, Setting, density

Optimizers = Callable[[nn.Module, float], torch.optim.Optimizer]


def train(
    method: Method,
    model: nn.Module,
    data: Data,
    setting: Setting,
    batch: int,
    optimizer: Optimizers,
    step: Callable[[float], None] = lambda loss: None,
) -> dict[str, Any]:
    """Exactly `setting.steps` optimizer steps, cosine from the rate to 0, minibatches by `setting.seed`.

    `optimizer(model, factor)` builds it at the factor times the task's rate.  Returns what came of it: the density asked and
    obtained, per weight and in all, seconds.  Raises `WinnowError` at a loss that is not finite, or a method that leaves
    more than it was asked to.
    """
    made = optimizer(model, method.rate(setting.value))
    at_work = method.begin(model, made, setting)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(made, setting.steps)
    taken, epoch, start = 0, 0, time.perf_counter()
    model.train()
    while taken < setting.steps:
        for x, y in data.batches(batch, setting.seed, epoch):
            loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
            value = loss.item()
            if not math.isfinite(value):
                raise WinnowError(f"{method.name}: the loss is {value} at step {taken + 1}")
            made.zero_grad()
            (loss + at_work.extra()).backward()  # type: ignore[no-untyped-call]
            taken += 1
            at_work.before(taken)
            at_work.step()
            at_work.after(taken)
            rates.step()
            step(value)
            if taken == setting.steps:
                break
        epoch += 1
    at_work.finish()
    model.eval()
    found = density(at_work.weights)
    slack = len(at_work.weights) / sum(w.numel() for w in at_work.weights)
    if method.name != "dense" and found > setting.keep + slack + 1e-9:
        raise WinnowError(f"{method.name} left {found:.4f} of the weights where {setting.keep:g} were asked for")
    names = {id(theta): name for name, theta in model.named_parameters()}
    layers = {names[id(w)]: density([w]) for w in at_work.weights}
    return {
        "keep": setting.keep,
        "density": found,
        "layers": layers,
        "seconds": time.perf_counter() - start,
        "steps": taken,
    }
