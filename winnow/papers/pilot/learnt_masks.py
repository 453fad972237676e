"""LEARNT MASKS: rivals of PILoT, as parametrisations of every weight: STR, continuous sparsification, two of m ⊙ v."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from winnow.compare.rivals import Threshold
from winnow.starts import Gap


class SoftThreshold(Threshold):
    """STR (Kusupati et al. 2020); weight decay on w and s drives s up."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0
        self.last = torch.zeros(())

    def forward(self, w: Tensor) -> Tensor:
        self.last = w
        return super().forward(w)

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


class Masks(nn.Module):
    """m ⊙ v from m² − v² = 1, L1 on m."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.progress = 0.0
        m, v = self.start(weight.detach())
        self.m = nn.Parameter(m)
        self.last = v

    def start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(m, v)."""
        m, v = Gap(1.0)(weight, 2)
        return m, v

    def right_inverse(self, weight: Tensor) -> Tensor:
        """v, whatever the weight: asked once, at the start."""
        return self.last

    def forward(self, v: Tensor) -> Tensor:
        self.last = v
        return self.m * v

    def cost(self) -> Tensor:
        """Σ|m|."""
        return self.m.abs().sum()


class Independent(Masks):
    """m ⊙ v, both drawn as the weight was (spred's code), L2 on both."""

    def start(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.randn_like(weight) * weight.std(), weight.clone()

    def cost(self) -> Tensor:
        """½(‖m‖² + ‖v‖²)."""
        out: Tensor = 0.5 * (self.m.square().sum() + self.last.square().sum())
        return out


MAPS: dict[str, Callable[[Tensor], nn.Module]] = {
    "STR": lambda weight: SoftThreshold(),
    "continuous sparsification": lambda weight: SoftMask(weight.shape),
    "L1 on m": Masks,
    "spred, independent start": Independent,
}


def reparametrise(model: nn.Module, names: list[str], method: str) -> list[Any]:
    """The method's map on every weight; [] for a method that has none."""
    if method not in MAPS:
        return []
    masks: list[Any] = []
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        masks.append(MAPS[method](model.get_parameter(name)))
        nn.utils.parametrize.register_parametrization(owner, "weight", masks[-1], unsafe=True)
    return masks


def fold(model: nn.Module, names: list[str]) -> None:
    """Plain weights again, as the maps leave them."""
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        if nn.utils.parametrize.is_parametrized(owner):
            nn.utils.parametrize.remove_parametrizations(owner, "weight")
