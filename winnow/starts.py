"""How the full-size factors of an elementwise product begin."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


class Start(ABC):
    """How the full-size factors of an elementwise product begin."""

    @abstractmethod
    def __call__(self, theta: Tensor, depth: int) -> list[Tensor]:
        """`depth` tensors of the shape of `theta`."""


@final
@dataclass(frozen=True)
class Balanced(Start):
    """All |factors| = |θ|^(1/D), the sign on the first. Entries that are exactly zero never leave zero."""

    def __call__(self, theta: Tensor, depth: int) -> list[Tensor]:
        root = theta.abs() ** (1 / depth)
        return [root.copysign(theta), *(root.clone() for _ in range(depth - 1))]


@final
@dataclass(frozen=True)
class Gap(Start):
    """Two factors m·w = θ with m² − w² = β, m > |w| (PILoT, arXiv 2408.09966, section 2.1 of its specification)."""

    beta: float = 1.0

    def __call__(self, theta: Tensor, depth: int) -> list[Tensor]:
        beta = self.beta
        m = (((4 * theta * theta + beta * beta).sqrt() + beta) / 2).sqrt()
        # the quotient, as the difference of two roots would cancel at small θ; m = 0 only where β = θ = 0
        return [m, torch.where(m > 0, theta / m, theta)]


@final
@dataclass(frozen=True)
class Truncated(Start):
    """Deep weight factorisation's draw (arXiv 2502.02496): factors N(0, σ_w^(2/D)), ε^(1/D) < |factor| < min(1, (2σ_w)^(1/D)).

    Draws new weights of the old weights' scale σ_w, so the function changes; ε = `floor`·σ_w. `exact=True` rescales
    the factors so that the product's standard deviation is σ_w, which truncation alone leaves at .78–.86 of it.
    """

    seed: int = 0
    floor: float = 0.25
    exact: bool = False

    def __call__(self, theta: Tensor, depth: int) -> list[Tensor]:
        sigma = float(theta.double().std())
        low, high = (self.floor * sigma) ** (1 / depth), min(1.0, (2 * sigma) ** (1 / depth))
        # the same on every rank, and another one for each layer, even of equal shapes
        layer = zlib.crc32(repr(float(theta.flatten()[0])).encode())
        generator = torch.Generator().manual_seed(self.seed + theta.numel() + layer)
        std = torch.tensor(sigma, dtype=torch.float64) ** (1 / depth)
        lo, hi = (torch.special.ndtr(torch.tensor(x, dtype=torch.float64) / std) for x in (low, high))
        factors = []
        for _ in range(depth):
            u = torch.rand(theta.shape, generator=generator, dtype=torch.float64)
            size = torch.special.ndtri(lo + (hi - lo) * u) * std
            sign = torch.randint(0, 2, theta.shape, generator=generator) * 2 - 1
            factors.append(size * sign)
        if self.exact:
            product = torch.stack(factors).prod(0)
            factors = [f * (sigma / float(product.std())) ** (1 / depth) for f in factors]
        return [f.to(theta) for f in factors]
