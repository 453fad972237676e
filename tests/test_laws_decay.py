"""Laws of the decay route (spec/pwd.md sections 3, 4 and 8; dictionary.md 2 and 7); penalties join by one line."""

import copy
import csv
import functools
import gzip
import math
import os
from pathlib import Path

import pytest
import torch
from lawbook import Weight, close, distance, group_lasso, lasso, randn, tensor, train
from sklearn.linear_model import Lasso

import winnow
from winnow import MCP, SCAD, Columns, Decay, Dropout, Elements, Expected, Fair, Gating, Log2Sum, LogSum, Lp, Rows
from winnow.errors import AttachError, PenaltyError
from winnow.penalties import Garrote, HardConcrete, Scaled, Standout, VariationalDropout
from winnow.routes.base import Site
from winnow.routes.decay import DecayLane, shrinkage
from winnow.routes.moment import Moment

EPS = torch.finfo(torch.float64).eps
PENALTIES = [
    *(Lp(p) for p in (0.3, 0.5, 2 / 3, 0.8, 1.0, 1.5, 2.0)),
    *(LogSum(0.5), Log2Sum(0.5), Fair(0.5), MCP(1.5), SCAD(3.7, 0.5), VariationalDropout(), HardConcrete(), Standout()),
    *(Scaled(LogSum(0.5), 0.5), Garrote(0.5)),
]
GROUPINGS = {"elements": Elements(), "rows": Rows(), "columns, weighted": Columns(weighted=True)}
pytestmark = pytest.mark.filterwarnings("ignore:.*flat at zero")
every = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
grouped = pytest.mark.parametrize("where", GROUPINGS.values(), ids=GROUPINGS)

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
FLOW = {"momentum": 10.0, "Nesterov": 10.0}
"""1/(1−μ): ρ over lr, where it is not 1."""


def sgd(lr, **more):
    return lambda params: torch.optim.SGD(params, lr=lr, foreach=False, **more)


def walk(start, gradient, make, steps, *, how, when, where=None):
    """A run in the user's own loop, given the gradient by formula; yields (weight, run) after every step."""
    model = Weight(start)
    optimizer = make(model.parameters())
    run = winnow.attach(model, optimizer, how=how, where={"weight": where or Elements()}, when=when, fused=False)
    for _ in range(steps):
        model.weight.grad = gradient(model.weight.detach())
        optimizer.step()
        yield model.weight.detach(), run


def last(weights):
    """The last of them, or the first that equals the one before it to the bit."""
    before = None
    for w in weights:
        if before is not None and torch.equal(w, before):
            break
        before = w.clone()
    return w


def arrive(*args, **kwargs):
    """Where `walk` ends: after its steps, or as soon as a step changes nothing."""
    return last(w for w, _ in walk(*args, **kwargs))


def march(start, gradient, rate, steps, *, how, when, where=None):
    """As `walk` under plain gradient descent, but on the bare lane, for laws that need very many steps."""
    theta = torch.nn.Parameter(start.clone())
    lane = DecayLane(Site("weight", theta, (where or Elements()).bind(theta.shape)), how)
    w = theta.detach()
    for step in range(steps):
        moment = Moment(when, step, {"lr": rate})
        lane.before(moment)
        w.sub_(rate * gradient(w))
        lane.after(moment, {})
        yield w


# ---- one step --------------------------------------------------------------------------------------------------


