"""WHAT: the penalties of statistics, in closed form: Lp, LogSum, Log2Sum, Fair, Garrote, MCP, SCAD.

Formulas: LeJeune, Javadi, Baraniuk, arXiv 2106.07769, normalised as in spec/adaptive_dropout.md, section 2.1.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from winnow.errors import PenaltyError
from winnow.penalties.base import Number, Penalty, require


@final
@dataclass(frozen=True)
class Lp(Penalty):
    """Ω(r) = r^p/p, 0 < p <= 2: η̂ = r^(2-p), f(η) = η^q/q with q = p/(2-p).

    p = 1 is the lasso, p < 1 makes zero attract always, 1 < p < 2 makes small weights but no exact zeros.
    p = 2 is ridge: η̂ = 1 and no dual (f would be 0 up to η = 1, ∞ above), so ``dual`` and its relatives raise
    PenaltyError. Source: Outmezguine, Levi, arXiv 2404.10824 (whose code has λ_c = λ/p).
    """

    p: float

    def __post_init__(self) -> None:
        require("Lp: p", self.p, up_to=2.0, hint="try p = 1 (lasso), or 0.5 for more zeros")

    @classmethod
    def from_depth(cls, depth: float) -> "Lp":
        """The penalty p = 2/D of a product of D factors with weight decay (D real, >= 1; D = 2 is L1)."""
        hint = "1 is ridge, 2 is L1, 3 is p = 2/3"
        require("Lp.from_depth: depth", depth, hint=hint)
        if depth < 1:
            raise PenaltyError(f"Lp.from_depth: depth={depth!r} given, expected at least 1; {hint}")
        return cls(2 / depth)

    @property
    def depth(self) -> float:
        """D = 2/p: the number of factors whose weight decay is this penalty."""
        return 2 / self.p

    @property
    def has_dual(self) -> bool:
        return self.p < 2

    @property
    def _q(self) -> float:
        if self.p == 2:
            raise PenaltyError("Lp(2): dual asked for, but ridge has none; use weight decay, or p below 2")
        return self.p / (2 - self.p)

    def value(self, r: Tensor) -> Tensor:
        return r**self.p / self.p

    def slope(self, r: Tensor) -> Tensor:
        return r ** (self.p - 1)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return _power(r, 2 - self.p), 1.0

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        return (num / den) ** self._q / self._q

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        return num ** (self._q - 1) * den ** (-self._q - 1)

    def prox(self, r: Tensor, t: float) -> Tensor:
        return (r - t).clamp_min(0) if self.p == 1 else super().prox(r, t)


def _power(r: Tensor, k: float) -> Tensor:
    # This is what a decay step costs, and pow is slow. 266k float32 weights, one CPU core, all of keep():
    # pow 2.0 ms eager, 1.7 compiled; r·√r 0.4 and 0.15; exp2 and log2 0.8 and 1.0, at r = 1e-12 with a
    # relative error of 4e-6 where pow has 1e-6.
    match k:
        case 0:
            return torch.ones_like(r)
        case 0.5:
            return r.sqrt()
        case 1:
            return r
        case 1.5:
            return r * r.sqrt()
    return torch.exp2(k * torch.log2(r))


@final
@dataclass(frozen=True)
class LogSum(Penalty):
    """Ω(r) = log(r + ε): η̂ = r(r + ε); slope 1/ε at 0; nearly the count of non-zeros for small ε.

    ``Scaled(LogSum(ε), ε)`` has slope 1 at 0 (ε·log(1 + r/ε) up to a constant). Source: arXiv 2106.07769.
    """

    epsilon: float

    def __post_init__(self) -> None:
        require("LogSum: epsilon", self.epsilon, hint="try 1; the smaller, the closer to counting non-zeros")

    def value(self, r: Tensor) -> Tensor:
        return torch.log(r + self.epsilon)

    def slope(self, r: Tensor) -> Tensor:
        return 1 / (r + self.epsilon)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return r * (r + self.epsilon), 1.0

    def _root(self, num: Tensor, den: Number) -> Tensor:
        # √den·(ρ + ε) with ρ = √(ε² + 4η)
        return (self.epsilon**2 * den + 4 * num).sqrt() + self.epsilon * den**0.5

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        # f = 2 log((ρ + ε)/2) - 4η/(ρ + ε)²
        root = self._root(num, den)
        return 2 * torch.log(root / (2 * den**0.5)) - num * (2 / root) ** 2

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        return (2 / self._root(num, den)) ** 2 / den


@final
@dataclass(frozen=True)
class Log2Sum(Penalty):
    """Ω(r) = log(r² + ε): η̂ = (r² + ε)/2. Flat at 0, so it shrinks but makes no zeros.

    Source: arXiv 2106.07769; the authors' code has the sign of ε/η in f wrong, here it is right.
    """

    epsilon: float

    def __post_init__(self) -> None:
        require("Log2Sum: epsilon", self.epsilon, hint="try 1; for exact zeros use LogSum instead")

    def value(self, r: Tensor) -> Tensor:
        return torch.log(r**2 + self.epsilon)

    def slope(self, r: Tensor) -> Tensor:
        return 2 * r / (r**2 + self.epsilon)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return (r**2 + self.epsilon) / 2, 1.0

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        # 2 log(2η) + ε/η - 2 from η = ε/2 on, its value there below
        num = torch.clamp(num, min=self.epsilon * den / 2)
        return 2 * torch.log(2 * num / den) + self.epsilon * den / num - 2

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        num = torch.clamp(num, min=self.epsilon * den / 2)
        return (2 - self.epsilon * den / num) / (num * den)


@final
@dataclass(frozen=True)
class Fair(Penalty):
    """Ω(r) = c²(r/c - log(1 + r/c)): η̂ = 1 + r/c, quadratic below c, linear far above. Flat at 0, so it makes no zeros.

    Source: the Fair function of robust statistics (Rey 1983); what HAM's step stands for (arXiv 2506.02630), c = 1/α.
    """

    c: float

    def __post_init__(self) -> None:
        require("Fair: c", self.c, hint="try 1; for exact zeros use LogSum instead")

    def value(self, r: Tensor) -> Tensor:
        return self.c * (r - self.c * torch.log1p(r / self.c))

    def slope(self, r: Tensor) -> Tensor:
        return r / (1 + r / self.c)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return 1 + r / self.c, 1.0

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        # c²(η - 1/η - 2 log η) from η = 1 on, 0 below; over one denominator, as ∞ - ∞ is no number
        den = torch.as_tensor(den, dtype=num.dtype, device=num.device)
        num = torch.clamp(num, min=den)
        return self.c**2 * (num**2 - den**2 - 2 * num * torch.xlogy(den, num / den)) / (num * den)

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        num = torch.clamp(num, min=torch.as_tensor(den, dtype=num.dtype, device=num.device))
        return (self.c * (1 - den / num) / den) ** 2


@final
@dataclass(frozen=True)
class Garrote(Penalty):
    """Ω(r) = ε·asinh(r/2ε) + ½r·Ω'(r), Ω' = (√(r² + 4ε²) − r)/2ε: f(η) = ε·log(1 + η/ε); slope 1 at 0, like log r far out.

    Its proximal map at t = ε is the nonnegative garrote, r ↦ (r − ε²/r)₊: a threshold that leaves large weights nearly alone
    and does not jump. Source: Breiman 1995; f is the cost of a variance in sparse Bayesian learning (Wipf, Nagarajan 2007).
    """

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        require("Garrote: epsilon", self.epsilon, hint="try 1; the smaller, the closer to counting non-zeros")

    def _stretch(self, r: Tensor) -> Tensor:
        rho = r / (2 * self.epsilon)
        return rho + (rho**2 + 1).sqrt()  # 1/Ω'

    def value(self, r: Tensor) -> Tensor:
        return self.epsilon * torch.asinh(r / (2 * self.epsilon)) + r / (2 * self._stretch(r))

    def slope(self, r: Tensor) -> Tensor:
        return 1 / self._stretch(r)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return r * self._stretch(r), 1.0

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        return self.epsilon * torch.log1p(num / (self.epsilon * den))

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        return self.epsilon / (den * (self.epsilon * den + num))

    def prox(self, r: Tensor, t: float) -> Tensor:
        if t > 2 * self.epsilon:
            raise PenaltyError(f"{self}: the proximal map jumps for t > 2ε, got t={t:g}; take a larger epsilon")
        if t == self.epsilon:
            return (r - t * t / r).clamp_min(0)
        root = (r**2 - 4 * self.epsilon * (t - self.epsilon)).clamp_min(0).sqrt()
        return torch.where(r > t, r - 2 * self.epsilon * t / (r + root), 0.0)  # slope 2ε/(r + root) there


@final
@dataclass(frozen=True)
class MCP(Penalty):
    """Minimax concave penalty: Ω(r) = r - r²/(2b) up to the knot b, then b/2; f = bη/(η + b).

    Source: Zhang 2010; arXiv 2106.07769, whose MCP(a, λ) has b = aλ.
    """

    b: float

    def __post_init__(self) -> None:
        require("MCP: b", self.b, hint="b is the magnitude from which weights are free; try a typical |w|")

    def value(self, r: Tensor) -> Tensor:
        r = r.clamp(max=self.b)
        return r - r**2 / (2 * self.b)

    def slope(self, r: Tensor) -> Tensor:
        return (1 - r / self.b).clamp_min(0)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return r, self.slope(r)

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        return self.b * num / (num + self.b * den)

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        return (self.b / (num + self.b * den)) ** 2

    @property
    def knot(self) -> float:
        return self.b


@final
@dataclass(frozen=True)
class SCAD(Penalty):
    """Smoothly clipped absolute deviation: slope 1 up to κ, falling to 0 at the knot aκ; then (a + 1)κ/2.

    κ is SCAD's own scale, unrelated to the strength λ. Source: Fan, Li 2001 (a = 3.7); arXiv 2106.07769.
    """

    a: float = 3.7
    kappa: float = 1.0

    def __post_init__(self) -> None:
        require("SCAD: a", self.a, above=1.0, hint="3.7 is the usual choice")
        require("SCAD: kappa", self.kappa, hint="the knot is a·kappa; try a typical |w| divided by a")

    def value(self, r: Tensor) -> Tensor:
        u = r.clamp(max=self.knot)
        bend = (u - self.kappa).clamp_min(0)  # what the quadratic piece takes off the line u
        return u - bend**2 / (2 * (self.a - 1) * self.kappa)

    def slope(self, r: Tensor) -> Tensor:
        return ((self.knot - r) / ((self.a - 1) * self.kappa)).clamp(0, 1)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        return r, self.slope(r)

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        # f = η up to κ, then κ((a+1)η - κ)/((a-1)κ + η); the clamp keeps the unused branch finite
        a, kappa = self.a, self.kappa
        line = num / torch.clamp(num / kappa, min=den)
        curve = kappa * ((a + 1) * num - kappa * den) / ((a - 1) * kappa * den + num)
        return torch.where(num <= kappa * den, line, curve)

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        # f' = 1 up to κ, then (aκ/((a-1)κ + η))²: one formula with η held at κ from below
        num = torch.clamp(num, min=self.kappa * den)
        return (self.a * self.kappa / ((self.a - 1) * self.kappa * den + num)) ** 2

    @property
    def knot(self) -> float:
        return self.a * self.kappa
