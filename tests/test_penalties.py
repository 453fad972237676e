"""Laws that every penalty obeys, in tables: a new penalty joins with one line in PENALTIES."""

import dataclasses
import math

import pytest
import scipy.integrate
import scipy.special
import torch

from winnow.errors import PenaltyError
from winnow.penalties import (
    L1,
    MCP,
    SCAD,
    Fair,
    Garrote,
    HardConcrete,
    Log2Sum,
    LogSum,
    Lp,
    Scaled,
    Standout,
    VariationalDropout,
    VariationalDropoutFit,
)
from winnow.penalties.special import dawson, dawson_area, fejer, hard_concrete_moments, increasing_root

PENALTIES = [
    *(Lp(p) for p in (0.3, 0.5, 2 / 3, 1.0, 1.3, 1.5, 2.0)),
    *(LogSum(2.0), LogSum(0.01), Log2Sum(0.5), Fair(0.5), Fair(3.0), Garrote(), Garrote(0.2)),
    *(MCP(8.0), MCP(0.3), SCAD(), SCAD(3.0, 1.0)),
    *(VariationalDropout(), VariationalDropoutFit(), HardConcrete(), Standout(), Standout(2.0)),
    *(Scaled(MCP(2.0), 3.0), Scaled(VariationalDropout(), 0.1), Scaled(Scaled(HardConcrete(), 2.0), 0.7)),
]
WITH_DUAL = [penalty for penalty in PENALTIES if penalty.has_dual]
PLATEAU = [penalty for penalty in WITH_DUAL if math.isfinite(penalty.knot)]

every = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
dualised = pytest.mark.parametrize("penalty", WITH_DUAL, ids=repr)
flat_topped = pytest.mark.parametrize("penalty", PLATEAU, ids=repr)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def grid(penalty, low=-3.0, high=1.2, points=43):
    """Magnitudes, with the knot and 1 (kinks) among them."""
    r = torch.logspace(low, high, points, dtype=torch.float64)
    knot = [penalty.knot] if math.isfinite(penalty.knot) else []
    return torch.cat((r, tensor(1.0, *knot))).unique()


def smallest(fn, low, high, levels=4, points=801):
    """Elementwise min over x in [low, high] of fn(x) by zooming grids; low and high of shape (n,)."""
    place = torch.linspace(0, 1, points, dtype=torch.float64)
    for _ in range(levels):
        x = low[:, None] + (high - low)[:, None] * place
        best, at = fn(x).nan_to_num(nan=math.inf, posinf=math.inf).min(1)
        step = (high - low) / (points - 1)
        middle = x.gather(1, at[:, None])[:, 0]
        low, high = torch.maximum(low, middle - step), torch.minimum(high, middle + step)
    return best


def close(got, want, rtol, atol=0.0):
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


# The η-trick: value, slope, eta, dual and dual_slope are one object seen from five sides.


@dualised
def test_value_is_the_minimum_over_eta(penalty):
    r = grid(penalty)
    ends = torch.full_like(r, -40.0), torch.full_like(r, 40.0)
    found = smallest(lambda u: (r[:, None] ** 2 / u.exp() + penalty.dual(u.exp())) / 2, *ends)
    rise = penalty.value(r) - penalty.at_zero
    close(found - penalty.at_zero, rise, rtol=1e-7, atol=1e-12)


@dualised
def test_dual_is_the_supremum_over_r(penalty):
    eta = torch.logspace(-2, 2, 33, dtype=torch.float64)
    ends = torch.full_like(eta, -16.0), torch.full_like(eta, 16.0)
    found = -smallest(lambda u: u.exp() ** 2 / eta[:, None] - 2 * penalty.value(u.exp()), *ends)
    close(torch.clamp(found, min=2 * penalty.at_zero), penalty.dual(eta), rtol=1e-7, atol=1e-9)


@every
def test_eta_times_slope_is_r(penalty):
    r = grid(penalty)
    r = r[r < penalty.knot]
    close(penalty.eta(r) * penalty.slope(r) / r, torch.ones_like(r), rtol=1e-11)


@every
def test_value_is_the_integral_of_r_over_eta(penalty):
    r = grid(penalty)
    node, weight = fejer(40)
    low, width = r[:-1, None], r.diff()[:, None]
    inside = low + width * node
    area = (inside / penalty.eta(inside)) @ weight * width[:, 0]
    close(penalty.value(r).diff(), area, rtol=1e-8, atol=1e-13)