def spread_out(*shape):
    """Weights from 1e-5 to 10, both signs, one of them zero."""
    size = math.prod(shape)
    w = torch.logspace(-5, 1, size, dtype=torch.float64) * randn(size, seed=1).sign()
    w[size // 3] = 0.0
    return w[torch.randperm(size, generator=torch.Generator().manual_seed(2))].view(shape)


def preconditioned(penalty, groups, w, direction, rate, strength):
    """w − ρP∘(d + λΩ'(r)w/r), P = η/(η + ρλ): pwd.md 3.1, in the groups' view."""
    strength, r = strength * groups.scale, groups.norm(w)
    pull = (strength * penalty.slope(r) / r).nan_to_num(nan=0.0, posinf=0.0)
    eta = penalty.eta(r)
    P = torch.where(eta.isinf(), 1.0, eta / (eta + rate * strength))
    return w - rate * P * (direction + pull * w)


@every
@grouped
def test_one_step_is_preconditioned_descent(penalty, where):
    w, g, rate, lam = spread_out(6, 4), randn(6, 4, seed=3), 0.1, 0.3
    wanted = preconditioned(penalty, where.bind(w.shape), w, g, rate, lam)
    got = arrive(w, lambda _: g, sgd(rate), 1, how=Decay(penalty), when=lam, where=where)
    # both sides cancel down from w − ρg; a series of the penalty (HardConcrete) knows its slope to 1e-11
    rounding = 1e-10 if isinstance(penalty, HardConcrete) else 1e-14
    assert ((got - wanted).abs() <= rounding * (w.abs() + rate * g.abs())).all()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("metric", ["plain", "adaptive"])
@pytest.mark.parametrize("penalty", [Lp(0.5), Lp(1.0), LogSum(0.5), MCP(1.5)], ids=repr)
@grouped
def test_one_step_under_adam(penalty, where, metric, amsgrad):
    """As above with d = m̂/(√v̂+ε), ρ = lr; in Adam's own metric d = m̂, ρ = lr/(√v̂+ε) entry by entry."""
    lr, (b1, b2), eps, lam = 0.05, (0.8, 0.9), 1e-3, 0.3
    gradients = [randn(6, 4, seed=seed) for seed in range(5)]
    w, m, v, top = spread_out(6, 4), torch.zeros(6, 4), torch.zeros(6, 4), torch.zeros(6, 4)
    draw = iter(gradients)
    how = Decay(penalty, metric=metric)
    steps = walk(
        w, lambda _: next(draw), lambda p: torch.optim.Adam(p, lr=lr, betas=(b1, b2), eps=eps, amsgrad=amsgrad), 5,
        how=how, when=lam, where=where,
    )
    w = w.clone()
    for t, ((got, _), g) in enumerate(zip(steps, gradients, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        top = torch.maximum(top, v)
        scale = ((top if amsgrad else v) / (1 - b2**t)).sqrt() + eps
        d = m / (1 - b1**t)
        groups = where.bind(w.shape)
        wanted = (
            preconditioned(penalty, groups, w, d / scale, lr, lam)
            if metric == "plain"
            else preconditioned(penalty, groups, w, d, lr / scale, lam)
        )
        assert ((got - wanted).abs() <= 2e-14 * (w.abs() + lr)).all()
        w = got.clone()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_takes_its_own_step_first(name, rescale):
    """w⁺ = η/(η + ρλ)·(the bare optimizer's step), η from before it, ρ of the rate in force; its own decay is off."""
    model, twin = Weight(spread_out(6, 4)), Weight(spread_out(6, 4))
    optimizer, bare = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](twin.parameters())
    for group in bare.param_groups:
        group["weight_decay"] = 0.0
    penalty, lam = LogSum(0.5), 0.3
    winnow.attach(model, optimizer, how=Decay(penalty, rescale=rescale), where={"weight": Rows()}, when=lam)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in (optimizer, bare)]
    for seed in range(6):
        lr = optimizer.param_groups[0]["lr"]
        before = twin.weight.detach().clone()
        for m, o in ((model, optimizer), (twin, bare)):
            m.weight.grad = randn(6, 4, seed=seed)
            o.step()
        rho = lr * (FLOW.get(name, 1.0) if rescale else 1.0)
        r = before.norm(dim=1, keepdim=True)
        eta = r * (r + 0.5)
        twin.weight.data *= eta / (eta + rho * lam)
        close(model.weight, twin.weight, rtol=8 * EPS, atol=8 * EPS)
        for scheduler in schedulers:
            scheduler.step()


def test_a_decay_factor_is_a_keep_probability():
    """dictionary 2.1: the factor of a step is the mean of dropout's mask at strength ρλ."""
    r = torch.logspace(-4, 2, 50, dtype=torch.float64)
    for penalty in PENALTIES:
        assert torch.equal(shrinkage(penalty, r, 0.1, 0.3, 0.0), Dropout(penalty, Expected()).keep(r, 0.1 * 0.3))


def test_the_quadratic_behind_the_step():
    """pwd 2: min over s of ½[s·w² + s^(−q)/q] = |w|^p/p, at s = 1/η̂ = |w|^(p−2)."""
    w = torch.logspace(-2, 1, 7, dtype=torch.float64)
    for p in (0.3, 0.5, 2 / 3, 1.0, 1.5, 1.9):
        q = p / (2 - p)

        def cost(s, q=q):
            return (s * w**2 + s**-q / q) / 2

        best = 1 / Lp(p).eta(w)
        close(best, w ** (p - 2), rtol=1e-13)
        close(cost(best), w**p / p, rtol=1e-12)
        for off in (0.99, 1.01):
            assert (cost(best * off) > cost(best)).all()


# ---- p = 2 is AdamW --------------------------------------------------------------------------------------------


def pair_with_adamw(lr, lam, adamw_lr, steps):
    """(pWD of p = 2, torch's AdamW of another rate) after the same gradients."""
    def gradient():
        draw = iter(range(steps))
        return lambda w: w + randn(50, seed=next(draw))

    def adam(rate, decay):
        return lambda p: torch.optim.AdamW(p, lr=rate, weight_decay=decay)

    start = randn(50, seed=99)
    ours = arrive(start, gradient(), adam(lr, 0.7), steps, how=Decay(Lp(2.0)), when=lam)
    model = Weight(start)
    optimizer, g = adam(adamw_lr, lam)(model.parameters()), gradient()
    for _ in range(steps):
        model.weight.grad = g(model.weight.detach())
        optimizer.step()
    return ours, model.weight.detach()


def test_p_2_is_adamw():
    """pWD(lr, λ) = AdamW(lr/(1+lr·λ), weight_decay=λ), 200 steps (pwd 3.1)."""
    ours, torchs = pair_with_adamw(0.05, 0.8, 0.05 / (1 + 0.05 * 0.8), 200)
    close(ours, torchs, rtol=1e-13, atol=1e-13)


def test_p_2_differs_from_adamw_of_the_same_rate_by_lr_squared():
    """One step apart by lr²λ(u + λw) + O(lr³), u = Adam's direction, here its first: sign(g)."""
    lam, start = 0.8, randn(50, seed=99)
    limit = lam * ((start + randn(50, seed=0)).sign() + lam * start)
    for lr in (1e-2, 1e-3, 1e-4):
        ours, torchs = pair_with_adamw(lr, lam, lr, 1)
        close((ours - torchs) / lr**2, limit, rtol=0, atol=2 * lr + 1e-15 / lr**2)


# ---- fixed points ----------------------------------------------------------------------------------------------


def test_orthogonal_design_is_the_soft_threshold():
    b, lam = tensor(2.0, 0.7, -1.3, 0.5, 0.3, -0.2, 0.1), 0.4
    ratios, before = {}, b
    for w, _ in walk(b, lambda w: w - b, sgd(0.5), 400, how=Decay(Lp(1.0)), when=lam):
        for i in range(7):
            if 1e-20 < abs(w[i]) < 1e-9:
                ratios.setdefault(i, []).append((float(before[i]), float(w[i])))
        before = w.clone()
    close(w, b.sign() * (b.abs() - lam).clamp_min(0), rtol=1e-14)
    assert set(ratios) == {4, 5, 6}
    for i, pairs in ratios.items():  # dying coordinates: ratio |b|/λ, up to the size they have left
        for one, next_one in pairs:
            if abs(one) < 1e-9:
                assert next_one / one == pytest.approx(float(abs(b[i])) / lam, rel=1e-8)


SCALAR = {"exact": tensor(1.6, 0.1, 0.0), 0.5: tensor(1.6396, 0.2403, 0.1000), 0.1: tensor(1.6095, 0.1667, 0.0449)}
"""½(w−b)², p = 1, λ = .4, b = (2, .5, .3): the answer, and what η from after the step gives at two rates (pwd 3)."""


def late(self, moment, state):
    """The negative control: η from the weights after the optimizer's step."""
    self.seen = self.norm()
    return DecayLane_after(self, moment, state)


DecayLane_after = DecayLane.after


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_fixed_points_do_not_depend_on_the_rate(rate):
    b = tensor(2.0, 0.5, 0.3)
    w = arrive(b, lambda w: w - b, sgd(rate), 3000, how=Decay(Lp(1.0)), when=0.4)
    close(w, SCALAR["exact"], rtol=1e-14, atol=1e-14)


def test_fixed_points_of_the_late_variant_do(monkeypatch):
    b = tensor(2.0, 0.5, 0.3)
    monkeypatch.setattr(DecayLane, "after", late)
    ends = {}
    for rate in (0.5, 0.1):
        ends[rate] = arrive(b, lambda w: w - b, sgd(rate), 3000, how=Decay(Lp(1.0)), when=0.4)
        close(ends[rate], SCALAR[rate], rtol=0, atol=5e-5)
    assert float((ends[0.5] - ends[0.1]).abs().min()) > 0.01


@pytest.mark.parametrize("penalty", [Lp(0.5), Lp(1.5), LogSum(0.5), MCP(4.0)], ids=repr)
def test_fixed_points_are_stationary_at_every_rate(penalty):
    problem, lam = lasso(), 0.1
    start = torch.linalg.lstsq(problem.X, problem.y[:, None]).solution[:, 0]
    ends = [last(march(start, problem.gradient, r, int(250 / r), how=Decay(penalty), when=lam)) for r in (0.5, 0.1)]
    close(ends[0], ends[1], rtol=1e-9, atol=1e-12)
    alive = ends[0].abs() > 1e-9
    pull = lam * penalty.slope(ends[0].abs()) * ends[0].sign()
    close(problem.gradient(ends[0])[alive], -pull[alive], rtol=0, atol=1e-12)
    assert alive.any()
    assert (alive.all() if penalty == Lp(1.5) else not alive.all())


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("more", [{}, {"nesterov": True}, {"dampening": 0.9}], ids=str)
def test_heavy_ball_solves_for_less_unless_rescaled(rescale, more):
    """(1−μ)λ where the buffer is g/(1−μ); λ with the rescaling, or with dampening μ (pwd 3.2)."""
    b = tensor(2.0, 0.7, 0.3)
    how = Decay(Lp(1.0), rescale=rescale)
    w = arrive(b, lambda w: w - b, sgd(0.1, momentum=0.9, **more), 1200, how=how, when=0.4)
    right = rescale or "dampening" in more
    close(w, tensor(1.6, 0.3, 0.0) if right else tensor(1.96, 0.66, 0.26), rtol=1e-12, atol=1e-12)


def test_elastic_net():
    """d = −λ|w|^(p−1)sign(w) − λ₂w; λ₂ = 0 is pWD; λ = 0 is the factor 1/(1+ρλ₂)."""
    b, lam, ridge = tensor(3.0, 1.5, -2.0), 0.3, 0.5
    for p in (0.5, 1.0, 1.5):
        w = arrive(b, lambda w: w - b, sgd(0.3), 2000, how=Decay(Lp(p), ridge=ridge), when=lam)
        close(w - b, -lam * w.abs() ** (p - 1) * w.sign() - ridge * w, rtol=1e-13)
    one = {"how": Decay(Lp(0.5), ridge=ridge), "when": 0.0}
    w = arrive(b, lambda w: w - b, sgd(0.3), 1, **one)
    close(w, b / (1 + 0.3 * ridge), rtol=1e-15)
    rate, (plain,) = 0.3, [arrive(b, lambda w: w - 1.0, sgd(0.3), 1, how=Decay(Lp(0.5)), when=lam)]
    X = b.abs() ** 1.5
    close(plain, X / (X + rate * lam) * (b - rate * (b - 1.0)), rtol=1e-15)


def test_elastic_net_solves_the_elastic_net():
    """Against an independent solver: the lasso of the rows (X, √(nλ₂)·1)."""
    problem, lam, ridge = lasso(), 0.2, 0.3
    n, d = problem.X.shape
    stacked = torch.cat((problem.X, math.sqrt(n * ridge) * torch.eye(d, dtype=torch.float64)))
    padded = torch.cat((problem.y, torch.zeros(d, dtype=torch.float64)))
    known = Lasso(alpha=lam * n / (n + d), fit_intercept=False, tol=1e-14, max_iter=10**6).fit(stacked, padded).coef_
    w = arrive(randn(d, seed=5), problem.gradient, sgd(0.3), 1000, how=Decay(Lp(1.0), ridge=ridge), when=lam)
    close(w, torch.from_numpy(known), rtol=1e-7, atol=1e-10)


# ---- zero ------------------------------------------------------------------------------------------------------


@every
def test_zero_is_absorbing_exactly_where_the_penalty_can_make_zeros(penalty):
    start, pull = tensor(0.0, 1.0), tensor(-0.5, -0.5)
    for make in (sgd(0.1), sgd(0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.1)):
        w = arrive(start, lambda _: pull, make, 5, how=Decay(penalty), when=0.2)
        assert torch.isfinite(w).all()
        assert float(w[1]) != 0
        assert (float(w[0]) == 0) == (penalty.eta_at_zero == 0)
    assert (penalty.eta_at_zero == 0) == (penalty not in (Lp(2.0), Log2Sum(0.5), Fair(0.5), Standout()))


@pytest.mark.parametrize("where", [Elements(), Rows()], ids=str)
@every
def test_nothing_is_nan_at_rate_zero_or_strength_zero(penalty, where):
    """An exact zero at ρλ = 0 would be 0/0; instead there is no decay at all, to the bit."""
    start = spread_out(6, 4)
    start[2] = 0.0
    still = arrive(start, lambda w: w - 1, sgd(0.0), 3, how=Decay(penalty, ridge=0.1), when=0.3, where=where)
    assert torch.equal(still, start)
    for metric in ("plain", "adaptive"):
        how, make = Decay(penalty, metric=metric), lambda p: torch.optim.Adam(p, lr=0.1)
        free = arrive(start, lambda w: w - 1, make, 3, how=how, when=0.0, where=where)
        model = Weight(start)
        optimizer = make(model.parameters())
        for _ in range(3):
            model.weight.grad = model.weight.detach() - 1
            optimizer.step()
        assert torch.equal(free, model.weight)
    warm = walk(start, lambda w: w - 1, sgd(0.1), 3, how=Decay(penalty), when=winnow.Ramp(0.3, 2), where=where)
    assert all(torch.isfinite(w).all() for w, _ in warm)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
def test_basin_radius_under_constant_drive(p):
    """p < 1: weights below (λ/u)^(1/(1−p)) die, super-linearly; those above it escape."""
    lam, u = 0.3, 0.4
    edge = (lam / u) ** (1 / (1 - p))
    start = edge * tensor(0.1, 0.5, 0.999, 1.001, 1.5)
    w = last(march(start, lambda w: torch.full_like(w, -u), 0.05, 3000, how=Decay(Lp(p)), when=lam))
    assert torch.equal(w[:3], torch.zeros(3, dtype=torch.float64))
    assert (w[3:] > start[3:]).all()
    # order 2−p: |w⁺| ≈ (u/λ)|w|^(2−p)
    tiny = tensor(1e-9)
    (w,) = march(tiny, lambda w: torch.full_like(w, -u), 0.05, 1, how=Decay(Lp(p)), when=lam)
    close(w, u / lam * tiny ** (2 - p), rtol=1e-6)


def test_p_1_flips_at_the_lasso_condition():
    u = 0.3 * tensor(0.5, 0.99, 1.01, 1.5)
    start = torch.full_like(u, 1e-6)
    w = last(march(start, lambda _: -u, 0.05, 2000, how=Decay(Lp(1.0)), when=0.3))
    assert (w[:2] < 1e-2 * start[:2]).all()
    assert (w[2:] > 1e2 * start[2:]).all()


@pytest.mark.parametrize(("p", "lam"), [(1.5, 0.75), (1.2, 0.9)])
def test_p_above_1_makes_no_zeros(p, lam):
    """Any drive lifts a weight from next to nothing to (u/λ)^(1/(p−1))."""
    u = lam * tensor(0.5, 0.8, 1.0)
    for w in march(torch.full_like(u, 1e-8), lambda _: -u, 0.5, 3000, how=Decay(Lp(p)), when=lam):
        assert (w > 0).all()
    close(w, (u / lam) ** (1 / (p - 1)), rtol=1e-12)


@pytest.mark.parametrize(("p", "start"), [(0.3, 0.02), (0.5, 0.01), (0.8, 0.01), (1.0, 0.01)])
def test_extinction_without_gradient(p, start):
    """λ_c = 1e-3 of the authors is λ = p·1e-3; T = |w|^(2−p)/((2−p)λ) in Σlr, and some ten steps (pwd 4)."""
    lr, lam = 1e-3, p * 1e-3
    steps = march(tensor(start), torch.zeros_like, lr, 12_000, how=Decay(Lp(p)), when=lam)
    count = next(step for step, w in enumerate(steps, 1) if float(w) < 1e-30)
    assert count * lr == pytest.approx(start ** (2 - p) / ((2 - p) * lam), rel=0.01)


SURVIVAL = [(0.3, 1e-5), (0.5, 4e-6), (0.8, 1e-5)]


@pytest.mark.parametrize(("p", "delta"), SURVIVAL)
def test_survival_threshold(p, delta):
    """½h(w−b)² from w = b: b_c = (2−p)/(1−p)·w_c decides, and no survivor is below w_c = ((1−p)λ/h)^(1/(2−p))."""
    lam, h = 0.2, tensor(1.0, 1.0, 3.0)[:, None]
    w_c = ((1 - p) * lam / h) ** (1 / (2 - p))
    b_c = (2 - p) / (1 - p) * w_c
    b = b_c * tensor(0.5, 0.95, 1 - delta, 1 + delta, 1.05, 2.0, 5.0)
    b[1] = -b[1]
    w = last(march(b, lambda w: h * (w - b), 0.5, int(30 / math.sqrt(delta)), how=Decay(Lp(p)), when=lam))
    assert torch.equal(w[:, :3], torch.zeros(3, 3, dtype=torch.float64))
    assert (w[:, 3:].sign() == b[:, 3:].sign()).all()
    assert (w[:, 3:].abs() > w_c).all()
    # the branch b(w) = w + (λ/h)w^(p−1), solved for w near its lowest point b_c, to the term before δ^1.5
    edge = w_c * (1 + math.sqrt(2 * delta / (1 - p)) + delta * (3 - p) / (3 * (1 - p)))
    close(w[:, 3:4].abs(), edge, rtol=50 * delta**1.5)


def tangent(p, rate, h, lam, w):
    """T' of pwd section 4 at the fixed point w."""
    kappa = rate * lam * w ** (p - 2)
    return ((2 - p) * kappa + 1 - rate * h) / (1 + kappa)


@pytest.mark.parametrize(("p", "rate", "h", "lam"), [(0.5, 0.5, 1.0, 0.2), (1.0, 0.3, 2.0, 0.4), (1.5, 0.9, 1.5, 0.3)])
def test_local_stability(p, rate, h, lam):
    w = tensor(0.4, 0.9, 2.0)
    b = w + lam / h * w ** (p - 1)  # makes each w a fixed point

    def step(x):
        return next(march(x, lambda x: h * (x - b), rate, 1, how=Decay(Lp(p)), when=lam))

    close(step(w), w, rtol=4 * EPS)
    nudge = 1e-5  # central difference: nudge²·T'''/6 and eps/nudge, both near 1e-10
    close((step(w + nudge) - step(w - nudge)) / (2 * nudge), tangent(p, rate, h, lam, w), rtol=0, atol=1e-8)


# ---- descent ---------------------------------------------------------------------------------------------------


def descents(rate_times_lip, lam, steps=40, problems=25):
    """(F before − F after, what is promised) along runs on random regressions, p random in (0, 2]."""
    for seed in range(problems):
        p = float(2 - 1.9 * torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        X, y = randn(20, 6, seed=seed), randn(20, seed=seed + 500)
        lip = float(torch.linalg.matrix_norm(X, 2)) ** 2 / 20
        rate = rate_times_lip / lip
        w = 3 * randn(6, seed=seed + 900)

        def F(w, p=p, X=X, y=y):
            return float((X @ w - y).square().mean() / 2 + lam * (w.abs() ** p).sum() / p)

        before = w.clone()
        for after in march(w, lambda w, X=X, y=y: X.T @ (X @ w - y) / 20, rate, steps, how=Decay(Lp(p)), when=lam):
            step, alive = after - before, before.abs() > 1e-100
            s = before[alive].abs() ** (p - 2)
            promised = (1 / rate - lip / 2) * step.square().sum() + lam / 2 * (s * step[alive] ** 2).sum()
            yield F(before) - F(after), float(promised), F(before)
            before = after.clone()


@pytest.mark.parametrize("rate_times_lip", [0.5, 1.0, 1.9])
def test_full_batch_descent_is_monotone(rate_times_lip):
    for drop, promised, size in descents(rate_times_lip, lam=0.3):
        assert promised >= 0
        assert drop >= promised - 1e-13 * max(1.0, size)


def test_beyond_the_stable_rate_it_is_not():
    """The control: at 2.1/Lip and a light penalty F rises in many steps."""
    drops = [drop for drop, _, _ in descents(2.1, lam=1e-3)]
    assert sum(drop < 0 for drop in drops) > len(drops) / 4


# ---- Adam ------------------------------------------------------------------------------------------------------


def test_adam_without_noise_is_almost_unregularised():
    """Fixed points obey |g| = εk/(1−k), k = λ|w|^(p−1): ε = 1e-2, p = 1, λ = .4 give 0.0066667 (pwd 4)."""
    b = tensor(2.0, -1.0)
    make = lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.97), eps=1e-2)  # noqa: E731
    w = arrive(b, lambda w: w - b, make, 1200, how=Decay(Lp(1.0)), when=0.4)
    close((w - b).abs(), tensor(1.0, 1.0) * 1e-2 * 0.4 / 0.6, rtol=1e-8)
    right = arrive(b, lambda w: w - b, make, 1200, how=Decay(Lp(1.0), metric="adaptive"), when=0.4)
    close(right, tensor(1.6, -0.6), rtol=1e-12)


