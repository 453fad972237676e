"""LEARNT MASKS: two rivals of PILoT, as parametrisations of every weight: STR and continuous sparsification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SoftThreshold(nn.Module):
    """STR (Kusupati et al. 2020): sign(w)·relu(|w| − σ(s)), one s per layer; weight decay on w and s drives s up."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(-8.0))
        self.progress = 0.0
        self.last = torch.zeros(())

    def forward(self, w: Tensor) -> Tensor:
        self.last = w
        out: Tensor = w.sign() * torch.relu(w.abs() - self.s.sigmoid())
        return out

    def cost(self) -> Tensor:
        """½(‖w‖² + s²): what coupled weight decay is the gradient of."""
        out: Tensor = 0.5 * (self.last.square().sum() + self.s.square())
        return out


class SoftMask(nn.Module):
    """Continuous sparsification (Savarese et al. 2020): w·σ(T·s)/σ(s₀), T from 1 to 200, L1 on σ(T·s)."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(shape))
        self.progress = 0.0

    def gate(self) -> Tensor:
        """σ(T·s)."""
        out: Tensor = (200**self.progress * self.s).sigmoid()
        return out

    def forward(self, w: Tensor) -> Tensor:
        out: Tensor = w * self.gate() * 2
        return out

    def cost(self) -> Tensor:
        """Σσ(T·s)."""
        return self.gate().sum()


def reparametrise(model: nn.Module, names: list[str], method: str) -> list[Any]:
    """STR's or continuous sparsification's map on every weight; [] for the other methods."""
    if method not in ("STR", "continuous sparsification"):
        return []
    masks: list[Any] = []
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        masks.append(SoftThreshold() if method == "STR" else SoftMask(owner.weight.shape))  # type: ignore[arg-type]
        nn.utils.parametrize.register_parametrization(owner, "weight", masks[-1])
    return masks


def fold(model: nn.Module, names: list[str]) -> None:
    """Plain weights again, as the maps leave them."""
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        if nn.utils.parametrize.is_parametrized(owner):
            nn.utils.parametrize.remove_parametrizations(owner, "weight")
