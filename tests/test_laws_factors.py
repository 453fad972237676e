"""Laws of the coordinates, factor by factor: a new factorisation joins with one line in FACTORISATIONS."""

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from lawbook import Weight, close, distance, randn, tensor

import winnow
from winnow import MCP, SCAD, Blocks, Columns, Elements, Gating, Heads, LogSum, Lp, Rows
from winnow.factors import BoundedGate, PlainGate, PowerGate, Product
from winnow.penalties import Garrote, HardConcrete, Scaled, VariationalDropout
from winnow.starts import Balanced, Gap, Truncated

POWERS = [PowerGate(2), PowerGate(3), PowerGate(4), PowerGate(5), PowerGate(2.5), PowerGate(3.3), PowerGate(20 / 3)]
PRODUCTS = [Product(depth, Balanced()) for depth in (2, 3, 4)]
PLAIN = [
    *(PlainGate(LogSum(0.5)), PlainGate(Scaled(LogSum(0.5), 0.5)), PlainGate(Lp(1.3)), PlainGate(Lp(1.0))),
    *(PlainGate(VariationalDropout()), PlainGate(MCP(3.0)), PlainGate(SCAD(3.7, 0.5)), PlainGate(Garrote(0.5))),
]
BOUNDED = [
    BoundedGate(MCP(3.0)),
    BoundedGate(SCAD(3.7, 0.5)),
    BoundedGate(Scaled(MCP(1.0), 2.0)),
    BoundedGate(HardConcrete()),
]
FACTORISATIONS = POWERS + PRODUCTS + PLAIN + BOUNDED

GROUPINGS = {
    "elements": (Elements(), (6, 4)),
    "rows": (Rows(weighted=True), (6, 4)),
    "columns": (Columns(), (6, 4)),
    "filters": (Rows(weighted=True), (4, 3, 2, 2)),
    "blocks": (Blocks(block=(2, 2), weighted=True), (6, 4)),
    "heads": (Heads(count=2, fused=3), (12, 5)),
}
ROUNDING = 64 * torch.finfo(torch.float64).eps
"""A few dozen operations' worth."""

every = pytest.mark.parametrize("kind", FACTORISATIONS, ids=repr)
grouped = pytest.mark.parametrize("grouping", GROUPINGS)


def penalty_of(kind):
    if isinstance(kind, PowerGate | Product):
        return Lp(2 / kind.depth)
    return kind.penalty


def accuracy(kind):
    """Rounding, or what the penalty says of the series that f and f' are, and one digit for differentiating them."""
    return {HardConcrete: 1e-10, VariationalDropout: 1e-12}.get(type(penalty_of(kind)), ROUNDING)


def groups_for(kind, grouping):
    """The grouping, or single entries for full-size factors; either way with a weight on the penalty somewhere."""
    rule, shape = GROUPINGS[grouping]
    if isinstance(kind, Product):
        return replace(Elements().bind(shape), scale=1.7 if rule.weighted else 1.0)
    return rule.bind(shape)


def draw(kind, groups, seed=0):
    """Factors of order one, of all signs, within the range of their gates."""
    theta = randn(*groups.shape, seed=seed)
    factors = kind.start(theta, groups)
    drawn = [randn(*factor.shape, seed=seed + 1 + i) for i, factor in enumerate(factors)]
    return [drawn[0], drawn[1].tanh()] if isinstance(kind, BoundedGate) else drawn


def lift(kind, w, groups):
    """The balanced factors of w, by formula: the only ones of no misalignment."""
    r, penalty = groups.norm(w), penalty_of(kind)
    if isinstance(kind, Product):
        root = w.abs() ** (1 / kind.depth)
        return [root * w.sign(), *(root for _ in range(kind.depth - 1))]
    if isinstance(kind, PowerGate):
        gate, u = r ** (1 - 1 / kind.depth), r ** (1 / kind.depth)
    else:
        eta = penalty.eta(r)
        u = (eta / (eta + kind.c)).sqrt().nan_to_num(nan=1.0) if isinstance(kind, BoundedGate) else eta.sqrt()
        gate = u
    return [groups.spread(1 / gate, w), u]