@pytest.mark.parametrize(("p", "lam", "bound"), [(2.0, 0.5, 2.0), (1.5, 0.75, 1.7777778)])
def test_adam_bounds_the_weights_for_p_above_1(p, lam, bound):
    w = arrive(tensor(0.5), torch.ones_like, lambda x: torch.optim.Adam(x, lr=0.1), 600, how=Decay(Lp(p)), when=lam)
    assert float(w.abs()) == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize(("sigma", "plain"), [(2.0, 2.799), (5.0, 2.498)])
def test_strength_under_adam_and_noise(sigma, plain):
    """p = 1, λ = .1, b = 3: plain pWD solves for λ·RMS(g), 2.799 and 2.498; the adaptive metric for λ itself, 2.9."""
    size, steps, rest = 3000, 900, 400
    noise = torch.Generator().manual_seed(0)
    for metric, wanted in (("plain", plain), ("adaptive", 2.9)):
        def gradient(w):
            return w - 3.0 + sigma * torch.randn(size, dtype=torch.float64, generator=noise)

        start = torch.full((size,), wanted, dtype=torch.float64)
        make = lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.9, 0.99))  # noqa: E731
        mean = torch.zeros(size, dtype=torch.float64)
        for step, (w, _) in enumerate(walk(start, gradient, make, steps, how=Decay(Lp(1.0), metric=metric), when=0.1)):
            mean += (step >= rest) * w / (steps - rest)
        error = float(mean.std()) / math.sqrt(size)
        # within 2 % of the shift, as the specification asks, and three standard errors
        assert abs(float(mean.mean()) - wanted) <= 0.02 * (3.0 - wanted) + 3 * error


