"""WHAT: the contract of a penalty, and the one wrapper (``Scaled``).

Why ratios. The number η that a penalty gives a weight lives in [0, ∞], and both ends are ordinary: η = 0 is
a dead weight, η = ∞ a weight that pays nothing more. Here η travels as ``num / den`` with finite parts, so
that ∞ is den = 0. Each penalty writes three formulas in that form (``eta_ratio``, ``dual_ratio``,
``dual_slope_ratio``), and everything that could divide by zero (``keep``, ``phi``, ``phi_slope``) follows
here, once, without a special case.
"""

import abc
import math
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from torch import Tensor

from winnow.errors import PenaltyError

Number = Tensor | float


class Penalty(abc.ABC):
    """A subquadratic penalty Ω of one group's magnitude r = ‖w_g‖ >= 0.

    Subquadratic: t ↦ Ω(√t) is concave and non-decreasing; equivalently η̂(r) = r/Ω'(r) is non-decreasing;
    then Ω(r) = ½ min over η of [r²/η + f(η)]. All methods are pure, work element by element on tensors of any
    shape and device (float32, float64), return a tensor of that shape, and trust that r >= 0 and η >= 0.
    ``value`` has the right gradient for every penalty; the others where they are closed forms.

    A new penalty is a frozen, final dataclass with the five abstract methods; and ``knot``, given a plateau.
    Source: LeJeune, Javadi, Baraniuk, arXiv 2106.07769 (η-trick); gates: spec/dictionary.md section 6.
    """

    @abc.abstractmethod
    def value(self, r: Tensor) -> Tensor:
        """Ω(r)."""

    @abc.abstractmethod
    def slope(self, r: Tensor) -> Tensor:
        """Ω'(r); the right limit at r = 0 (may be inf) and at a knot."""

    @abc.abstractmethod
    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        """(num, den) with η̂(r) = num/den: finite, >= 0, never both 0, at least one of them a tensor."""

    @abc.abstractmethod
    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        """f(num/den), for num finite; right at den = 0 (η = ∞), where it may be inf."""

    @abc.abstractmethod
    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        """f'(num/den)/den²: finite at den = 0 where Ω has a plateau, else inf; not NaN at num = inf."""

    def prox(self, r: Tensor, t: float) -> Tensor:
        """argmin over x >= 0 of ½(x − r)² + t·Ω(x), t > 0, where it is a closed form that does not jump; else PenaltyError."""
        raise PenaltyError(f"{self!r} has no proximal map in closed form; L1 and Garrote(1.0) have")

    @property
    def knot(self) -> float:
        """The r from which on Ω is constant; inf if there is none."""
        return math.inf

    @property
    def has_dual(self) -> bool:
        """False where ``dual``, ``dual_slope``, ``phi`` and ``phi_slope`` raise PenaltyError: Lp(2)."""
        return True

    @property
    def at_zero(self) -> float:
        """Ω(0)."""
        return float(self.value(_zero()))

    @property
    def slope_at_zero(self) -> float:
        """Ω'(0+): zero attracts a weight exactly while its gradient is below λ·Ω'(0+)."""
        return float(self.slope(_zero()))

    @property
    def eta_at_zero(self) -> float:
        """η̂(0+): 0 where the penalty can make zeros."""
        return float(self.eta(_zero()))

    @final
    def eta(self, r: Tensor) -> Tensor:
        """η̂(r) = r/Ω'(r), its limit at r = 0; inf beyond a knot."""
        num, den = self.eta_ratio(r)
        return torch.as_tensor(num / den)

    @final
    def keep(self, r: Tensor, t: Number) -> Tensor:
        """η̂/(η̂ + t): the factor of one decay step with t = lr·λ, the keep probability of dropout with t = λ.

        ``t`` >= 0: a float, or a tensor that broadcasts with r. Exactly 1 where η̂ = ∞, 0 where η̂ = 0,
        never NaN; at t = 0 (a schedule at its end) 1 wherever η̂ > 0. Raises PenaltyError for a negative or
        NaN float; tensors are not read.
        """
        tiny = torch.finfo(r.dtype).tiny  # keeps 0/(0 + 0) out, changes nothing else
        if isinstance(t, Tensor):
            t = t.clamp_min(tiny)
        elif t >= 0:
            t = max(t, tiny)
        else:
            raise PenaltyError(f"keep: t={t!r} given, expected t = lr·λ >= 0; check the signs of lr and λ")
        num, den = self.eta_ratio(r)
        whole = torch.as_tensor(num + t * den)
        return torch.as_tensor(num / whole.clamp_min(tiny))  # t·den may be denormal, and those flushed to zero

    @final
    def dual(self, eta: Tensor) -> Tensor:
        """f(η), so that Ω(r) = ½ min over η of [r²/η + f(η)], constants included. PenaltyError if none."""
        top = torch.isinf(eta)
        return self.dual_ratio(eta.masked_fill(top, 1.0), (~top).to(eta.dtype))

    @final
    def dual_slope(self, eta: Tensor) -> Tensor:
        """f'(η); f'(η̂(r)) = Ω'(r)², so f'(0) = Ω'(0+)². PenaltyError if there is no dual."""
        return self.dual_slope_ratio(eta, 1.0)

    @final
    def phi(self, alpha: Tensor, c: float) -> Tensor:
        """φ(α) = f(cα/(1-α)) for α in [0, 1]: the bounded gate s² = α pays (λ/2)φ(s²).

        φ(1) = 2Ω(∞), finite where Ω is bounded. PenaltyError if no dual. Source: spec/dictionary.md 6.7.
        """
        return self.dual_ratio(c * alpha, 1 - alpha)

    @final
    def phi_slope(self, alpha: Tensor, c: float) -> Tensor:
        """φ'(α) = f'(η)·c/(1-α)² at η = cα/(1-α); c·φ'(1) = knot² if Ω has a plateau, inf otherwise."""
        return c * self.dual_slope_ratio(c * alpha, 1 - alpha)


