"""WHAT: the penalties that noise turns out to be: variational dropout, hard-concrete L0, Standout.

Each is stated at λ = 1 of its source; ``Scaled`` gives the rest. Formulas: LeJeune, Javadi, Baraniuk, arXiv
2106.07769, with the constants of spec/adaptive_dropout.md, sections 2.1 and 3.1.
"""

import abc
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from winnow.penalties.base import Number, Penalty, require
from winnow.penalties.special import (
    chebyshev,
    dawson_area,
    dawson_bump,
    gate_tables,
    increasing_root,
    remember,
)


class DualPenalty(Penalty):
    """A penalty known by its dual f: the rest follows from ``solve``, the root η of r = η·√f'(η)."""

    @abc.abstractmethod
    def solve(self, r: Tensor) -> Tensor:
        """η̂(r), finite, 0 at r = 0; without gradient."""

    def value(self, r: Tensor) -> Tensor:
        """Ω(r) = ½[r·Ω' + f(η̂)], with gradient Ω' although ``solve`` has none."""
        with torch.no_grad():
            eta = self.solve(r)
            slope = self.dual_slope(eta).sqrt()
            rest = (r * slope - self.dual(eta)) / 2
        return r * slope - rest

    def slope(self, r: Tensor) -> Tensor:
        return self.dual_slope(self.solve(r)).sqrt()

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return self.solve(r), 1.0


_CELLS = 4096
_HALF = 4.0  # the r in the middle of the table


def _bracket(r: Tensor) -> tuple[Tensor, Tensor]:
    """log η below and above the root of r² = η²·f'(η) for any f' between 1/(1 + η) and 2/(1 + η)."""
    low, high = r / math.sqrt(2), r
    return tuple(torch.log(x * (x + (x**2 + 4).sqrt()) / 2) for x in (low, high))  # type: ignore[return-value]


@remember
def _vardrop_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """η̂(r)/(r·(r + 4)) at 4097 equidistant values of r/(r + 4) from 0 to 1, for linear interpolation."""
    share = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64, device="cpu")[1:-1]
    r = _HALF * share / (1 - share)

    def excess(log_eta: Tensor) -> Tensor:
        eta = log_eta.exp()
        return log_eta + (dawson_bump(eta, 1.0) / (1 + eta)).log() / 2 - r.log()

    inner = increasing_root(excess, *_bracket(r)).exp() / (r * (r + _HALF))
    return torch.cat((inner.new_tensor([1 / _HALF]), inner, inner.new_tensor([1.0]))).to(device, dtype)


@final
@dataclass(frozen=True)
class VariationalDropout(DualPenalty):
    """Exact penalty of variational dropout: f = 2·KL, f'(η) = D(x)/x at x = √(η/2), D Dawson's integral.

    Posterior N(w, w²/η), log-uniform prior. Like L1 at 0 (slope 1, η̂ = r(1 + r/6 + …)), like log r far out.
    N data points, curvature h: the penalty of a mean loss is (1/N)·Ω(√(Nh)·r). In float64 f and η̂ are right
    to 1e-13 (relative); in float32 η̂ is a table lookup right to 1e-6. Source: arXiv 1701.05369, 2106.07769.
    """

    def solve(self, r: Tensor) -> Tensor:
        with torch.no_grad():
            table = _vardrop_table(r.dtype, r.device)
            place = r / (r + _HALF) * _CELLS
            cell = place.int().clamp(0, _CELLS - 1)
            # index_select on flat int32: a quarter of the time of table[cell] on CPU
            low, high = (table.index_select(0, (cell + k).flatten()).view(r.shape) for k in (0, 1))
            eta = torch.lerp(low, high, place - cell) * r * (r + _HALF)
            return eta if r.dtype != torch.float64 else self._polish(r, eta)

    def _polish(self, r: Tensor, eta: Tensor) -> Tensor:
        # One Newton step on log r = log η + ½ log f'(η), whose derivative lies in [0.41, 1]: 1e-7 becomes
        # 1e-14. Far out the derivative is ½ + O(1/η), but its formula cancels.
        slope = self.dual_slope(eta)
        miss = r / (eta * slope.sqrt()).clamp_min(torch.finfo(r.dtype).tiny) - 1
        rate = torch.where(eta < 1e6, 0.75 + (1 / slope - eta) / 4, 0.5)
        return eta * (1 + miss / rate)

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        return dawson_area(num, den)

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        return dawson_bump(num, den) / (den * (den + num))


_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