def test_the_adaptive_metric_needs_second_moments():
    model = Weight(randn(3))
    with pytest.raises(AttachError, match="second moments"):
        winnow.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), how=Decay(metric="adaptive"),
            where={"weight": Elements()}, when=0.1,
        )


# ---- the same problem, solved by others ------------------------------------------------------------------------

SOLVERS = {
    "SGD": (sgd(0.3), "plain"),
    "momentum": (sgd(0.1, momentum=0.9), "plain"),
    "Nesterov": (sgd(0.1, momentum=0.9, nesterov=True), "plain"),
    "Adam, adaptive": (lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.99)), "adaptive"),
    "AdamW, adaptive": (lambda p: torch.optim.AdamW(p, lr=0.05, betas=(0.9, 0.99), weight_decay=0.3), "adaptive"),
}
"""One line for a newcomer."""


@functools.cache
def solution(lam):
    """Of `lasso()`, by scikit-learn."""
    problem = lasso()
    found = Lasso(alpha=lam, fit_intercept=False, tol=1e-15, max_iter=10**6).fit(problem.X, problem.y)
    return torch.from_numpy(found.coef_)


@functools.cache
def group_solution(axis, lam):
    """Of `group_lasso(axis)`, by FISTA."""
    return group_lasso(axis).solve(lam)