@dualised
def test_dual_slope_at_eta_is_the_squared_slope(penalty):
    r = grid(penalty)
    r = r[r < penalty.knot]
    close(penalty.dual_slope(penalty.eta(r)), penalty.slope(r) ** 2, rtol=1e-10)


@dualised
def test_dual_slope_is_the_derivative_of_dual(penalty):
    eta = torch.logspace(-1.5, 2, 33, dtype=torch.float64)
    h = 1e-4 * eta
    slope = (penalty.dual(eta + h) - penalty.dual(eta - h)) / (2 * h)
    close(penalty.dual_slope(eta), slope, rtol=1e-4, atol=1e-8)


@every
def test_gradient_of_value_is_slope(penalty):
    r = torch.cat((tensor(0.0), grid(penalty)))
    r = r[r != penalty.knot].requires_grad_()
    close(torch.autograd.grad(penalty.value(r).sum(), r)[0], penalty.slope(r.detach()), rtol=1e-8, atol=1e-12)


def bends_up(value_at_root_t):
    """Largest second difference of Ω(√t) over equidistant t, relative to the largest first difference."""
    first = value_at_root_t.diff()
    return float(first.diff().max() / first.abs().max())


@every
@pytest.mark.parametrize("top", [0.5, 200.0])
def test_concave_in_the_square(penalty, top):
    t = torch.linspace(0, top, 2001, dtype=torch.float64)
    assert bends_up(penalty.value(t.sqrt())) < 1e-11
    assert bool((penalty.eta(t.sqrt()).nan_to_num(posinf=1e300).diff() >= -1e-12).all())


def test_concavity_check_catches_a_rule_that_is_not_monotone():
    r = torch.linspace(0, 200, 20001, dtype=torch.float64).sqrt()
    rule = 1 + 0.9 * torch.sin(3 * r)
    assert bends_up(torch.cumulative_trapezoid(r / rule, r)) > 1e-6


@every
@pytest.mark.parametrize("c", [0.25, 7.0])
def test_scaling(penalty, c):
    scaled, r = Scaled(penalty, c), grid(penalty)
    close(scaled.value(r), c * penalty.value(r), rtol=1e-14)
    close(scaled.slope(r), c * penalty.slope(r), rtol=1e-14)
    close(scaled.eta(r), penalty.eta(r) / c, rtol=1e-14)
    close(scaled.keep(r, 0.3), penalty.keep(r, 0.3 * c), rtol=1e-13)
    assert scaled.knot == penalty.knot and scaled.has_dual == penalty.has_dual
    if penalty.has_dual:
        close(scaled.dual(r), c * penalty.dual(c * r), rtol=1e-13)
        close(scaled.dual_slope(r), c**2 * penalty.dual_slope(c * r), rtol=1e-13)


@every
def test_float32_follows_float64(penalty):
    r = grid(penalty)
    r = r[(r / penalty.knot - 1).abs() > 1e-3].float()  # beside the knot η̂ is what r's rounding makes it
    names = ["value", "slope", "eta"] + ["dual", "dual_slope"] * penalty.has_dual
    for name in names:
        method = getattr(penalty, name)
        assert method(r).dtype == torch.float32
        close(method(r).double(), method(r.double()), rtol=2e-5, atol=2e-6)
    close(penalty.keep(r, 0.1).double(), penalty.keep(r.double(), 0.1), rtol=2e-6)
    assert penalty.keep(r.reshape(1, -1, 1), torch.tensor(0.1)).shape == (1, len(r), 1)


# The two ends of η.


@every
def test_limits_at_zero(penalty):
    tiny, zero = tensor(1e-200 if penalty.slope_at_zero == math.inf else 1e-30), tensor(0.0)
    assert penalty.value(zero).item() == penalty.at_zero and math.isfinite(penalty.at_zero)
    if penalty.slope_at_zero < math.inf:
        close(penalty.slope(zero), penalty.slope(tiny), rtol=1e-8, atol=1e-8)
    close(penalty.eta(zero), penalty.eta(tiny), rtol=1e-8, atol=1e-14)
    if penalty.has_dual:
        assert penalty.dual_slope(zero).item() == pytest.approx(penalty.slope_at_zero**2, rel=1e-12)
        assert penalty.dual(zero).item() == pytest.approx(2 * penalty.at_zero, abs=1e-12)