@final
@dataclass(frozen=True)
class VariationalDropoutFit(DualPenalty):
    """The published fit of the same KL, to compare with papers: f(η) = 2[k1·σ(k3 log η - k2) + ½ log(1 + η)].

    KL exact minus fit lies in [-0.0093, 0.0043]. η̂ is a root found at each call: slower than the exact one.
    Source: Molchanov, Ashukha, Vetrov, arXiv 1701.05369 (k = .63576, 1.87320, 1.48695).
    """

    def solve(self, r: Tensor) -> Tensor:
        log_r = r.clamp_min(torch.finfo(r.dtype).tiny).log()

        def excess(log_eta: Tensor) -> Tensor:
            return log_eta + self.dual_slope(log_eta.exp()).log() / 2 - log_r

        low, high = _bracket(log_r.exp())
        return torch.where(r > 0, increasing_root(excess, low, high).exp(), 0.0)

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        eta = num / den
        return 2 * _K1 * torch.sigmoid(_K3 * eta.log() - _K2) + torch.log1p(eta)

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        # σ(1 - σ)/η as 1/(two powers)², which is 0 and not NaN at η = 0 and at η = ∞
        down, up = (1 - _K3) / 2, (1 + _K3) / 2
        spread = math.exp(_K2 / 2) * num**down * den**up + math.exp(-_K2 / 2) * num**up * den**down
        return 2 * _K1 * _K3 / spread**2 + 1 / (den * (den + num))


@final
@dataclass(frozen=True)
class Standout(Penalty):
    """Standout with keep probability σ(|w|) on a unit of outgoing weight w2: Ω(r) = w2²·(1 - (1 + r)e^(-r)).

    Flat at 0 and bounded: subquadratic, but makes no zeros. Source: arXiv 2106.07769 (with Scaled(·, 1/λ)).
    """

    w2: float = 1.0

    def __post_init__(self) -> None:
        require("Standout: w2", self.w2, hint="try 1")

    def value(self, r: Tensor) -> Tensor:
        # 1 - (1 + r)e^(-r) is the regularised incomplete gamma function P(2, r): no cancellation at small r
        share: Tensor = torch.special.gammainc(torch.full_like(r, 2.0), r)
        return self.w2**2 * share

    def slope(self, r: Tensor) -> Tensor:
        return self.w2**2 * r * torch.exp(-r)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return 1.0, self.w2**2 * torch.exp(-r)

    def _root(self, num: Tensor, den: Number) -> Tensor:
        # the r with η̂(r) = η; 0 below η̂(0)
        return (torch.log(num / den) + 2 * math.log(self.w2)).clamp_min(0)

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        r = self._root(num, den)
        far = torch.isinf(r)
        r = r.masked_fill(far, 0)
        inside = 2 * self.value(r) - r**2 * den / num.clamp_min(torch.finfo(num.dtype).tiny)
        return torch.where(far, 2 * self.w2**2, inside)

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        tiny, top = torch.finfo(num.dtype).tiny, torch.finfo(num.dtype).max
        num = num.clamp(tiny, top)
        return (self._root(num, den) / num) ** 2


@final
@dataclass(frozen=True)
class HardConcrete(Penalty):
    """L0 by hard-concrete gates: Ω(r) = ½ min over gates of [r²·CV² + P(z ≠ 0)], for λ0 = ½ and curvature 1.

    Slope 1.4752 at 0, exactly ½ from the knot .53499 on, where η̂ jumps from 2.353 to ∞: a first-order
    transition. Strength λ0, curvature h: 2λ0·Ω(r·√(h/(2λ0))). The dual is the tight one (f = 1 - knot²/η from
    the jump on), whose η²f' never falls: no hysteresis. Relative accuracy 1e-11 in float64.
    Source: arXiv 1712.01312, 2106.07769; tight dual: spec/dictionary.md 6.3.
    """

    def value(self, r: Tensor) -> Tensor:
        below = r.clamp(max=self.knot)
        slope = self._slope_below(below)
        return torch.where(r < self.knot, (below * slope + self.dual(below / slope)) / 2, 0.5)

    def slope(self, r: Tensor) -> Tensor:
        return torch.where(r < self.knot, self._slope_below(r.clamp(max=self.knot)), 0.0)

    def _slope_below(self, r: Tensor) -> Tensor:
        tables = gate_tables()
        low, high = math.sqrt(tables.peak - tables.knot), math.sqrt(tables.peak)
        return chebyshev(tables.slope, (2 * (tables.peak - r).sqrt() - low - high) / (high - low))

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return r, self.slope(r)

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        tables = gate_tables()
        jump, knot2 = tables.jump, tables.knot**2
        eta = num / torch.clamp(num / jump, min=den)  # min(η, jump), finite at den = 0
        near = eta * chebyshev(tables.dual, eta * (2 / jump) - 1)
        return torch.where(num < jump * den, near, 1 - knot2 * den / torch.clamp(num, min=jump * den))

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        tables = gate_tables()
        jump, knot2 = tables.jump, tables.knot**2
        eta = num / torch.clamp(num / jump, min=den)
        near = chebyshev(tables.dual_slope, eta * (2 / jump) - 1) / den**2
        return torch.where(num < jump * den, near, knot2 / torch.clamp(num, min=jump * den) ** 2)

    @property
    def knot(self) -> float:
        return gate_tables().knot