@pytest.mark.parametrize("name", SOLVERS)
def test_lasso(name):
    make, metric = SOLVERS[name]
    w = arrive(randn(12, seed=4), lasso().gradient, make, 1200, how=Decay(Lp(1.0), metric=metric), when=0.2)
    known = solution(0.2)
    assert distance(w, known) < 1e-9
    assert torch.equal(w.abs() > 1e-12, known != 0)
    assert 0 < int((known != 0).sum()) < 12


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", SOLVERS)
def test_group_lasso(name, axis):
    """Rows and columns; weighted groups of three pay √3·λ."""
    problem, lam = group_lasso(axis), 0.1
    where = Rows(weighted=True) if axis == 0 else Columns(weighted=True)
    known = group_solution(axis, math.sqrt(3) * lam)
    make, metric = SOLVERS[name]
    start = randn(*known.shape, seed=4)
    how = Decay(Lp(1.0), metric=metric)
    w = arrive(start, problem.gradient, make, 1200, how=how, when=lam, where=where)
    assert distance(w, known) < 1e-9
    assert torch.equal(problem.norm(w) > 1e-12, problem.norm(known) > 0)
    assert 0 < int((problem.norm(known) > 0).sum()) < 8


def test_plain_adam_does_not_solve_the_lasso():
    """The control: decoupled decay under Adam has a strength of its own."""
    make, _ = SOLVERS["Adam, adaptive"]
    w = arrive(randn(12, seed=4), lasso().gradient, make, 1500, how=Decay(Lp(1.0)), when=0.2)
    assert distance(w, solution(0.2)) > 0.05