@flat_topped
def test_beyond_the_knot_nothing_is_paid(penalty):
    r = penalty.knot * tensor(1.0, 1.0 + 1e-9, 2.0, 1e6)
    assert bool(torch.isinf(penalty.eta(r[1:])).all())
    assert penalty.keep(r[1:], 0.3).tolist() == [1.0] * 3
    assert penalty.slope(r[1:]).tolist() == [0.0] * 3
    close(penalty.value(r), penalty.value(r[-1]).expand(4), rtol=1e-14)
    assert penalty.dual(tensor(math.inf)).item() == pytest.approx(2 * penalty.value(r[-1]).item(), rel=1e-14)


@dualised
def test_dual_slope_at_infinity_is_not_nan(penalty):
    far = penalty.slope(tensor(1e100)).item()  # Ω' rises (Lp, p > 1), stays (L1, Fair) or falls to 0
    expected = 0.0 if far < 1e-9 else math.inf if far > 1e9 else far**2
    assert penalty.dual_slope(tensor(math.inf)).item() == pytest.approx(expected)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keep_has_no_nan_and_exact_ends(penalty, dtype):
    r = torch.tensor([0.0, 1e-45, 1e-30, 1e-6, 0.1, 1.0, 50.0, 1e6, 1e9], dtype=dtype)
    for t in (0.0, 1e-45, 1e-12, 0.5, 1e12):
        for given in (t, torch.tensor(t, dtype=dtype)):
            keep = penalty.keep(r, given)
            assert bool(((keep >= 0) & (keep <= 1)).all()), (t, keep)
            if penalty.eta_at_zero == 0:
                assert keep[0] == 0
            if t == 0:
                assert bool((keep[3:] == 1).all())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keep_has_no_nan_where_denormals_are_flushed(penalty, dtype):
    """As the jobs have it: a slope below 1 makes t·den denormal, and 0/(0 + 0) came of it."""
    torch.set_flush_denormal(True)
    try:
        test_keep_has_no_nan_and_exact_ends(penalty, dtype)
    finally:
        torch.set_flush_denormal(False)


@every
def test_keep_round_trip(penalty):
    lam, r = 0.37, grid(penalty)
    alpha, eta = penalty.keep(r, lam), penalty.eta(r)
    open_ = torch.isinf(eta)
    close(alpha, torch.where(open_, 1.0, eta / (eta + lam)), rtol=1e-13)
    back = lam * alpha / (1 - alpha)
    rounding = 4 * torch.finfo(r.dtype).eps * (2 + eta / lam + lam / eta)
    assert bool(((back / eta - 1).abs() <= rounding)[~open_].all())
    close(lam * penalty.slope(r), r * (1 - alpha) / alpha, rtol=1e-9, atol=1e-13)


def test_keep_refuses_a_negative_step():
    for bad in (-0.1, math.nan):
        with pytest.raises(PenaltyError, match="lr"):
            L1.keep(tensor(1.0), bad)


def test_prune_rule_of_logsum():
    r = tensor(2.6315e-5 * 0.999, 2.6315e-5 * 1.001)
    assert (LogSum(2.0).keep(r, 1e-3) < 0.05).tolist() == [True, False]


# Gates.


@dualised
def test_balance_pins_eta(penalty):
    eta = penalty.eta_at_zero + torch.logspace(-4, 4, 4001, dtype=torch.float64)
    r = eta * penalty.dual_slope(eta).sqrt()
    assert bool((r.diff() >= -1e-12 * r[1:]).all())


def test_balance_of_the_untightened_hard_concrete_gate_is_not_monotone():
    first, second, active = hard_concrete_moments(torch.linspace(-6, 8, 4001, dtype=torch.float64))
    eta = 1 / (second / first**2 - 1)
    middle = (eta[1:] + eta[:-1]) / 2
    balance = middle**2 * active.diff() / eta.diff()
    assert balance.max().item() == pytest.approx(0.2939, abs=1e-4)
    assert balance[-1].item() == pytest.approx(0.2560, abs=1e-3)
    tight = middle**2 * HardConcrete().dual_slope(middle)
    below = middle < 2.3
    close(tight[below], balance[below], rtol=1e-4)