def misalignment(kind, factors, groups):
    """Per group, energy − Ω in units of the penalty: M of dictionary section 6.3."""
    r = groups.norm(kind.product(factors, groups))
    return kind.energy(factors, groups) / groups.scale - penalty_of(kind).value(r)


# The chain rule: written out in the library, worked out by autograd here.


@every
@grouped
def test_pull_is_autograd(kind, grouping):
    groups, lam = groups_for(kind, grouping), 0.37
    factors = [factor.requires_grad_() for factor in draw(kind, groups)]
    g = randn(*groups.shape, seed=9)
    smooth = (g * kind.product(factors, groups)).sum() + lam * kind.energy(factors, groups).sum()
    wanted = torch.autograd.grad(smooth, factors)
    pulled = kind.pull(g, [factor.detach() for factor in factors], groups, lam)
    assert len(kind.names) == len(kind.copies) == len(pulled)
    rtol = accuracy(kind)
    for got, want, copies in zip(pulled, wanted, kind.copies, strict=True):
        close(got, want / copies, rtol=rtol, atol=rtol)


@every
def test_pull_takes_a_strength_that_is_a_tensor(kind):
    """The fused step and gradient scalers hand λ over as a tensor; a number is added in place, its product not rounded."""
    groups = groups_for(kind, "rows")
    factors, g = draw(kind, groups), randn(*groups.shape, seed=9)
    for a, b in zip(kind.pull(g, factors, groups, 0.3), kind.pull(g, factors, groups, tensor(0.3)[0]), strict=True):
        close(a, b, rtol=1e-14, atol=1e-14)


@every
@grouped
def test_all_zero_is_stationary(kind, grouping):
    """Zero is absorbing: no gradient of the loss reaches a group whose factors are all zero, and none is NaN."""
    groups = groups_for(kind, grouping)
    nothing = [torch.zeros_like(factor) for factor in draw(kind, groups)]
    for pulled in kind.pull(randn(*groups.shape), nothing, groups, 0.37):
        assert torch.equal(pulled, torch.zeros_like(pulled))
    assert not kind.product(nothing, groups).any()
    assert not kind.imbalance(nothing, groups).any()


@every
@grouped
def test_imbalance_is_pulled_to_zero_whatever_the_loss(kind, grouping):
    """⟨v, ∂v⟩ − ⟨s, ∂s⟩ = λ·imbalance: the loss drops out (dgating 1.4, dictionary 6.3, 6.5; bounded: over c)."""
    groups, lam = groups_for(kind, grouping), 0.37
    factors, g = draw(kind, groups), randn(*groups.shape, seed=9)
    pulled = kind.pull(g, factors, groups, lam)
    work = [groups.total(x * dx) if x.shape == g.shape else x * dx for x, dx in zip(factors, pulled, strict=True)]
    if isinstance(kind, Product):  # entry by entry, between the largest and the smallest factor
        squares = torch.stack([factor.square() for factor in factors])
        every_work = torch.stack(work)
        top, low = squares.argmax(0, keepdim=True), squares.argmin(0, keepdim=True)
        pull = (every_work.gather(0, top) - every_work.gather(0, low))[0]
    else:
        pull = (work[0] - work[1]) * (kind.c if isinstance(kind, BoundedGate) else 1.0)
    close(pull, lam * groups.scale * kind.imbalance(factors, groups), rtol=ROUNDING, atol=ROUNDING)


# Energy: never below the penalty, equal to it exactly at balance.


