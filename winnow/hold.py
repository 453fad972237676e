"""HOLD: zeros that stay zero while the rest trains on, without a run: fine-tuning of what is settled or loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from winnow.errors import AttachError


def hold(model: nn.Module, optimizer: Optimizer) -> RemovableHandle:
    """From now on every entry of the weights (two or more dimensions) that is zero is so after each `optimizer.step()`.

    `.remove()` on what is returned ends it.  Raises `AttachError` where no weight that the optimizer steps has a zero.
    """
    held = {id(theta) for group in optimizer.param_groups for theta in group["params"]}
    weights = [theta for theta in model.parameters() if theta.dim() >= 2 and id(theta) in held]
    masks = [(theta, theta.detach() != 0) for theta in weights if bool((theta.detach() == 0).any())]
    if not masks:
        raise AttachError(
            "no weight that the optimizer steps has a zero to hold; settle() a run first, or load its result"
        )

    @torch.no_grad()
    def again(*_: Any) -> None:
        for theta, mask in masks:
            theta.mul_(mask)

    return optimizer.register_step_post_hook(again)
