"""The coordinates of the factorised routes: a weight as a product, its chain rule and its plain L2 energy.

A `Factorisation` writes θ = product(factors) so that the smooth objective

    F̃(factors) = L(θ) + λ·energy(factors),        min over factors of fixed product of energy = ΣΩ(‖θ_g‖),

has the local minima of F(θ) = L(θ) + λ·ΣΩ(‖θ_g‖).  `pull` is the gradient of F̃ in the factors, given g = ∂L/∂θ:
every optimizer that minimises F̃ therefore solves F for the *same* λ.  Nothing here knows of modules or optimizers.
Groups with a weight c (√size) see the penalty c·Ω, that is λ·c wherever λ stands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from winnow.groups import Groups, Split
from winnow.penalties import Lp, Penalty
from winnow.starts import Start

Factors = Sequence[Tensor]
Strength = float | Tensor
Cut = Groups | Split


def _plus(fresh: Tensor, lam: Strength, x: Tensor) -> Tensor:
    """fresh + λ·x; in `fresh`'s own memory where λ is a number, as every temporary costs a step of its time."""
    return fresh + lam * x if isinstance(lam, Tensor) else fresh.add_(x, alpha=lam)


class Factorisation(ABC):
    """θ as a product of named factors. Implementations are stateless."""

    names: tuple[str, ...]
    copies: tuple[float, ...]
    """How many equal factors each stored factor stands for: its gradient is that of *one* of them, so that D−1 equal
    gates, which stay equal for ever, cost one tensor and step exactly as D−1 separate ones."""

    @abstractmethod
    def start(self, theta: Tensor, groups: Cut) -> list[Tensor]:
        """Factors with product `theta` (unless the method draws its own weights)."""

    @abstractmethod
    def product(self, factors: Factors, groups: Cut) -> Tensor:
        """θ, in the shape of the weight."""

    @abstractmethod
    def pull(self, g: Tensor, factors: Factors, groups: Cut, strength: Strength) -> list[Tensor]:
        """∂F̃/∂factor for every factor, divided by its `copies`."""

    @abstractmethod
    def energy(self, factors: Factors, groups: Cut) -> Tensor:
        """The smooth penalty per group, c·½(‖v‖² + f(s²)) ≥ c·Ω(‖θ_g‖), in the shape of the gates."""

    @abstractmethod
    def imbalance(self, factors: Factors, groups: Cut) -> Tensor:
        """What is zero at every stationary point, per group (I = ‖v‖² − s²f'(s²), or its counterpart)."""

    def clip(self, factors: Factors) -> list[Tensor]:
        """The factors brought back into their range after a step."""
        return list(factors)

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.names)})"


class _Gate(Factorisation):
    """θ_g = v_g·gate_g: a vector per group times one number per group. Starts at gate 1: the function is unchanged."""

    names = ("v", "s")
    copies: tuple[float, ...] = (1.0, 1.0)

    def start(self, theta: Tensor, groups: Cut) -> list[Tensor]:
        # made from a reduction, so that a sharded weight gets gates sharded alike
        return [theta.clone(), torch.ones_like(groups.total(theta)).contiguous()]

    def product(self, factors: Factors, groups: Cut) -> Tensor:
        v, s = factors
        return groups.spread(self._gate(s), v)

    def _gate(self, s: Tensor) -> Tensor:
        return s


@final
@dataclass(frozen=True)
class PowerGate(_Gate):
    """Lp: θ = v·u^k with k = D − 1 and penalty ½(‖v‖² + k·u²), real depth D = 2/p ≥ 2 (dictionary section 6.6).

    Integer k is D-Gating's product of k equal gates (arXiv 2509.23898); real k uses sign(u)|u|^k.
    """

    depth: float

    @property
    def copies(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.0, self.depth - 1)

    def _power(self, u: Tensor, k: float) -> Tensor:
        """u^k and, for the derivative's sake, u^(k−1) with the parity of a product of equal gates."""
        if k == 0:
            return torch.ones_like(u)
        if k == 1:
            return u
        if float(k).is_integer():
            return u ** int(k)
        return u.abs() ** k

    def _gate(self, u: Tensor) -> Tensor:
        k = self.depth - 1
        return self._power(u, k) if float(k).is_integer() else self._power(u, k).copysign(u)

    def pull(self, g: Tensor, factors: Factors, groups: Cut, strength: Strength) -> list[Tensor]:
        v, u = factors
        lam = strength * groups.scale
        if self.depth == 2:
            dv, du = groups.spread(u, g), groups.total(g * v)
        elif groups.inside:
            dv, du = groups.spread(self._gate(u), g), self._power(u, self.depth - 2) * groups.total(g * v)
        else:  # the same with fewer temporaries of the weight's size: u^k = u^(k−1)·u
            rest = self._power(u, self.depth - 2) * groups.split(g)
            dv, du = (rest * u).view(g.shape), rest.mul_(groups.split(v))
        return [_plus(dv, lam, v), _plus(du, lam, u)]

    def energy(self, factors: Factors, groups: Cut) -> Tensor:
        v, u = factors
        return 0.5 * groups.scale * (groups.total(v * v) + (self.depth - 1) * u * u)

    def imbalance(self, factors: Factors, groups: Cut) -> Tensor:
        v, u = factors
        return groups.total(v * v) - u * u


