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

from .base import Method, Setting

Optimizers = Callable[[nn.Module, float], torch.optim.Optimizer]


def train(
    method: Method,
    model: nn.Module,
    data: Data,
    setting: Setting,
    batch: int,
    optimizer: Optimizers,
    step: Callable[[float], None] = lambda loss: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Exactly `setting.steps` optimizer steps, cosine from the rate to 0, minibatches by `setting.seed`.

    `optimizer(model, factor)` builds it at the factor times the task's rate.  Returns the model (another, smaller one where
    the method takes units out) and what came of it: the density asked and obtained, per weight and in all, seconds.  Raises
    `WinnowError` at a loss that is not finite, or a method that leaves more than it was asked to.
    """
    method.check()
    made = optimizer(model, setting.trial.rate)
    rate = made.param_groups[0]["lr"]
    model.train()
    at_work = method.begin(model, made, setting)
    taken, epoch, start = 0, 0, time.perf_counter()
    while taken < setting.steps:
        for x, y in data.batches(batch, setting.seed, epoch):
            for group in at_work.optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * taken / setting.steps))
            loss = F.cross_entropy(at_work.model(x).flatten(0, -2), y.flatten())
            value = loss.item()
            if not math.isfinite(value):
                raise WinnowError(f"{method.name}: the loss is {value} at step {taken + 1}")
            at_work.optimizer.zero_grad()
            (loss + at_work.extra()).backward()  # type: ignore[no-untyped-call]
            taken += 1
            at_work.before(taken)
            at_work.step()
            at_work.after(taken)
            step(value)
            if taken == setting.steps:
                break
        epoch += 1
    at_work.finish()
    found = at_work.density()
    if method.name != "dense" and found > setting.keep + at_work.slack() + 1e-9:
        raise WinnowError(f"{method.name} left {found:.4f} where {setting.keep:g} was asked for")
    return at_work.model.eval(), {
        "keep": setting.keep,
        "density": found,
        "layers": at_work.layers(),
        "seconds": time.perf_counter() - start,
        "steps": taken,
    }