@dualised
@pytest.mark.parametrize("c", [1.0, 0.3, 4.0])
def test_best_bounded_gate_pays_the_penalty(penalty, c):
    r = grid(penalty, low=-2)

    def cost(root):
        alpha = root**2
        return (r[:, None] ** 2 * (1 - alpha) / (c * alpha) + penalty.phi(alpha, c)) / 2

    found = smallest(cost, torch.full_like(r, 1e-6), torch.ones_like(r))
    close(found, penalty.value(r), rtol=1e-6, atol=1e-8)


@dualised
def test_phi_slope_is_the_derivative_of_phi(penalty):
    alpha, c, h = torch.linspace(0.05, 0.97, 47, dtype=torch.float64), 0.8, 1e-6
    slope = (penalty.phi(alpha + h, c) - penalty.phi(alpha - h, c)) / (2 * h)
    close(penalty.phi_slope(alpha, c), slope, rtol=1e-5, atol=1e-6)


@flat_topped
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounded_gate_opens_at_finite_cost(penalty, dtype):
    tight = 1e-5 if dtype == torch.float32 else 1e-12
    one = torch.ones((), dtype=dtype)
    for c in (0.5, penalty.knot):
        assert penalty.phi(one, c).item() == pytest.approx(2 * penalty.value(tensor(1e9)).item(), rel=tight)
        assert c * penalty.phi_slope(one, c).item() == pytest.approx(penalty.knot**2, rel=tight)
        near = 1 - torch.logspace(-7, -4, 30, dtype=dtype)
        close(penalty.phi_slope(near, c), penalty.phi_slope(one, c).expand(30), rtol=0.01)


@dualised
def test_gate_without_plateau_has_a_barrier(penalty):
    if math.isinf(penalty.knot):
        assert penalty.phi_slope(tensor(1.0), 1.0).item() == math.inf
        assert not math.isnan(penalty.phi(tensor(1.0), 1.0).item())


def test_phi_closed_forms():
    alpha = torch.linspace(0, 1, 101, dtype=torch.float64)
    b, c = 2.5, 0.7
    close(MCP(b).phi(alpha, b), b * alpha, rtol=1e-14)
    close(MCP(b).phi_slope(alpha, c), b**2 * c / (c * alpha + b * (1 - alpha)) ** 2, rtol=1e-13)
    a, kappa = 3.7, 0.6
    scad, c = SCAD(a, kappa), (a - 1) * kappa
    low = alpha < 1 / a
    line = (a - 1) * kappa * alpha[low] / (1 - alpha[low])
    close(scad.phi(alpha, c), torch.cat((line, kappa * (a**2 * alpha[~low] - 1) / (a - 1))), rtol=1e-13)
    low = alpha <= kappa / (1 + kappa)
    steep = 1 / (1 - alpha[low]) ** 2
    flat = (a * kappa / ((a - 1) * kappa * (1 - alpha[~low]) + alpha[~low])) ** 2
    close(scad.phi_slope(alpha, 1.0), torch.cat((steep, flat)), rtol=1e-13)


# Known numbers and closed forms, penalty by penalty.


def test_lp_and_its_depth():
    assert Lp.from_depth(3) == Lp(2 / 3) and Lp.from_depth(2) == L1 and Lp(0.5).depth == 4
    r = tensor(0.2, 1.0, 3.0)
    for p in (0.5, 2 / 3, 1.5):
        q = p / (2 - p)
        close(Lp(p).value(r), r**p / p, rtol=1e-14)
        close(Lp(p).dual(r), r**q / q, rtol=1e-14)
        close(Lp(p).keep(r, 0.1), r ** (2 - p) / (r ** (2 - p) + 0.1), rtol=1e-14)
    close(Lp(2.0).eta(tensor(0.0, 5.0)), tensor(1.0, 1.0), rtol=0)
    slopes = [Lp(p).slope_at_zero for p in (0.5, 1.0, 1.5)]
    assert slopes == [math.inf, 1.0, 0.0]