def five_decades(kind, groups):
    """Factors from 1e-3 to 1e2 in size, gates and vectors independently so."""
    for i in range(6):
        for j in range(6):
            factors = draw(kind, groups, seed=10 * i + j)
            scales = [10.0 ** (i - 3), *([10.0 ** (j - 3)] * (len(factors) - 1))]
            if isinstance(kind, BoundedGate):
                scales[1] = min(scales[1], 1.0)
            yield [factor * scale for factor, scale in zip(factors, scales, strict=True)]


@every
def test_energy_never_lies_below_the_penalty(kind):
    """M ≥ 0, and M > 0 wherever a tenth of the squares is out of balance."""
    groups, seen = groups_for(kind, "rows"), 0
    for factors in five_decades(kind, groups):
        gap, paid = misalignment(kind, factors, groups), kind.energy(factors, groups) / groups.scale
        assert (gap >= -accuracy(kind) * paid.abs().clamp_min(1)).all()
        unbalanced = kind.imbalance(factors, groups).abs() > 0.1 * (paid - penalty_of(kind).at_zero)
        assert (gap[unbalanced] > accuracy(kind) * paid.abs()[unbalanced]).all()
        seen += int(unbalanced.sum())
    assert seen > 100


@pytest.mark.parametrize("kind", POWERS + PRODUCTS, ids=repr)
def test_misalignment_is_at_most_the_spread_of_the_squares(kind):
    """0 ≤ M ≤ (D/2)(max − min of the D squared factors) (dgating 5.2); copies of a gate count as the gates they are."""
    groups = groups_for(kind, "rows")
    for factors in five_decades(kind, groups):
        squares = [groups.total(x * x) if x.shape == groups.shape else x * x for x in factors]
        spread = torch.stack(squares).amax(0) - torch.stack(squares).amin(0)
        gap = misalignment(kind, factors, groups)
        assert (gap <= kind.depth / 2 * spread * (1 + 1e-12)).all()


def sizes(kind, groups):
    """Weights with group norms over five decades; on both sides of a knot, which plain gates cannot pass."""
    w = randn(*groups.shape, seed=3)
    norms = torch.logspace(-3, 2, groups.count, dtype=torch.float64).view(groups.gate_shape)
    if isinstance(kind, PlainGate):
        norms = norms.clamp_max(0.9 * kind.penalty.knot)
    return groups.spread(norms / groups.norm(w), w)


@every
@grouped
def test_the_balanced_lift_costs_exactly_the_penalty(kind, grouping):
    groups = groups_for(kind, grouping)
    w = sizes(kind, groups)
    factors = lift(kind, w, groups)
    close(kind.product(factors, groups), w, rtol=ROUNDING)
    wanted = penalty_of(kind).value(groups.norm(w)) * groups.scale
    close(kind.energy(factors, groups), wanted, rtol=accuracy(kind), atol=accuracy(kind))
    size = groups.total(factors[0].square()).clamp_min(1e-3) if not isinstance(kind, Product) else 1.0
    assert (kind.imbalance(factors, groups).abs() <= 1e-8 * size).all()


@every
def test_leaving_balance_costs(kind):
    """Along the fibre of fixed product, energy rises from the balanced lift, to both sides and by the square."""
    groups = groups_for(kind, "columns")
    w = sizes(kind, groups)
    if isinstance(kind, BoundedGate):  # beyond the knot the gate is open, and cannot be opened further
        w = groups.spread((0.9 * kind.penalty.knot / groups.norm(w)).clamp_max(1), w)
    factors = lift(kind, w, groups)
    best = kind.energy(factors, groups)
    for tilt in (0.9, 0.99, 1.01, 1.1):
        tilted = [factors[0] / tilt, factors[1] * tilt, *factors[2:]]
        if isinstance(kind, PowerGate):
            tilted = [groups.spread(factors[1].new_tensor(tilt) ** (1 - kind.depth), factors[0]), factors[1] * tilt]
        if isinstance(kind, BoundedGate) and float(tilted[1].max()) > 1:
            continue
        close(kind.product(tilted, groups), w, rtol=ROUNDING)
        rise = (kind.energy(tilted, groups) - best) / (best - penalty_of(kind).at_zero * groups.scale)
        assert (rise > 0).all(), (tilt, rise)
        if isinstance(kind, PowerGate | Product):  # ½Σ of squares: curvature by hand
            k = kind.depth - 1 if isinstance(kind, PowerGate) else 1
            by_hand = (tilt ** (-2 * k) + k * tilt**2 - 1 - k) / kind.depth
            close(rise, torch.full_like(rise, by_hand), rtol=1e-10)