@final
@dataclass(frozen=True)
class PlainGate(_Gate):
    """Any Ω with a smooth dual: θ = v·s and penalty ½(‖v‖² + f(s²)) (dictionary section 6.1)."""

    penalty: Penalty

    def pull(self, g: Tensor, factors: Factors, groups: Cut, strength: Strength) -> list[Tensor]:
        v, s = factors
        lam = strength * groups.scale
        ds = _plus(groups.total(g * v), lam, self._half_slope(s))
        return [_plus(groups.spread(s, g), lam, v), ds]

    def _half_slope(self, s: Tensor) -> Tensor:
        """s·f'(s²), half the derivative of f(s²)."""
        if isinstance(self.penalty, Lp):  # 0 < p < 2: s·|s|^(2q−2), finite at s = 0
            q = self.penalty.p / (2 - self.penalty.p)
            return (s.abs() ** (2 * q - 1)).copysign(s)
        return s * self.penalty.dual_slope(s * s)

    def energy(self, factors: Factors, groups: Cut) -> Tensor:
        v, s = factors
        return 0.5 * groups.scale * (groups.total(v * v) + self.penalty.dual(s * s))

    def imbalance(self, factors: Factors, groups: Cut) -> Tensor:
        v, s = factors
        return groups.total(v * v) - s * self._half_slope(s)


@final
@dataclass(frozen=True)
class BoundedGate(_Gate):
    """Penalties with a plateau (MCP, SCAD, hard-concrete): s² = η/(η+c) in [0, 1] (dictionary section 6.7).

    θ = v·s and penalty ½[‖v‖²(1−s²)/c + φ(s²)]; beyond the knot s = 1 at finite distance and the weight is unpenalised.
    """

    penalty: Penalty

    @property
    def c(self) -> float:
        """1/Ω'(0+), which conditions the origin best (6.7).

        For a wide plateau the gate then bends sharply near s = 1: if a loss oscillates there, halve the learning rate.
        """
        return 1.0 / self.penalty.slope_at_zero

    def pull(self, g: Tensor, factors: Factors, groups: Cut, strength: Strength) -> list[Tensor]:
        v, s = factors
        lam = strength * groups.scale
        alpha = s * s
        dv = groups.spread(s, g) + groups.spread(lam * (1 - alpha) / self.c, v)
        ds = groups.total(g * v) + lam * s * (self.penalty.phi_slope(alpha, self.c) - groups.total(v * v) / self.c)
        return [dv, ds]

    def energy(self, factors: Factors, groups: Cut) -> Tensor:
        v, s = factors
        alpha = s * s
        return 0.5 * groups.scale * (groups.total(v * v) * (1 - alpha) / self.c + self.penalty.phi(alpha, self.c))

    def imbalance(self, factors: Factors, groups: Cut) -> Tensor:
        v, s = factors
        alpha = s * s
        gap = groups.total(v * v) - self.c * alpha * self.penalty.phi_slope(alpha, self.c)
        return torch.where((alpha >= 1) & (gap > 0), torch.zeros_like(gap), gap)

    def clip(self, factors: Factors) -> list[Tensor]:
        return [factors[0], factors[1].clamp(-1, 1)]


@final
@dataclass(frozen=True)
class Product(Factorisation):
    """Single entries as θ = u_1·…·u_D, all factors full-size: Lp with p = 2/D (spred for D = 2, PILoT with a gap)."""

    depth: int
    begin: Start

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("m", "w") if self.depth == 2 else tuple(f"u{d}" for d in range(1, self.depth + 1))

    @property
    def copies(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.0,) * self.depth

    def start(self, theta: Tensor, groups: Cut) -> list[Tensor]:
        return self.begin(theta, self.depth)

    def product(self, factors: Factors, groups: Cut) -> Tensor:
        out = factors[0] * factors[1]
        for factor in factors[2:]:
            out = out * factor
        return out

    def pull(self, g: Tensor, factors: Factors, groups: Cut, strength: Strength) -> list[Tensor]:
        lam = strength * groups.scale
        if self.depth == 2:
            m, w = factors
            return [_plus(g * w, lam, m), _plus(g * m, lam, w)]
        before, after = [g], [torch.ones_like(g)]  # products of the factors left and right of each
        for left, right in zip(factors[:-1], reversed(factors[1:]), strict=True):
            before.append(before[-1] * left)
            after.append(after[-1] * right)
        return [_plus(b * a, lam, u) for b, a, u in zip(before, reversed(after), factors, strict=True)]

    def energy(self, factors: Factors, groups: Cut) -> Tensor:
        total = factors[0] * factors[0]
        for factor in factors[1:]:
            total = total + factor * factor
        return 0.5 * groups.scale * total

    def imbalance(self, factors: Factors, groups: Cut) -> Tensor:
        squares = torch.stack([factor * factor for factor in factors])
        return squares.amax(0) - squares.amin(0)
