"""WHAT: the special functions behind penalties, and one root-finder, in plain torch.

Torch has no Dawson integral D(x) = exp(-x²) ∫₀ˣ exp(t²) dt. Here each smooth function is a Chebyshev series
in a variable that maps its range to [-1, 1]. The coefficients are computed, once, from a slow and sure
formula, so that there are no copied tables to trust; the fast form has no branches and no data-dependent
loop, runs on any device, differentiates, and compiles to a single fused kernel.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Number = Tensor | float
Series = tuple[float, ...]

_EXACT: dict[str, object] = {"dtype": torch.float64, "device": "cpu"}


def remember(fn: Callable[P, R]) -> Callable[P, R]:
    """functools.cache, positional arguments only, that torch.compile sees through once the value is there."""
    known: dict[object, R] = {}

    def recall(*key: P.args, **none: P.kwargs) -> R:
        if key not in known:
            known[key] = fn(*key, **none)
        return known[key]

    return recall


def chebyshev_fit(fn: Callable[[Tensor], Tensor], terms: int) -> Series:
    """Coefficients of the series of ``terms`` terms that equals ``fn`` at the Chebyshev points of [-1, 1]."""
    order = torch.arange(terms, **_EXACT)  # type: ignore[call-overload]
    angle = (order + 0.5) * (math.pi / terms)
    coefficients = (2 / terms) * torch.cos(order[:, None] * angle) @ fn(torch.cos(angle))
    coefficients[0] /= 2
    return tuple(coefficients.tolist())


def chebyshev(series: Series, t: Tensor) -> Tensor:
    """Value of a Chebyshev series at t in [-1, 1], any shape, by Clenshaw's recurrence.

    Terms below the rounding error of ``t.dtype`` are skipped: float32 pays for about half of them.
    """
    small = torch.finfo(t.dtype).eps / 8
    terms = max(k for k, c in enumerate(series) if abs(c) > small or k == 0)
    twice, b1, b2 = 2 * t, torch.zeros_like(t), torch.zeros_like(t)
    for c in reversed(series[1 : terms + 1]):
        b1, b2 = torch.addcmul(c - b2, twice, b1), b1
    return torch.addcmul(series[0] - b2, t, b1)


def fejer(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Fejér's first quadrature rule on [0, 1]: what ``chebyshev_fit`` integrates to."""
    angle = (torch.arange(points, **_EXACT) + 0.5) * (math.pi / points)  # type: ignore[call-overload]
    k = torch.arange(1, points // 2 + 1, **_EXACT)  # type: ignore[call-overload]
    weights = 1 - 2 * (torch.cos(2 * angle[:, None] * k) / (4 * k**2 - 1)).sum(1)
    return (1 + torch.cos(angle)) / 2, weights / points


def increasing_root(fn: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int = 60) -> Tensor:
    """Elementwise root of an increasing ``fn`` in [low, high], where fn(low) <= 0 <= fn(high).

    Ridders' method: no derivative, quadratic convergence, and the bracket at least halves at every step, so
    that 60 steps are always enough. Runs without gradients. Stops when no element moves any more.
    """
    with torch.no_grad():
        f_low, f_high = fn(low), fn(high)
        tolerance = 4 * torch.finfo(low.dtype).eps
        root = low
        for _ in range(steps):
            middle = (low + high) / 2
            f_middle = fn(middle)
            scale = (f_middle**2 - f_low * f_high).sqrt()
            move = torch.where(scale > 0, (middle - low) * f_middle / scale, 0.0)
            before, root = root, torch.clamp(middle - move, low, high)
            for x, f_x in ((middle, f_middle), (root, fn(root))):
                raise_low, cut_high = (f_x <= 0) & (x >= low), (f_x >= 0) & (x <= high)
                low, f_low = torch.where(raise_low, x, low), torch.where(raise_low, f_x, f_low)
                high, f_high = torch.where(cut_high, x, high), torch.where(cut_high, f_x, f_high)
            if bool(((root - before).abs() <= tolerance * (1 + root.abs())).all()):
                break
        return root


# Dawson. With η = 2x² the bump B(η) = (1 + η)·D(x)/x runs from 1 through 1.64 back to 1.

_MIDDLE = 24.0  # the η that the map sends to t = 0; near the best for this number of terms
_TERMS = 44


def _to_eta(t: Tensor) -> Tensor:
    return _MIDDLE * (1 + t) / (1 - t)


def _from_eta(num: Tensor, den: Number) -> Tensor:
    # Not (η - m)/(η + m): this form is right at num = inf and at den = 0 too.
    return 1 - 2 * _MIDDLE * den / (num + _MIDDLE * den)


def _dawson_by_sampling(x: Tensor) -> Tensor:
    """Rybicki's sum, √π·D(x) = lim Σ over odd n of exp(-(x - nh)²)/n; at h = 1/4 its error is below 1e-16."""
    h = 0.25
    near = 2 * torch.round(x / (2 * h))
    odd = near[..., None] + torch.arange(-51, 52, 2, **_EXACT)  # type: ignore[call-overload]
    terms: Tensor = torch.exp(-((x[..., None] - odd * h) ** 2)) / odd
    return terms.sum(-1) / math.sqrt(math.pi)


def _fit_bump(t: Tensor) -> Tensor:
    eta = _to_eta(t)
    x = (eta / 2).sqrt()
    return (1 + eta) * _dawson_by_sampling(x) / x


_BUMP = chebyshev_fit(_fit_bump, _TERMS)


def _fit_excess(t: Tensor) -> Tensor:
    # Σ of D by quadrature in log(1+η), where the bump is smooth; then what is left beside log(1 + η/middle).
    eta = _to_eta(t)
    node, weight = fejer(120)
    top = torch.log1p(eta)
    area = top * (dawson_bump(torch.expm1(top[:, None] * node), 1.0) @ weight)
    return (area - torch.log1p(eta / _MIDDLE)) * (1 + _MIDDLE / eta)


def dawson_bump(num: Tensor, den: Number) -> Tensor:
    """(1 + η)·D(x)/x at η = 2x² = num/den in [0, ∞]; in [1, 1.65]. Relative error about 1e-14 in float64."""
    return chebyshev(_BUMP, _from_eta(num, den))


_EXCESS = chebyshev_fit(_fit_excess, _TERMS)


def dawson_area(num: Tensor, den: Number) -> Tensor:
    """4·∫₀ˣ D at η = 2x² = num/den in [0, ∞]: about η near 0, log η + 1.27036 far out. Same accuracy."""
    share = num / (num + _MIDDLE * den)
    return torch.log1p(num / (_MIDDLE * den)) + share * chebyshev(_EXCESS, _from_eta(num, den))


def dawson(x: Tensor) -> Tensor:
    """Dawson's integral D(x) = exp(-x²) ∫₀ˣ exp(t²) dt, any real x, any shape.

    Relative error 2e-14 in float64 and 2e-6 in float32, for |x| from 1e-8 to 1e8 against scipy. Odd; D(x)/x
    is 1 at 0, D(x) is 1/(2x) far out.
    """
    bump = dawson_bump(2 * x * x, 1.0)
    return bump / (1 / x + 2 * x)  # x·bump/(1 + 2x²) without its overflow; at x = 0 this is bump/inf = 0


# Hard-concrete gates.


def hard_concrete_moments(log_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E z, E z² and P(z ≠ 0) of a hard-concrete gate, by quadrature to 1e-14; log_a float64 on CPU.

    z = clip(σ((logit u + log a)/β)·(ζ - γ) + γ, 0, 1), u uniform, β = 2/3, γ = -0.1, ζ = 1.1.
    Source: Louizos, Welling, Kingma, arXiv 1712.01312.
    """
    node, weight = fejer(96)
    # E z^k = ∫ k z^(k-1)·P(Z > z) dz, and P(Z > z) = a/(a + odds(z)) is smooth on [0, 1]
    tail = torch.sigmoid(log_a[..., None] - _log_odds(node))
    active = torch.sigmoid(log_a - _log_odds(torch.zeros_like(log_a)))
    return tail @ weight, tail @ (2 * node * weight), active


def _log_odds(z: Tensor) -> Tensor:
    return (2 / 3) * ((z + 0.1) / (1.1 - z)).log()


class _GatePoint(NamedTuple):
    """A point of the curve of untightened gates, which log a runs along."""

    log_eta: Tensor
    log_r: Tensor  # the r that has this gate as stationary point: r² = η²·dP/dη
    active: Tensor  # P(z ≠ 0)
    growth: Tensor  # d log r² / d log a: negative beyond the largest such r

    @property
    def cost(self) -> Tensor:
        """2Ω at that r, if this gate is the best one."""
        return torch.exp(2 * self.log_r - self.log_eta) + self.active


def _gate_point(log_a: Tensor) -> _GatePoint:
    node, weight = fejer(96)
    tail = torch.sigmoid(log_a[..., None] - _log_odds(node))
    bend = tail * (1 - tail)
    stack = torch.stack((tail, bend, bend * (1 - 2 * tail)))  # P(Z > z) and two derivatives in log a
    (m, m1, m2), (s, s1, s2) = stack @ weight, stack @ (2 * node * weight)
    p = hard_concrete_moments(log_a)[2]
    spread = s / m**2 - 1  # 1/η = CV² of the gate, and two derivatives in log a
    spread1 = s1 / m**2 - 2 * s * m1 / m**3
    spread2 = s2 / m**2 - (4 * s1 * m1 + 2 * s * m2) / m**3 + 6 * s * m1**2 / m**4
    return _GatePoint(-spread.log(), (-p * (1 - p) / spread1).log() / 2, p, 1 - 2 * p - spread2 / spread1)


class GateTables(NamedTuple):
    """What ``HardConcrete`` evaluates."""

    peak: float  # the largest r with a stationary gate; Ω' would have a square-root branch there
    knot: float  # the r from which the open gate, at cost ½, is cheaper
    jump: float  # η̂ just below the knot
    slope: Series  # Ω' over √(peak - r), r from knot to 0
    dual: Series  # f/η over η from 0 to jump
    dual_slope: Series  # f' over the same


@remember
def gate_tables() -> GateTables:
    """The hard-concrete penalty as series, to about 1e-13; computed at first use in about 0.1 s."""
    zero = torch.zeros((), **_EXACT)  # type: ignore[call-overload]
    low = zero - 40
    peak_a = increasing_root(lambda a: -_gate_point(a).growth, zero, zero + 8)
    knot_a = increasing_root(lambda a: _gate_point(a).cost - 1, low, peak_a)
    peak, at_knot = _gate_point(peak_a).log_r.exp(), _gate_point(knot_a)
    knot, jump = at_knot.log_r.exp(), at_knot.log_eta.exp()

    def gate_at(coordinate: int, target: Tensor) -> _GatePoint:
        bracket = low.expand_as(target), knot_a.expand_as(target)
        return _gate_point(increasing_root(lambda a: _gate_point(a)[coordinate] - target.log(), *bracket))

    def slope(t: Tensor) -> Tensor:
        root_low, root_high = (peak - knot).sqrt(), peak.sqrt()
        r = peak - (root_low + (root_high - root_low) * (1 + t) / 2) ** 2
        return r / gate_at(1, r).log_eta.exp()

    def dual(t: Tensor) -> Tensor:
        eta = jump * (1 + t) / 2
        return gate_at(0, eta).active / eta

    def dual_slope(t: Tensor) -> Tensor:
        at = gate_at(0, jump * (1 + t) / 2)
        return torch.exp(2 * (at.log_r - at.log_eta))

    series = chebyshev_fit(slope, 22), chebyshev_fit(dual, 36), chebyshev_fit(dual_slope, 36)
    return GateTables(float(peak), float(knot), float(jump), *series)