GENERAL = [LogSum(1.0), LogSum(0.1), MCP(3.0), SCAD(3.7, 0.5), VariationalDropout(), Scaled(LogSum(0.5), 0.5)]


def correlated():
    """pwd 3 and dictionary 6.9: 200×50, correlation .5^|i−j|, five true weights."""
    index = torch.arange(50)
    root = torch.linalg.cholesky(0.5 ** (index[:, None] - index).abs().double())
    X = randn(200, 50, seed=11) @ root.T
    truth = torch.zeros(50, dtype=torch.float64)
    truth[:25:5] = tensor(3.0, -2.0, 1.5, 1.0, -0.7)
    y = X @ truth + 0.5 * randn(200, seed=12)
    return X, y


def reweighted(X, y, penalty, lam, start, steps=3000):
    """Iteratively reweighted ridge, w = D(DXᵀXD/n + λI)⁻¹DXᵀy/n, D = √η̂(w): knows nothing of the library's routes."""
    n, w = len(y), start
    gram, target = X.T @ X / n, X.T @ y / n
    for _ in range(steps):
        eta = penalty.eta(w.abs())
        D = eta.clamp_max(1e12).sqrt()
        new = D * torch.linalg.solve(D[:, None] * gram * D + lam * torch.eye(len(w), dtype=w.dtype), D * target)
        if float((new - w).abs().max()) < 1e-15:
            break
        w = new
    return new