# Start and fold.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", POWERS + PLAIN + BOUNDED, ids=repr)
@grouped
def test_gates_start_at_one_and_change_no_bit(kind, grouping, dtype):
    groups = groups_for(kind, grouping)
    theta = sizes(kind, groups).to(dtype)
    v, s = kind.start(theta, groups)
    assert torch.equal(s, torch.ones_like(s))
    assert s.shape == groups.gate_shape
    assert torch.equal(v, theta)
    assert v.data_ptr() != theta.data_ptr()
    assert torch.equal(kind.product([v, s], groups), theta)


@pytest.mark.parametrize("kind", [*PRODUCTS, Product(2, Gap(1.0)), Product(2, Gap(0.0))], ids=repr)
def test_full_size_factors_start_at_the_weight(kind):
    groups = groups_for(kind, "elements")
    theta = sizes(kind, groups)
    theta[0, 0] = 0.0
    factors = kind.start(theta, groups)
    close(kind.product(factors, groups), theta, rtol=ROUNDING)
    if not isinstance(kind.begin, Gap):
        assert (kind.imbalance(factors, groups) <= ROUNDING * theta.abs().pow(2 / kind.depth)).all()


ROUTES = {
    "depth 3, elements": (Gating(depth=3), Elements()),
    "depth 2.5, rows": (Gating(depth=2.5), Rows()),
    "LogSum, blocks": (Gating(LogSum(1.0)), Blocks(block=(2, 2))),
    "MCP, columns": (Gating(MCP(2.0)), Columns()),
    "full-size factors": (Gating(depth=4, start=Balanced()), Elements()),
    "masking": (winnow.Masking(1.0), Elements()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_folding_changes_no_bit(route, dtype):
    """The dense weight is the product of the factors at every step, so that release and settle fold nothing."""
    how, where = ROUTES[route]
    model = Weight(randn(6, 4).to(dtype))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    run = winnow.attach(model, optimizer, how=how, where=where, when=0.1)
    target = randn(6, 4, seed=7).to(dtype)
    for _ in range(10):
        optimizer.zero_grad()
        (model.weight - target).square().sum().backward()
        optimizer.step()
        lane = run._lanes[0]
        assert torch.equal(model.weight, lane.factorisation.product(lane.tensors(), lane.site.groups))
    last = model.weight.detach().clone()
    run.release()
    assert torch.equal(model.weight, last)


# Gap: PILoT's start.


@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
def test_gap_start(beta):
    x = torch.cat((tensor(0.0), torch.logspace(-8, 2, 60, dtype=torch.float64)))
    x = torch.cat((x, -x))
    m, w = Gap(beta)(x, 2)
    close(m * w, x, rtol=ROUNDING)
    # each square is as large as the larger of |x| and β, and the gap is their difference
    assert ((m * m - w * w - beta).abs() <= ROUNDING * (x.abs() + beta)).all()
    assert (m > 0).all()
    assert (m >= w.abs()).all()
    assert (m[x.abs() < 1] > w[x.abs() < 1].abs()).all()


def test_gap_of_nothing_is_balanced():
    x = tensor(-4.0, -1e-9, 0.0, 0.25)
    m, w = Gap(0.0)(x, 2)
    close(m, x.abs().sqrt(), rtol=ROUNDING)
    close(w, x.abs().sqrt() * x.sign(), rtol=ROUNDING)


def test_gap_start_is_accurate_in_float32():
    """w = x/m to the last bits at |x| = 1e-5, where a difference of roots has nothing left (pilot section 2.1)."""
    x = torch.tensor([1e-5, -1e-5, 3e-7])
    wanted = Gap(1.0)(x.double(), 2)
    eps = torch.finfo(torch.float32).eps
    for got, want in zip(Gap(1.0)(x, 2), wanted, strict=True):
        close(got.double(), want, rtol=4 * eps)
    cancelled = x.sign() * (((4 * x * x + 1).sqrt() - 1) / 2).sqrt()
    assert distance(cancelled.double(), wanted[1]) > 0.99


# Truncated: deep weight factorisation's draw.


def truncated_moments(sigma, floor, depth):
    """(std of the product, kurtosis) by scipy's truncated normal, independently."""
    scale = sigma ** (1 / depth)
    low, high = (floor * sigma) ** (1 / depth), min(1.0, (2 * sigma) ** (1 / depth))
    one = scipy.stats.truncnorm(low / scale, high / scale, scale=scale)
    return one.moment(2) ** (depth / 2), (one.moment(4) / one.moment(2) ** 2) ** depth


PUBLISHED = {2: (0.86, 1.71), 3: (0.81, 1.52), 4: (0.78, 1.39)}
"""std/σ_w and kurtosis at ε = .25σ_w (dgating 7.1)."""


@pytest.mark.parametrize("depth", PUBLISHED)
@pytest.mark.parametrize("exact", [False, True])
def test_truncated_draw(depth, exact):
    theta = 0.05 * randn(200_000)
    sigma = float(theta.std())
    factors = Truncated(seed=1, exact=exact)(theta, depth)
    product, count = math.prod(factors), theta.numel()
    stretch = 1.0 if not exact else (sigma / float(math.prod(Truncated(seed=1)(theta, depth)).std())) ** (1 / depth)
    low, high = (0.25 * sigma) ** (1 / depth), min(1.0, (2 * sigma) ** (1 / depth))
    for factor in factors:
        size = factor.abs() / stretch
        assert (size > low * (1 - 1e-12)).all()
        assert (size < high * (1 + 1e-12)).all()
        assert abs(float(factor.sign().mean())) < 5 / math.sqrt(count)
    std, kurtosis = truncated_moments(sigma, 0.25, depth)
    assert std / sigma == pytest.approx(PUBLISHED[depth][0], abs=0.005)
    assert kurtosis == pytest.approx(PUBLISHED[depth][1], abs=0.005)
    noise = 5 * math.sqrt((kurtosis - 1) / (4 * count))  # five standard errors of a standard deviation
    if exact:
        assert float(product.std()) == pytest.approx(sigma, rel=1e-12)
    else:
        assert float(product.std()) == pytest.approx(std, rel=noise)
    assert float((product**4).mean() / (product**2).mean() ** 2) == pytest.approx(kurtosis, rel=0.02)


def test_truncated_draw_at_the_cap():
    """At σ_w = 1 no factor exceeds one, as min(1, …) says."""
    theta = randn(20_000)
    for factor in Truncated(floor=0.1)(theta / theta.std(), 3):
        assert float(factor.abs().max()) <= 1.0
        assert float(factor.abs().min()) >= 0.1 ** (1 / 3) * (1 - 1e-12)


def test_truncated_draw_depends_on_its_seed_and_its_weight_only():
    theta, other = 0.1 * randn(50, 4), 0.1 * randn(50, 4, seed=1)
    torch.manual_seed(0)
    first = Truncated()(theta, 3)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, Truncated()(theta, 3), strict=True))
    assert not torch.equal(first[0], Truncated(seed=1)(theta, 3)[0])
    twin = Truncated()(other, 3)  # another layer of the same shape must not get the same weights
    assert abs(float(torch.corrcoef(torch.stack((first[0].flatten(), twin[0].flatten())))[0, 1])) < 0.3
