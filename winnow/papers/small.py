"""SMALL: problems of a few numbers, trained through the same `attach` as a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import winnow

Loss = Callable[[Tensor], Tensor]


class Weights(nn.Module):
    """A module that holds one parameter `w`, float64 unless its start is not."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, X: Tensor) -> Tensor:
        """Xw."""
        return X @ self.w


def attached(
    start: Tensor, lr: float, how: Any, when: Any, where: Any = None, momentum: float = 0.0, adam: bool = False
) -> tuple[Weights, torch.optim.Optimizer, winnow.Run]:
    """`w` under SGD (or Adam) with a run on it; single entries unless `where` names another grouping."""
    model = Weights(start)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam([model.w], lr) if adam else torch.optim.SGD([model.w], lr, momentum=momentum)
    )
    run = winnow.attach(model, optimizer, how=how, where={"w": where or winnow.Elements()}, when=when)
    return model, optimizer, run


def descend(model: Weights, optimizer: torch.optim.Optimizer, loss: Loss, steps: int, cosine: bool = False) -> None:
    """`steps` of gradient descent on `loss(w)`, the rate constant or falling to 0 by cosine."""
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model.w).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if rates:
            rates.step()