@pytest.mark.parametrize("penalty", GENERAL, ids=repr)
def test_general_penalties_reach_their_stationary_points(penalty):
    X, y = correlated()
    lam = 0.05 if penalty == LogSum(0.1) else 0.2
    start = torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
    model = Weight(start)
    optimizer = sgd(0.6)(model.parameters())
    run = winnow.attach(model, optimizer, how=Decay(penalty), where={"weight": Elements()}, when=lam, fused=False)
    for _ in range(1000):
        model.weight.grad = X.T @ (X @ model.weight.detach() - y) / 200
        optimizer.step()
    known = reweighted(X, y, penalty, lam, start)
    assert distance(model.weight.detach(), known) < 1e-9
    assert torch.equal(model.weight.abs() > 1e-9, known.abs() > 1e-9)
    assert 3 <= int((known.abs() > 1e-9).sum()) < 25
    # an independent certificate: optimality of L + λΩ on the support, ‖g‖ ≤ λΩ'(0+) off it
    run.settle(1e-9)
    said = run.certificate(lambda: (X @ model.weight - y).square().mean() / 2)
    assert said.residual_active < 1e-9
    assert said.residual_zero == 0.0
    assert said.alive == int((known.abs() > 1e-9).sum())


def test_the_eta_trick_with_a_refresh_interval():
    """η held for k steps: each interval solves a ridge problem, the run is reweighted ridge (dictionary 1, row ii)."""
    problem, lam, k = lasso(), 0.2, 250
    n = len(problem.y)
    gram, target = problem.X.T @ problem.X / n, problem.X.T @ problem.y / n
    w = start = randn(12, seed=4)
    for step, (got, _) in enumerate(
        walk(start, problem.gradient, sgd(0.5), 5 * k, how=Decay(Lp(1.0), refresh=k), when=lam), 1
    ):
        if step % k == 0:
            D = w.abs().sqrt()
            w = D * torch.linalg.solve(D[:, None] * gram * D + lam * torch.eye(12, dtype=w.dtype), D * target)
            close(got, w, rtol=1e-9, atol=1e-12)
            w = got.clone()
    end = arrive(start, problem.gradient, sgd(0.3), 1500, how=Decay(Lp(1.0), refresh=7), when=lam)
    assert distance(end, solution(lam)) < 1e-6  # the same fixed point, approached in intervals


@pytest.mark.parametrize("depth", [3, 4])
def test_the_same_solution_as_factors(depth):
    """pWD with p = 2/D and D-fold products from w = b, including which coordinates die (dictionary 7.1)."""
    p, lam = 2 / depth, 0.2
    b_c = (2 - p) / (1 - p) * ((1 - p) * lam) ** (1 / (2 - p))
    b = b_c * tensor(0.3, -0.8, 0.97, 1.03, -1.2, 2.0, 3.0)
    decayed = arrive(b, lambda w: w - b, sgd(0.3), 2000, how=Decay(Lp(p)), when=lam)
    factored = arrive(b, lambda w: w - b, sgd(0.1), 2500, how=Gating(depth=depth), when=lam)
    assert torch.equal(decayed == 0, b.abs() < b_c)
    close(factored, decayed, rtol=1e-10, atol=1e-10)


# ---- experiments of the authors --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 1.0, None])
def test_the_higgs_toy(p):
    """pwd 9.4: ¼(‖w‖²−1)² from (.2, .18), lr .7, λ_c = .1: one coordinate becomes exactly 0 for p ≤ 1."""
    how, lam = (Decay(Lp(p)), 0.1 * p) if p else (Decay(Lp(1.0)), 0.0)
    w = arrive(tensor(0.2, 0.18), lambda w: (w.square().sum() - 1) * w, sgd(0.7), 3000, how=how, when=lam)
    if p:
        assert float(w[1]) == 0.0
        assert 0.8 < float(w[0]) < 1.0
        x = float(w[0])
        assert (1 - x * x) * x == pytest.approx(lam * x ** (p - 1), rel=1e-10)
    else:
        assert (w != 0).all()
        assert float(w.norm()) == pytest.approx(1.0, rel=1e-12)


HOUSING = Path(os.environ.get("WINNOW_DATA") or Path(__file__).parents[2] / "shared/data") / "tabular"