def test_logsum_values_and_signs():
    close(LogSum(2.0).value(tensor(0.0, 1.0)), tensor(math.log(2), math.log(3)), rtol=1e-15)
    assert LogSum(0.25).slope_at_zero == 4.0 and LogSum(0.25).at_zero == math.log(0.25)
    assert Log2Sum(0.5).dual(tensor(1.0)).item() == pytest.approx(2 * math.log(2) + 0.5 - 2, rel=1e-14)
    assert Log2Sum(0.5).dual(tensor(1.0)).item() == pytest.approx(-0.1137, abs=5e-5)
    assert Log2Sum(0.5).slope_at_zero == 0 and Log2Sum(0.5).eta_at_zero == 0.25
    assert Standout().slope_at_zero == 0 and Standout(2.0).eta_at_zero == 0.25


def test_knots():
    assert (MCP(0.3).knot, SCAD(3.0, 2.0).knot, LogSum(1.0).knot) == (0.3, 6.0, math.inf)
    assert HardConcrete().knot == pytest.approx(0.53499, abs=5e-6)
    assert SCAD(3.0, 2.0).value(tensor(9.0)).item() == 4.0


def test_variational_dropout_near_and_far():
    penalty = VariationalDropout()
    assert penalty.slope_at_zero == pytest.approx(1, abs=1e-14)
    r = tensor(1e-4, 1e-3, 1e-2)
    assert bool(((penalty.eta(r) / r - 1 - r / 6).abs() < r**2).all())
    far = tensor(1e2, 1e3, 1e4)
    assert bool(((far * penalty.slope(far) - 1).abs() < 1.01 / far**2).all())


@pytest.mark.parametrize("eta", [1e-3, 0.1, 1.0, 5.0, 40.0])
def test_variational_dropout_is_the_expected_logarithm(eta):
    # f = 2KL, KL = E log|z + √η| - E log|z|, z standard normal; fold at the singularity
    def expected(shift):
        def both(y):
            return math.log(y) * (math.exp(-((y - shift) ** 2) / 2) + math.exp(-((y + shift) ** 2) / 2))

        pieces = ((0, 1), (1, shift + 1), (shift + 1, shift + 15))
        parts = [scipy.integrate.quad(both, *ends, epsabs=1e-13)[0] for ends in pieces]
        return sum(parts) / math.sqrt(2 * math.pi)

    found = VariationalDropout().dual(tensor(eta)).item()
    assert found == pytest.approx(2 * (expected(math.sqrt(eta)) - expected(0.0)), abs=1e-10)


def test_published_fit_of_the_divergence():
    eta = torch.logspace(-6, 8, 4001, dtype=torch.float64)
    gap = (VariationalDropout().dual(eta) - VariationalDropoutFit().dual(eta)) / 2
    assert gap.min().item() == pytest.approx(-0.0093, abs=1e-4)
    assert gap.max().item() == pytest.approx(0.0043, abs=1e-4)
    bump = (1 + eta) * VariationalDropoutFit().dual_slope(eta)
    assert bump.min() >= 1 and bump.max() < 2  # what the bracket of its root relies on


def test_variational_dropout_root_over_the_whole_range():
    r = torch.logspace(-30, 30, 6001, dtype=torch.float64)
    eta = VariationalDropout().eta(r)
    close(eta * VariationalDropout().dual_slope(eta).sqrt(), r, rtol=1e-13)
    single = r[r < 1e15].float()
    close(VariationalDropout().eta(single).double(), VariationalDropout().eta(single.double()), rtol=1e-6)


def test_hard_concrete_numbers():
    first, second, active = hard_concrete_moments(tensor(0.0))
    assert first.item() == pytest.approx(0.5, abs=1e-13)
    assert second.item() == pytest.approx(0.39802, abs=5e-6)
    assert (first**2 / (second - first**2)).item() == pytest.approx(1.68899, abs=5e-6)
    assert active.item() == pytest.approx(0.83182, abs=5e-6)
    assert HardConcrete().slope_at_zero == pytest.approx(1.4752, abs=5e-5)
    assert HardConcrete().value(tensor(0.6)).item() == 0.5
    # spec/ has 2.365 for the jump; the tie r²·CV² + P = 1 on the gate's curve puts it at 2.3529
    below = tensor(HardConcrete().knot * (1 - 1e-9))
    assert HardConcrete().eta(below).item() == pytest.approx(2.3529, abs=1e-4)