@final
@dataclass(frozen=True)
class Scaled(Penalty):
    """c·Ω for c > 0: dual c·f(cη), minimiser η̂/c, the same knot (spec/dictionary.md, section 3)."""

    penalty: Penalty
    c: float

    def __post_init__(self) -> None:
        require_penalty(self.penalty, "try Scaled(L1, 2)")
        require("Scaled: c", self.c, hint="a penalty with c = 0 is no penalty: leave it out")

    def value(self, r: Tensor) -> Tensor:
        return self.c * self.penalty.value(r)

    def slope(self, r: Tensor) -> Tensor:
        return self.c * self.penalty.slope(r)

    def eta_ratio(self, r: Tensor) -> tuple[Number, Number]:
        num, den = self.penalty.eta_ratio(r)
        return num, self.c * den

    def dual_ratio(self, num: Tensor, den: Number) -> Tensor:
        return self.c * self.penalty.dual_ratio(self.c * num, den)

    def dual_slope_ratio(self, num: Tensor, den: Number) -> Tensor:
        return self.c**2 * self.penalty.dual_slope_ratio(self.c * num, den)

    def prox(self, r: Tensor, t: float) -> Tensor:
        return self.penalty.prox(r, self.c * t)

    @property
    def knot(self) -> float:
        return self.penalty.knot

    @property
    def has_dual(self) -> bool:
        return self.penalty.has_dual


def require(label: str, given: object, above: float = 0.0, up_to: float = math.inf, hint: str = "") -> None:
    """Raise PenaltyError unless ``given`` is a finite number, above < given <= up_to; label "Owner: name"."""
    number = float(given) if isinstance(given, Real) and not isinstance(given, bool) else math.nan
    if not (above < number <= up_to and math.isfinite(number)):
        top = "" if up_to == math.inf else f" and at most {up_to:g}"
        advice = f"; {hint}" if hint else ""
        raise PenaltyError(f"{label}={given!r} given, expected a finite number above {above:g}{top}{advice}")


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64, device="cpu")


def require_penalty(given: object, hint: str) -> None:
    """Raise PenaltyError unless ``given`` is a penalty: a number in its place would fail much later."""
    if not isinstance(given, Penalty):
        raise PenaltyError(f"penalty={given!r} given, expected a Penalty; {hint}")