@pytest.mark.skipif(not (HOUSING / "california_housing.csv.gz").exists(), reason="needs $WINNOW_DATA")
def test_the_lasso_of_the_authors_notebook():
    """pwd 9.5: California housing, λ = .1, from least squares at lr .2."""
    with gzip.open(HOUSING / "california_housing.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))

    def column(name):
        return torch.tensor([float(row[name] or "nan") for row in rows], dtype=torch.float64)

    bedrooms = column("total_bedrooms")
    bedrooms = torch.where(bedrooms.isnan(), bedrooms.nanmean(), bedrooms)
    homes = column("households")
    features = [column("median_income"), column("housing_median_age"), column("total_rooms") / homes, bedrooms / homes]
    features += [column("population"), column("population") / homes, column("latitude"), column("longitude")]
    X = torch.stack(features, 1)
    X, y = (X - X.mean(0)) / X.std(0, correction=0), column("median_house_value") / 1e5
    y = y - y.mean()
    gram, target = X.T @ X / len(y), X.T @ y / len(y)
    start = torch.linalg.solve(gram, target)
    w = arrive(start, lambda w: gram @ w - target, sgd(0.2), 4000, how=Decay(Lp(1.0)), when=0.1)
    known = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(X, y).coef_
    close(w, torch.from_numpy(known), rtol=0, atol=1e-7)
    close(w, tensor(0.7057, 0.106, 0, 0, 0, 0, -0.0112, 0), rtol=0, atol=1e-4)


# ---- options and state -----------------------------------------------------------------------------------------


def test_annealing_p():
    """p falls linearly from 2: step by step the ridge, then pWD; small weights with something to do survive it."""
    how = Decay(Lp(0.5), anneal=100)
    assert [how.at(step).p for step in (0, 50, 100, 1000)] == [2.0, 1.25, 0.5, 0.5]
    start, lam, rate = tensor(0.02, -1.0), 0.1, 0.3
    target = tensor(1.0, -2.0)
    w = start
    for step, (got, _) in enumerate(walk(start, lambda w: w - target, sgd(rate), 110, how=how, when=lam)):
        X = w.abs() ** (2 - how.at(step).p)
        w = X / (X + rate * lam) * (w - rate * (w - target))
        close(got, w, rtol=1e-12)
        w = got.clone()
    killed, saved = (
        arrive(start, lambda w: w - target, sgd(rate), 400, how=Decay(Lp(0.5), anneal=steps), when=0.2)
        for steps in (0, 100)
    )
    assert float(killed[0]) == 0.0
    assert float(saved[0]) > 0.5


RESUMED = [Decay(Lp(0.5), anneal=20), Decay(LogSum(0.5), refresh=5), Decay(Lp(1.0), ridge=0.1)]


@pytest.mark.parametrize("how", RESUMED, ids=repr)
def test_resume_in_the_middle_is_bit_exact(how, tmp_path):
    def begin():
        model = Weight(spread_out(6, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        ramp = winnow.Ramp(0.3, 20)
        return model, optimizer, winnow.attach(model, optimizer, how=how, where=Rows(), when=ramp)

    def go(model, optimizer, steps):
        for step in steps:
            model.weight.grad = model.weight.detach() - randn(6, 4, seed=step)
            optimizer.step()

    model, optimizer, _ = begin()
    go(model, optimizer, range(8))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "at8")
    go(model, optimizer, range(8, 30))
    twin, other, run = begin()
    weights, state = torch.load(tmp_path / "at8", weights_only=True)
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    assert run.clock.step == 8
    go(twin, other, range(8, 30))
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_step_skipped_by_the_scaler_does_not_decay(kind, fused):
    """A gradient scaler that finds inf: no weight moves, no count either; good steps equal unscaled ones."""
    make = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=fused),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=fused),
    }[kind]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    ends = []
    for scaled in (True, False):
        model = Weight(spread_out(6, 4).float())
        optimizer = make(model.parameters())
        run = winnow.attach(model, optimizer, how=Decay(Lp(0.5)), where=Rows(), when=0.2, fused=False)
        for step in range(4):
            optimizer.zero_grad()
            target = randn(6, 4, seed=step).float()
            loss = (model.weight - target).square().sum() * (math.inf if scaled and step == 2 else 1.0)
            if not scaled:
                if step != 2:
                    loss.backward()
                    optimizer.step()
                continue
            before, counted = model.weight.detach().clone(), run.clock.step
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if step == 2:
                assert torch.equal(model.weight, before)
                assert run.clock.step == counted
        ends.append(model.weight.detach())
    assert torch.equal(ends[0], ends[1])  # scales are powers of two


def test_a_state_dict_holds_everything_and_is_left_alone():
    """What was saved does not change when training goes on, but for torch's own buffers, which are shared."""
    model = Weight(spread_out(6, 4))
    optimizer = sgd(0.1)(model.parameters())
    winnow.attach(model, optimizer, how=Decay(Lp(0.5)), where=Rows(), when=winnow.Ramp(0.2, 10))
    taken = optimizer.state_dict()
    kept = copy.deepcopy(taken)
    for _ in range(3):
        model.weight.grad = torch.ones(6, 4, dtype=torch.float64)
        optimizer.step()
    assert taken["param_groups"] == kept["param_groups"] != optimizer.state_dict()["param_groups"]


BAD = [{"ridge": -1.0}, {"ridge": math.nan}, {"refresh": 0}, {"anneal": -1}, {"metric": "adam"}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(PenaltyError):
        Decay(Lp(0.5), **bad)


def test_annealing_needs_a_p():
    with pytest.raises(PenaltyError, match="Lp"):
        Decay(LogSum(1.0), anneal=10)


def test_training_in_the_users_loop_reaches_the_same():
    """`lawbook.train` (autograd, cosine) ends where the formula's gradients do."""
    w, _ = train(randn(12, seed=4), lasso().loss, sgd(0.5), 800, how=Decay(Lp(1.0)), when=0.2)
    assert distance(w, solution(0.2)) < 1e-6