def test_hard_concrete_moments_against_the_gate_itself():
    def gate(u, a):
        stretched = 1.2 / (1 + math.exp(-(math.log(u / (1 - u)) + math.log(a)) / (2 / 3))) - 0.1
        return min(max(stretched, 0.0), 1.0)

    u = [(i + 0.5) / 4000 for i in range(4000)]
    for a in (0.1, 1.0, 7.0):
        z = torch.tensor([gate(x, a) for x in u], dtype=torch.float64)
        first, second, active = hard_concrete_moments(tensor(math.log(a)))
        assert first[0].item() == pytest.approx(z.mean().item(), abs=1e-5)
        assert second[0].item() == pytest.approx((z**2).mean().item(), abs=1e-5)
        assert active[0].item() == pytest.approx((z > 0).double().mean().item(), abs=5e-4)


def test_hard_concrete_is_the_best_gate():
    r = tensor(1e-3, 0.1, 0.3, 0.5, 0.53, 0.5349, 0.536, 1.0)

    def cost(log_a):
        first, second, active = hard_concrete_moments(log_a)
        return (r[:, None] ** 2 * (second / first**2 - 1) + active) / 2

    found = smallest(cost, torch.full_like(r, -12), torch.full_like(r, 30), points=401)
    close(HardConcrete().value(r), found, rtol=1e-10)


# Special functions.


def test_dawson():
    wide, middle = torch.logspace(-8, 8, 8001, dtype=torch.float64), torch.arange(0.01, 12, 0.003)
    x = torch.cat((wide, middle.double()))
    want = torch.from_numpy(scipy.special.dawsn(x.numpy()))
    close(dawson(x), want, rtol=1e-13)
    close(dawson(-x), -dawson(x), rtol=0)
    single = x.float()
    close(dawson(single).double(), torch.from_numpy(scipy.special.dawsn(single.double().numpy())), rtol=3e-6)
    assert dawson(tensor(0.0)).item() == 0 and dawson(tensor(math.inf)).item() == 0


@pytest.mark.parametrize("x", [1e-4, 0.05, 0.7, 1.5, 4.0, 30.0])
def test_dawson_area(x):
    want = 4 * scipy.integrate.quad(scipy.special.dawsn, 0, x, epsabs=0, epsrel=1e-13)[0]
    assert dawson_area(tensor(2 * x * x), 1.0).item() == pytest.approx(want, rel=1e-12)


def test_increasing_root():
    want = torch.linspace(-3, 3, 25, dtype=torch.float64)
    low, high = torch.full_like(want, -3), torch.full_like(want, 3)
    close(increasing_root(lambda x: x**3 + x - (want**3 + want), low, high), want, rtol=1e-14, atol=1e-14)
    step = increasing_root(lambda x: torch.where(x < want, -1.0, 1e6), low, high)  # no slope to follow
    close(step, want, rtol=0, atol=1e-13)


# What goes wrong, says so.


@pytest.mark.parametrize(
    "make",
    [
        *(lambda p=p: Lp(p) for p in (0.0, -1.0, 2.1, math.nan, math.inf, "1", True)),
        *(lambda e=e: LogSum(e) for e in (0.0, -1.0, math.nan)),
        lambda: Log2Sum(0.0),
        lambda: MCP(0.0),
        lambda: SCAD(1.0, 1.0),
        lambda: SCAD(3.7, -1.0),
        lambda: Standout(0.0),
        lambda: Scaled(L1, 0.0),
        lambda: Scaled(2.0, L1),
        lambda: Lp.from_depth(0.5),
    ],
)
def test_bad_parameters_say_given_and_expected(make):
    with pytest.raises(PenaltyError, match=r"given, expected .*; |given, expected .* as in"):
        make()


def test_ridge_has_no_dual_and_says_so():
    assert not Lp(2.0).has_dual and not Scaled(Lp(2), 0.5).has_dual
    one = tensor(1.0)
    for name, more in (("dual", ()), ("dual_slope", ()), ("phi", (1.0,)), ("phi_slope", (1.0,))):
        with pytest.raises(PenaltyError, match="ridge"):
            getattr(Lp(2), name)(one, *more)


@every
def test_a_penalty_is_its_numbers(penalty):
    copy = dataclasses.replace(penalty)
    assert copy == penalty and hash(copy) == hash(penalty)
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.extra = 1
