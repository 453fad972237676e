"""Laws of the dropout route (spec/adaptive_dropout.md 2 to 4 and 6, dictionary.md 2.4); penalties join by one line."""

import itertools
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from lawbook import close, randn, tensor
from torch import nn

import winnow
from winnow import MCP, SCAD, Bernoulli, Columns, Dropout, Elements, Expected, Fair, Gaussian, Log2Sum, LogSum, Lp, Rows
from winnow.errors import PenaltyError, WinnowWarning
from winnow.penalties import Garrote, HardConcrete, Scaled, Standout, VariationalDropout
from winnow.routes.dropout import DropoutLane, Mask

EPS = torch.finfo(torch.float64).eps
PENALTIES = [
    *(Lp(p) for p in (0.5, 1.0, 1.5, 2.0)),
    *(LogSum(0.5), Log2Sum(0.5), Fair(0.5), MCP(1.5), SCAD(3.7, 0.5), VariationalDropout(), HardConcrete(), Standout()),
    *(Scaled(LogSum(0.5), 0.5), Garrote(0.5)),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*flat at zero")
KNOWN = {HardConcrete: 1e-10, VariationalDropout: 1e-13}
"""How well η̂ and Ω' agree where they are series or roots; the others are closed forms."""
GROUPINGS = {"elements": Elements(), "rows": Rows(), "columns": Columns(), "columns, weighted": Columns(weighted=True)}
NOISES = {"Bernoulli": Bernoulli(), "Gaussian": Gaussian()}
every = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
grouped = pytest.mark.parametrize("where", GROUPINGS.values(), ids=GROUPINGS)
noisy = pytest.mark.parametrize("mask", NOISES.values(), ids=NOISES)


@dataclass
class Chosen(Mask):
    """Bernoulli's two values, dealt instead of drawn; remembers the odds. For exact expectations."""

    hand: torch.Tensor | None = None
    keep: torch.Tensor | None = None

    def draw(self, keep):
        self.keep = keep
        return torch.ones_like(keep) if self.hand is None else self.hand.view(keep.shape) / keep


def layer(w, where, how, lam):
    """A linear layer of weight w with the route attached: (layer, its optimizer, run, lane)."""
    model = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    model.weight.data.copy_(w)
    optimizer = Witness(model.parameters(), lr=0.1)
    run = winnow.attach(model, optimizer, how=how, where=where, when=lam, fused=False)
    (lane,) = run._lanes
    assert isinstance(lane, DropoutLane)
    return model, optimizer, run, lane


class Witness(torch.optim.SGD):
    """SGD that remembers the gradients it was given."""

    def step(self, closure=None):
        self.given = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def loss(model, X, y):
    """Mean over the n samples of ½‖y − Wx‖²."""
    return (model(X) - y).square().sum() / (2 * len(X))


def expectation(model, mask, X, y):
    """(E loss, E gradient) over all 2^d patterns of the groups."""
    loss(model, X, y)  # once, so that the mask learns its odds
    keep = mask.keep
    mean, slope = torch.zeros((), dtype=X.dtype), torch.zeros_like(model.weight)
    for bits in itertools.product((0.0, 1.0), repeat=keep.numel()):
        mask.hand = tensor(*bits).to(X.dtype)
        chance = torch.where(mask.hand.view(keep.shape) > 0, keep, 1 - keep).prod()
        value = loss(model, X, y)
        mean += chance * value.detach()
        slope += chance * torch.autograd.grad(value, model.weight)[0]
    mask.hand = None
    return mean, slope


def ridge(w, X, groups, v):
    """½Σ_g v_g·Σ_rows w_gᵀ(XᵀX/n)w_g, which is ½Σ h v w² for single entries: (value, gradient at constant v)."""
    gram = X.T @ X / len(X)
    value, slope = 0.0, torch.zeros_like(w)
    for index in range(groups.count):
        one = torch.zeros(groups.count, dtype=w.dtype)
        one[index] = 1.0
        part = groups.spread(one.view(groups.gate_shape), w)
        value += v.flatten()[index] * (part @ gram * part).sum() / 2
        slope += v.flatten()[index] * groups.spread(one.view(groups.gate_shape), part @ gram)
    return value, slope


def problem(out, d, n=7, seed=0):
    return randn(n, d, seed=seed), randn(n, out, seed=seed + 1), randn(out, d, seed=seed + 2)


# ---- the expected loss -----------------------------------------------------------------------------------------


@every
@grouped
def test_expected_loss_is_the_loss_plus_a_ridge(penalty, where):
    """E = L + ½Σ h v w², v = λ/η: all masks of the shipped lane, one by one (adaptive_dropout 3)."""
    X, y, w = problem(2, 4)
    mask, lam = Chosen(), 0.3
    model, _, _, lane = layer(w, where, Dropout(penalty, mask, floor=1e-9), lam)
    groups = lane.site.groups
    v = lam * groups.scale / penalty.eta(groups.norm(w))
    mean, slope = expectation(model, mask, X, y)
    bare = loss(model.eval(), X, y)
    wanted = torch.autograd.grad(bare, model.weight)[0]
    value, pull = ridge(w, X, groups, v)
    # 2^8 terms with weights up to 1/α_min: rounding of each, and α's cancellation in 1 − α
    scale = 64 * EPS * (1 + float(v.max()))
    assert abs(float(mean - bare.detach() - value)) <= scale * float(mean)
    wanted += pull
    close(slope, wanted, rtol=0, atol=scale * float(wanted.abs().max()))


def test_expected_loss_of_a_wider_layer():
    """d = 10 single entries: 1024 masks."""
    X, y, w = problem(1, 10)
    mask = Chosen()
    model, *_ = layer(w, Elements(), Dropout(Lp(1.0), mask, floor=1e-9), 0.3)
    mean, _ = expectation(model, mask, X, y)
    h, v = X.square().mean(0), 0.3 / w.abs()
    wanted = loss(model.eval(), X, y) + (h * v * w * w).sum() / 2
    close(mean, wanted.detach(), rtol=1e-12)


def test_the_floor_caps_the_variance():
    X, y, w = problem(1, 6)
    mask = Chosen()
    model, *_ = layer(0.01 * w, Elements(), Dropout(Lp(1.0), mask, floor=0.25), 0.3)
    mean, _ = expectation(model, mask, X, y)
    wanted = loss(model.eval(), X, y) + (X.square().mean(0) * 3.0 * model.weight**2).sum() / 2  # v = .75/.25
    close(mean, wanted.detach(), rtol=1e-13)


@noisy
@grouped
def test_monte_carlo_agrees(mask, where):
    """Mean of the loss over 2500 draws, within three standard errors, which are small beside what is added."""
    X, y, w = problem(2, 4)
    how = Dropout(LogSum(0.5), mask, floor=1e-9)
    model, _, _, lane = layer(w, where, how, 0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([loss(model, X, y) for _ in range(2500)])
    v = 0.3 * lane.site.groups.scale / LogSum(0.5).eta(lane.norm())
    added = ridge(w, X, lane.site.groups, v)[0]
    wanted = loss(model.eval(), X, y).detach() + added
    error = float(draws.std()) / math.sqrt(len(draws))
    assert abs(float(draws.mean() - wanted)) < 3 * error < 0.3 * float(added)


@noisy
def test_moments_of_the_masks(mask):
    """Mean 1, variance (1−α)/α; four standard errors at five odds."""
    torch.manual_seed(0)
    count = 200_000
    keep = tensor(0.1, 0.3, 0.5, 0.9, 1.0)
    s = mask.draw(keep.expand(count, 5))
    v = (1 - keep) / keep
    assert ((s.mean(0) - 1).abs() <= 4 * (v / count).sqrt()).all()
    square = (s - 1).square()
    assert ((square.mean(0) - v).abs() <= 4 * square.std(0) / math.sqrt(count) + 1e-12).all()
    if isinstance(mask, Bernoulli):
        assert ((s == 0) | ((s - 1 / keep).abs() < 4 * EPS / keep)).all()


def test_gaussian_and_bernoulli_have_the_same_expected_gradient():
    """Each is within the noise of the exact one, and so of the other (adaptive_dropout 6.11): χ² of 8 entries."""
    X, y, w = problem(2, 4)
    penalty, lam = LogSum(0.5), 0.3
    for mask in (Bernoulli(), Gaussian()):
        model, *_ = layer(w, Elements(), Dropout(penalty, mask, floor=1e-9), lam)
        torch.manual_seed(0)
        draws = torch.stack([torch.autograd.grad(loss(model, X, y), model.weight)[0].flatten() for _ in range(2000)])
        exact = torch.autograd.grad(loss(model.eval(), X, y), model.weight)[0]
        exact = (exact + X.square().mean(0) * lam / penalty.eta(w.abs()) * w).flatten()
        off = draws.mean(0) - exact
        chi2 = off @ torch.linalg.solve(draws.T.cov(), off) * len(draws)
        assert float(chi2) < 26.1  # 99.9 % of χ² with 8 degrees of freedom
        assert float(off.norm()) < 0.2 * float((lam / penalty.eta(w.abs()) * w).norm())  # the draws can tell


# ---- AdaTikhonov and α -----------------------------------------------------------------------------------------


@every
@grouped
@pytest.mark.parametrize("lam", [0.3, 1e-6])
def test_adatikhonov_gradient_is_the_penalty_gradient(penalty, where, lam):
    """w(1−α)/α = λΩ'(r)·w/r, to rounding at any strength, zeros included."""
    w, g = randn(6, 4), randn(6, 4, seed=1)
    w[2], w[4, 1] = 0.0, 0.0
    model, optimizer, _, lane = layer(w, where, Dropout(penalty, Expected()), lam)
    model.weight.grad = torch.zeros_like(g)  # nothing to be lost in
    optimizer.step()
    groups = lane.site.groups
    r = groups.norm(w)
    pull = groups.spread((lam * groups.scale * penalty.slope(r) / r).nan_to_num(nan=0.0, posinf=0.0), w)
    rounding = KNOWN.get(type(penalty), 4 * EPS)
    close(optimizer.given[0], pull, rtol=rounding)
    model.weight.data.copy_(w)
    model.weight.grad = g.clone()
    optimizer.step()
    close(optimizer.given[0], g + pull, rtol=rounding, atol=rounding)
    assert torch.equal(model.weight.grad, g)  # the user's own gradient is left as it was


@pytest.mark.parametrize("lam", [1e-2, 1e-5, 1e-8])
def test_adatikhonov_keeps_small_strengths_in_float32(lam):
    w = torch.logspace(-3, 1, 30).view(5, 6)
    model, optimizer, *_ = layer(w, Elements(), Dropout(LogSum(2.0), Expected()), lam)
    model.weight.grad = torch.zeros_like(w)
    optimizer.step()
    close(optimizer.given[0], lam / (w + 2), rtol=1e-6)


def test_adatikhonov_reaches_the_stationary_point():
    """Orthogonal design, LogSum(2): w − b + λ/(w + 2) = 0; the forward pass is not touched."""
    b = tensor(3.0, 1.0, -2.0)[None]
    model, optimizer, _, lane = layer(b, Elements(), Dropout(LogSum(2.0), Expected()), 0.5)
    assert lane.noises == []
    for _ in range(300):
        model.weight.grad = model.weight.detach() - b
        optimizer.step()
    w = model.weight.detach()
    close(w - b, -0.5 * w.sign() / (w.abs() + 2), rtol=1e-12)


@every
def test_keep_probabilities_round_trip(penalty):
    """α = η/(η+λ), η = λα/(1−α), λΩ'(w) = w(1−α)/α."""
    r, lam = torch.logspace(-2, 0.5, 40, dtype=torch.float64), 0.3
    alpha = Dropout(penalty).keep(r, lam)
    eta = penalty.eta(r)
    free = eta.isinf()
    close(alpha, torch.where(free, 1.0, eta / (eta + lam)), rtol=4 * EPS)
    assert (alpha[free] == 1).all()
    assert (alpha.diff() >= 0).all()
    alpha, eta, r = alpha[~free], eta[~free], r[~free]
    lost = 16 * EPS / float((1 - alpha).min())  # what 1 − α cancels
    close(lam * alpha / (1 - alpha), eta, rtol=lost)
    close(r * (1 - alpha) / alpha, lam * penalty.slope(r), rtol=max(lost, KNOWN.get(type(penalty), 0)))


def test_published_keep_rules():
    """adaptive_dropout 3.1: Lp, L1, LogSum."""
    w, lam, e = torch.logspace(-3, 1, 20, dtype=torch.float64), 0.2, 0.7
    close(Dropout(Lp(0.5)).keep(w, lam), w**1.5 / (w**1.5 + lam), rtol=8 * EPS)
    close(Dropout(Lp(1.0)).keep(w, lam), w / (w + lam), rtol=4 * EPS)
    close(Dropout(LogSum(e)).keep(w, lam), w * (w + e) / (w * (w + e) + lam), rtol=4 * EPS)


# ---- curvature -------------------------------------------------------------------------------------------------


def extra(w, X, y, how, lam):
    """What dropout adds to the expected loss."""
    model, *_ = layer(w, Elements(), how, lam)
    mean, _ = expectation(model, how.mask, X, y)
    return float(mean - loss(model.eval(), X, y).detach())


def test_rescaling_a_column_by_c_multiplies_its_penalty_by_c_squared():
    X, y, w = problem(1, 1)
    how = Dropout(LogSum(0.5), Chosen(), floor=1e-9)
    one = extra(w, X, y, how, 0.3)
    for c in (0.1, 3.0, 10.0):
        assert extra(w, c * X, y, how, 0.3) == pytest.approx(c * c * one, rel=1e-11)


def test_curvature_undoes_h():
    """With h given, the added penalty is that of h = 1 for any scale of the columns."""
    X, y, w = problem(1, 5)
    X = X / X.square().mean(0).sqrt()  # h = 1
    wanted = float((0.3 * w.abs() / (w.abs() + 0.5)).sum() / 2)  # ½λΣw²/η
    for h in (1.0, 0.04, 25.0):
        how = Dropout(LogSum(0.5), Chosen(), floor=1e-9, curvature=h)
        assert extra(w, math.sqrt(h) * X, y, how, 0.3) == pytest.approx(wanted, rel=1e-11)


# ---- training --------------------------------------------------------------------------------------------------


def sparse_regression():
    """adaptive_dropout 7.3: n = 60, d = 10, unit-norm columns (h = 1 for a sum loss), LogSum(1), λ = .2."""
    X = randn(60, 10, seed=1)
    X = X / X.norm(dim=0)
    truth = torch.zeros(10, dtype=torch.float64)
    truth[:3] = tensor(3.0, -2.0, 1.5)
    return X, X @ truth + 0.05 * randn(60, seed=2)


def reweighted_ridge(X, y, penalty, lam, steps=500):
    """adaptive_dropout 4.1 on ½‖y − Xw‖²; every iterate, for its own laws."""
    w = torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
    eye = torch.eye(len(w), dtype=w.dtype)
    for _ in range(steps):
        yield w
        D = penalty.eta(w.abs()).sqrt()
        w = D * torch.linalg.solve(D[:, None] * (X.T @ X) * D + lam * eye, D * (X.T @ y))


@pytest.mark.parametrize("penalty", [Lp(0.3), Lp(0.5), Lp(1.0), Lp(1.5), LogSum(1.0)], ids=repr)
def test_reweighted_ridge_is_monotone_and_solves_f(penalty):
    """What training is compared with is itself right: F falls, zeros stay, at p = 1 the lasso's conditions hold."""
    X, y = sparse_regression()
    ws = torch.stack(list(reweighted_ridge(X, y, penalty, 0.2)))
    values = (X @ ws.T - y[:, None]).square().sum(0) / 2 + 0.2 * penalty.value(ws.abs()).sum(1)
    assert (values.diff() <= 1e-13 * values[0]).all()
    w = ws[-1]
    g, alive = X.T @ (X @ w - y), w.abs() > 1e-6
    close(g[alive], -0.2 * (penalty.slope(w.abs()) * w.sign())[alive], rtol=1e-6)
    if penalty == Lp(1.0):
        assert (g[~alive].abs() <= 0.2).all()
        assert int(alive.sum()) < 10


@noisy
def test_adaptive_dropout_learns_the_reweighted_ridge_solution(mask):
    """SGD at a decaying rate, 64 runs in the rows of one layer: 3 % on the support (adaptive_dropout 6.11)."""
    X, y = sparse_regression()
    penalty, lam, runs, steps = LogSum(1.0), 0.2, 64, 1500
    *_, known = reweighted_ridge(X, y, penalty, lam)
    start = torch.linalg.lstsq(X, y[:, None]).solution[:, 0].expand(runs, 10)
    model, optimizer, *_ = layer(start, Elements(), Dropout(penalty, mask), lam)
    torch.manual_seed(0)
    mean, count = torch.zeros(10, dtype=torch.float64), 0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + step / 150)
        optimizer.zero_grad()
        ((model(X) - y[:, None]).square().sum() / 2).backward()
        optimizer.step()
        if step >= steps // 2:
            mean, count = mean + model.weight.detach().mean(0), count + 1
    mean /= count
    alive = known.abs() > 1e-6
    assert torch.equal(alive, torch.arange(10) < 3)
    assert ((mean / known - 1).abs()[alive] < 0.03).all()
    # the penalty is seen: without it the solution is further off than the tolerance
    assert ((start[0] / known - 1).abs()[alive] > 0.03).any()
    assert (mean[~alive].abs() < 0.1).all()


def test_groups_are_dropped_together():
    seen = []
    model, _, _, lane = layer(randn(5, 4), Rows(), Dropout(Lp(1.0)), 2.0)
    model.register_forward_pre_hook(lambda module, _: seen.append(module._parameters["weight"].detach().clone()))
    w, keep = model.weight.detach().clone(), lane.keep()
    torch.manual_seed(0)
    for _ in range(200):
        model(randn(1, 4))
    ratios = torch.stack(seen) / w
    close(ratios, ratios[..., :1].expand_as(ratios), rtol=4 * EPS)
    dropped = ratios[..., 0] == 0
    close(ratios[..., 0], torch.where(dropped, 0.0, 1 / keep[:, 0]), rtol=4 * EPS)
    error = (keep[:, 0] * (1 - keep[:, 0]) / 200).sqrt()
    assert ((1 - dropped.double().mean(0) - keep[:, 0]).abs() < 4 * error).all()
    assert not torch.equal(dropped[:, 0], dropped[:, 1])  # and each row by itself


@noisy
def test_evaluation_is_deterministic_and_adapts_nothing(mask):
    """In eval mode the plain weights, no random number drawn, α untouched; training cannot tell it took place."""
    def go(evaluate):
        torch.manual_seed(0)
        model, optimizer, run, lane = layer(randn(5, 4), Elements(), Dropout(LogSum(0.5), mask), 0.5)
        x, plain = randn(8, 4), nn.Linear(4, 5, bias=False).double()
        for _ in range(5):
            if evaluate:
                keep, state = lane.keep(), torch.get_rng_state()
                model.eval()
                plain.weight.data.copy_(model.weight)
                assert torch.equal(model(x), plain(x))
                assert torch.equal(model(x), model(x))
                assert torch.equal(torch.get_rng_state(), state)
                assert torch.equal(lane.keep(), keep)
                model.train()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert run.clock.step == 5
        return model.weight.detach()

    torch.manual_seed(1)
    assert torch.equal(go(evaluate=True), go(evaluate=False))
    model, *_ = layer(randn(5, 4), Elements(), Dropout(LogSum(0.5), mask), 0.5)
    assert not torch.equal(model(randn(2, 4)), model(randn(2, 4)))  # the control: in training mode there is noise


def test_odds_follow_the_weights():
    """α is set anew from the weights before every forward pass, and from the schedule's strength."""
    model, optimizer, _, lane = layer(randn(5, 4), Elements(), Dropout(Lp(1.0)), winnow.Ramp(0.5, 4))
    for step in range(6):
        model(randn(2, 4))
        lam = 0.5 * min(step, 4) / 4
        w = model.weight.detach().abs()
        close(lane.keep(), w / (w + lam), rtol=4 * EPS)
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert not torch.equal(w, model.weight.detach().abs())


def test_no_strength_no_noise():
    model, *_ = layer(randn(5, 4), Elements(), Dropout(Lp(0.5)), 0.0)
    x = randn(3, 4)
    assert torch.equal(model(x), model.eval()(x))


def test_zeros_stay_silent():
    """A zero weight is noiseless and its gradient finite, for masks of any law."""
    for mask in (*NOISES.values(), Expected()):
        w = randn(5, 4)
        w[1], w[3, 2] = 0.0, 0.0
        model, optimizer, *_ = layer(w, Elements(), Dropout(Lp(0.5), mask), 0.5)
        model(randn(8, 4)).square().mean().backward()
        optimizer.step()
        assert torch.isfinite(model.weight).all()


# ---- the end ---------------------------------------------------------------------------------------------------


def test_prune_rule():
    """α < tol ⇔ η̂(w) < λ·tol/(1−tol); LogSum(2), λ = 1e-3, tol = .05: |w| < 2.6315e-5 (adaptive_dropout 6.13)."""
    edge = math.sqrt(1 + 1e-3 / 19) - 1
    assert edge == pytest.approx(2.6315e-5, rel=1e-4)
    w = edge * tensor(0.5, 1 - 1e-9, 1 + 1e-9, -0.999, -1.001, 2.0)[None]
    model, _, run, lane = layer(w, Elements(), Dropout(LogSum(2.0)), 1e-3)
    assert lane.doomed(1e-3).tolist() == [[True, True, False, True, False, False]]
    assert run.density() == pytest.approx(0.5)
    run.settle()
    assert (model.weight.detach() == 0).tolist() == [[True, True, False, True, False, False]]


@pytest.mark.parametrize("tolerance", [0.01, 0.05, 0.5])
@grouped
def test_tolerance(tolerance, where):
    """The rule for groups, their weight and the curvature counted: norms on both sides of its edge, near and far."""
    groups = where.bind((6, 6))
    edge = 0.2 * groups.scale / 4.0 * tolerance / (1 - tolerance)
    norms = edge * torch.logspace(-1, 1, groups.count, dtype=torch.float64).view(groups.gate_shape)
    w = groups.spread(norms / groups.norm(randn(6, 6)), randn(6, 6))
    *_, lane = layer(w, where, Dropout(Lp(1.0), tolerance=tolerance, curvature=4.0), 0.2)
    assert torch.equal(lane.doomed(0.2), norms < edge)
    assert 2 * int(lane.doomed(0.2).sum()) == groups.count
    assert not lane.doomed(0.0).any()


def test_settling_leaves_the_module_as_it_was_found():
    model, _, run, _ = layer(randn(5, 4), Elements(), Dropout(Lp(0.5)), 0.3)
    assert list(model.state_dict()) == ["weight"]
    run.settle()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert torch.equal(model(torch.ones(2, 4, dtype=torch.float64)), model(torch.ones(2, 4, dtype=torch.float64)))


def test_a_weight_that_is_never_dropped_is_said():
    model, optimizer, *_ = layer(randn(5, 4), Elements(), Dropout(Lp(0.5)), 0.3)
    model.eval()
    model(randn(2, 4)).sum().backward()
    with pytest.warns(WinnowWarning, match="training mode"):
        optimizer.step()
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(randn(2, 4)).sum().backward()
        optimizer.step()


BAD = [{"floor": 0.0}, {"floor": 1.0}, {"tolerance": 0.0}, {"curvature": 0.0}, {"curvature": math.nan}]
BAD += [{"mask": Expected(), "curvature": 4.0}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(PenaltyError):
        Dropout(Lp(0.5), **bad)
