"""Laws of variational dropout (spec/adaptive_dropout.md 3.1, 4.6, 6.8, 7.1): the KL, the noise, and the tensor beside w."""

import functools
import math
import warnings

import pytest
import scipy.integrate
import scipy.special
import torch
from lawbook import close, randn, tensor
from sklearn.datasets import load_digits
from torch import nn

import winnow
from winnow import Elements, Local, Rows, Variational, VariationalDropout, VariationalDropoutFit, WeightNoise
from winnow.errors import AttachError, GradientError, PenaltyError, WinnowWarning
from winnow.routes.variational import LIMIT, VariationalLane

EPS = torch.finfo(torch.float64).eps
FORMS = [Local(), WeightNoise()]
formed = pytest.mark.parametrize("form", FORMS, ids=repr)
parametrised = pytest.mark.parametrize("additive", [True, False], ids=["additive", "multiplicative"])


class Witness(torch.optim.SGD):
    """SGD that remembers the gradients it was given."""

    def step(self, closure=None):
        self.given = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def attach(model, how, lam=0.1, make=None, where=None):
    """(optimizer, run, lanes)."""
    optimizer = make(model.parameters()) if make else Witness(model.parameters(), lr=0.1)
    run = winnow.attach(model, optimizer, how=how, where=where or Elements(), when=lam, fused=False)
    assert all(isinstance(lane, VariationalLane) for lane in run._lanes)
    return optimizer, run, run._lanes


def linear(w, how, lam=0.1, make=None):
    model = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    model.weight.data.copy_(w)
    optimizer, run, (lane,) = attach(model, how, lam, make)
    return model, optimizer, run, lane


class Signs:
    """Stands for torch.randn_like: ξ = +1, −1, +1, …, whose mean over two draws is exact for quadratic losses."""

    def __init__(self):
        self.sign = -1.0

    def __call__(self, x):
        self.sign = -self.sign
        return torch.full_like(x, self.sign)


# ---- the KL ----------------------------------------------------------------------------------------------------


def kl(m):
    """E log|z + m| − E log|z|, z ~ N(0,1), m = |w|/σ, by quadrature."""
    def over(m):
        def f(z):
            return math.log(abs(z + m)) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return sum(scipy.integrate.quad(f, *ends, limit=400, epsabs=1e-13)[0] for ends in ((-40, -m), (-m, 40)))

    return over(m) - over(0.0)


def given(penalty, additive, w, sigma2, lam):
    """(gradient of w, of what is trained beside it) that the optimizer gets where the loss has none; the lane."""
    model, optimizer, _, lane = linear(w, Variational(additive=additive, penalty=penalty), lam)
    lane.trained.data.copy_(sigma2.log() if additive else (sigma2 / w**2).log())
    lane.noise.fired = True
    model.weight.grad = torch.zeros_like(w)
    optimizer.step()
    return *optimizer.given, lane


def cases():
    w = torch.logspace(-4, 1, 11, dtype=torch.float64)
    w, sigma2 = torch.meshgrid(torch.cat((w, -w)), torch.logspace(-3, 2, 11, dtype=torch.float64), indexing="ij")
    fits = (sigma2 / w**2).log().abs() < LIMIT
    return w[fits][None], sigma2[fits][None]


@parametrised
def test_gradients_are_those_of_the_exact_kl(additive):
    """∂KL/∂log = −ηf'/2, ∂KL/∂w = f'·w/σ² where σ is trained, f'(η) = D(√(η/2))/√(η/2), D by scipy."""
    (w, sigma2), lam = cases(), 0.3
    eta = w**2 / sigma2
    x = (eta / 2).sqrt()
    slope = torch.from_numpy(scipy.special.dawsn(x.numpy())) / x
    of_w, of_log, _ = given(VariationalDropout(), additive, w, sigma2, lam)
    close(of_log, -lam * eta * slope / 2, rtol=2e-13)
    close(of_w, lam * slope * w / sigma2 if additive else torch.zeros_like(w), rtol=2e-13)


@parametrised
def test_gradients_are_those_of_the_published_fit(additive):
    """By autograd through −KL = k1σ(k2 + k3 log a) − ½log(1 + 1/a) − k1, as its authors write it."""
    (w, sigma2), lam = cases(), 0.3
    w = w.requires_grad_()
    log = (sigma2.log() if additive else (sigma2 / w.detach() ** 2).log()).requires_grad_()
    log_a = log - (w**2).log() if additive else log
    fit = torch.sigmoid(1.87320 + 1.48695 * log_a) * 0.63576 - torch.log1p(torch.exp(-log_a)) / 2 - 0.63576
    want_w, want_log = torch.autograd.grad(-lam * fit.sum(), (w, log), allow_unused=True)
    of_w, of_log, _ = given(VariationalDropoutFit(), additive, w.detach(), sigma2, lam)
    close(of_log, want_log, rtol=1e-11)
    close(of_w, want_w if additive else torch.zeros_like(w), rtol=1e-11)


@pytest.mark.parametrize(("penalty", "error"), [(VariationalDropout(), 1e-9), (VariationalDropoutFit(), 0.0138)])
def test_energy_is_the_kl(penalty, error):
    """Against quadrature, from its value at w = 0; the fit is off by at most .0093 + .0043."""
    sigma2, ms = tensor(0.04)[None], (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0)
    w = 0.2 * tensor(*ms)[None]
    *_, lane = given(penalty, True, w, sigma2.expand_as(w), 0.0)
    lane.site.theta.data.copy_(w)
    lane.trained.data.copy_(sigma2.log().expand_as(w))
    wanted = tensor(*(kl(m) for m in ms))[None]
    close(lane.energy(), wanted, rtol=0, atol=error)


def test_both_parametrisations_have_the_same_kl():
    """The same energy, and gradients that are one another's by the chain rule, log a = log σ² − log w²."""
    w, sigma2 = cases()
    for penalty in (VariationalDropout(), VariationalDropoutFit()):
        (w1, log1, one), (w2, log2, two) = (given(penalty, additive, w, sigma2, 0.3) for additive in (True, False))
        close(log1, log2, rtol=1e-12)
        close(w1, w2 + log2 * (-2 / w), rtol=1e-12)
        for lane in (one, two):
            lane.site.theta.data.copy_(w)
        one.trained.data.copy_(sigma2.log())
        two.trained.data.copy_((sigma2 / w**2).log())
        close(one.energy(), two.energy(), rtol=1e-12)
        close(one.deviation(w).square(), two.deviation(w).square(), rtol=1e-12)
        assert torch.equal(one.doomed(1.0), two.doomed(1.0))
        assert 0 < int(one.doomed(1.0).sum()) < w.numel()


def test_the_kl_is_right_in_float32_at_its_ends():
    """Weights of 0 and 1e4, σ² from e^-20 to e^20: finite, and the limits −½ and 0 of ∂KL/∂log."""
    w = torch.tensor([0.0, 1e-20, 1e-3, 1.0, 1e4]).repeat(3, 1)
    model, optimizer, _, lane = linear(w, Variational(), 1.0)
    lane.trained.data.copy_(torch.tensor([-20.0, 0.0, 20.0])[:, None].expand(3, 5))
    lane.noise.fired = True
    model.weight.grad = torch.zeros_like(w)
    optimizer.step()
    of_w, of_log = optimizer.given
    assert torch.isfinite(of_w).all()
    assert torch.isfinite(of_log).all()
    assert (of_log[:, :2].abs() < 1e-30).all()
    close(of_log[0, 3:], torch.tensor([-0.5, -0.5]), rtol=1e-6)
    close(of_w[0, 3:], 1 / w[0, 3:], rtol=1e-6)


# ---- the noise -------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear, no bias": (lambda: nn.Linear(5, 3, bias=False), (4, 2, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 2, 5, 4)),
    "conv2d, strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (1, 4, 7, 7)),
    "conv2d, circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (1, 2, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2, padding=1), (2, 2, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 2)),
}
"""One line for a newcomer."""


def noisy_layer(name, form, additive):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model = make().double()
    _, _, (lane,) = attach(model, Variational(form, additive))
    lane.trained.data.copy_(randn(*lane.trained.shape, seed=1) - 1)
    return model, lane, randn(*shape, seed=2)


def sigma2_of(lane):
    log = lane.trained.detach().exp()
    return log if lane.route.additive else log * lane.site.theta.detach() ** 2


def output_variance(model, lane, x):
    """Σ_w (∂out/∂w)²σ_w², by the Jacobian: the law of both forms."""
    model.eval()
    J = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(model, {"weight": w}, (x,)), model.weight.detach()
    )
    out = model(x).detach()
    return out, (J.flatten(out.ndim) ** 2 @ sigma2_of(lane).flatten()).view(out.shape)


@pytest.mark.parametrize("name", LAYERS)
@parametrised
def test_local_noise_has_the_variance_of_weight_noise(name, additive, monkeypatch):
    model, lane, x = noisy_layer(name, Local(), additive)
    mean, variance = output_variance(model, lane, x)
    monkeypatch.setattr(torch, "randn_like", Signs())
    model.train()
    close(model(x) - mean, variance.sqrt(), rtol=1e-12, atol=1e-14)
    close(mean - model(input=x), variance.sqrt(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["linear", "conv2d, strided"])
@formed
@parametrised
def test_mean_and_variance_of_the_outputs(name, form, additive):
    """3000 draws: mean Wx and variance σ²x² of every pre-activation, the same for both forms (five standard errors)."""
    model, lane, x = noisy_layer(name, form, additive)
    mean, variance = output_variance(model, lane, x)
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([model(x) for _ in range(3000)])
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 3000).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / 3000)).all()  # a Gaussian's


def test_local_noise_is_drawn_for_every_example():
    """Two equal rows of a batch: the same pre-activations under weight noise, different ones locally."""
    x = randn(1, 5).expand(2, 5)
    for form in FORMS:
        model, *_ = linear(randn(3, 5), Variational(form, start=-1.0))
        out = model(x)
        assert torch.equal(out[0], out[1]) == (form == WeightNoise())


@parametrised
def test_gradients_through_the_local_noise_are_exact(additive):
    """Of w and of the log, by central differences at fixed noise."""
    model, lane, x = noisy_layer("conv2d", Local(), additive)

    def loss():
        torch.manual_seed(3)
        return model(x).square().mean()

    loss().backward()
    for leaf in (model.weight, lane.trained):
        flat, nudge = leaf.data.view(-1), 1e-6
        for index in range(0, flat.numel(), 7):
            ends = []
            for sign in (1, -1):
                flat[index] += sign * nudge
                ends.append(float(loss().detach()))
                flat[index] -= sign * nudge
            slope = (ends[0] - ends[1]) / (2 * nudge)
            assert slope == pytest.approx(float(leaf.grad.view(-1)[index]), rel=1e-6, abs=1e-8)


@formed
def test_dead_inputs_and_dead_weights_are_silent(form):
    """No noise from an exact zero, no NaN from √ at variance 0."""
    w = randn(3, 5)
    w[1] = 0.0
    for additive in (True, False):
        model, optimizer, _, lane = linear(w, Variational(form, additive, start=0.0))
        assert not model(randn(4, 5))[:, 1].any()
        model(torch.zeros(4, 5, dtype=torch.float64)).square().sum().backward()
        assert torch.isfinite(lane.trained.grad).all()
        optimizer.step()
        assert torch.isfinite(model.weight).all()
        assert torch.isfinite(lane.trained).all()


# ---- the penalty that it is ------------------------------------------------------------------------------------


@formed
@parametrised
def test_one_weight_gaussian_models_pay_the_scaled_penalty(form, additive, monkeypatch):
    """½h(w−b)² with N = 1/λ: stationary points of ½h(w−b)² + (1/N)Ω(√(Nh)·w), zero below √(h/N) = h|b| (3.1, 6.8).

    Exact expectations: the two signs of the noise, as two micro-batches.
    """
    monkeypatch.setattr(torch, "randn_like", Signs())
    lam, penalty, steps = 0.5, VariationalDropout(), 500
    h = tensor(0.5, 2.0).repeat_interleave(5)[:, None]
    edge = (lam / h).sqrt()
    b = edge * tensor(0.5, 0.8, -1.5, 2.0, 4.0).repeat(2)[:, None]
    make = functools.partial(torch.optim.Adam, betas=(0.9, 0.99))
    model, optimizer, _, lane = linear(b, Variational(form, additive, start=-1.0), lam, make)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        for _ in range(2):
            (h.T * (model(torch.ones(1, 1, dtype=torch.float64)) - b.T).square() / 4).sum().backward()
        optimizer.step()
    w = model.weight.detach()
    alive = b.abs() > edge
    grown = (h / lam).sqrt() * w.abs()
    pull = (h * lam).sqrt() * penalty.slope(grown) * w.sign()
    close((h * (w - b))[alive], -pull[alive], rtol=1e-7)
    # the deviation is its best: σ² = w²/η̂
    close(sigma2_of(lane)[alive], (w**2 / penalty.eta(grown))[alive], rtol=1e-6)
    assert (w[~alive].abs() < 0.02 * b[~alive].abs()).all()  # on its way, as log σ is to −∞
    assert torch.equal(lane.doomed(lam), ~alive)


# ---- what the user sees ----------------------------------------------------------------------------------------


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9, 4)).double()


@formed
@parametrised
def test_attaching_changes_nothing_that_is_seen(form, additive):
    """state_dict keys and values, eval outputs, parameters; noise in training mode only, drawn anew each time."""
    model, x = network(), randn(3, 1, 5, 5)
    keys, before, held = list(model.state_dict()), model.eval()(x), list(model.parameters())
    _, run, _ = attach(model, Variational(form, additive))
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), held, strict=True))
    state = torch.get_rng_state()
    assert torch.equal(model(x), before)
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert not torch.equal(model(x), before)
    assert not torch.equal(model(x), model(x))
    run.release()
    assert torch.equal(model(x), before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(not p._backward_hooks and not p._post_accumulate_grad_hooks for p in model.parameters())


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
}


def descend(model, optimizer, steps, each=lambda step: None):
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(randn(3, 1, 5, 5, seed=step)).square().mean().backward()
        each(step)
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@formed
@parametrised
def test_resume_in_the_middle_is_bit_exact(make, form, additive, tmp_path):
    def begin():
        model = network()
        return model, *attach(model, Variational(form, additive), winnow.Ramp(0.1, 10), make)

    model, optimizer, _, lanes = begin()
    descend(model, optimizer, range(4))
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "at4")
    descend(model, optimizer, range(4, 12))
    twin, other, run, twins = begin()
    weights, state = torch.load(tmp_path / "at4", weights_only=True)
    twin.load_state_dict(weights)
    other.load_state_dict(state)
    assert run.clock.step == 4
    descend(twin, other, range(4, 12))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(lanes, twins, strict=True):
        assert torch.equal(a.trained, b.trained)
        assert float(a.trained.detach().std()) > 0


def test_weight_decay_of_the_optimizer_touches_nothing_of_ours():
    ends = []
    for decay in (0.0, 0.5):
        make = functools.partial(torch.optim.AdamW, weight_decay=decay)
        model, optimizer, _, lane = linear(randn(3, 5), Variational(start=-1.0), make=make)
        for seed in range(3):
            optimizer.zero_grad()
            micro(model, seed)
            optimizer.step()
        ends.append((model.weight.detach(), lane.trained.detach()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@formed
@parametrised
def test_the_model_compiles_as_one_graph(form, additive):
    """fullgraph=True, trained and evaluated; equal to the eager run on the same random numbers."""
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = network()
        optimizer, _, lanes = attach(model, Variational(form, additive), make=OPTIMIZERS["Adam"])
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        descend(run, optimizer, range(4))
        ends.append([*(p.detach() for p in model.parameters()), *(lane.trained.detach() for lane in lanes)])
        model.eval()
        x = randn(3, 1, 5, 5)
        assert torch.equal(run(x), run(x))
        close(run(x), model(x), rtol=1e-12)
    for a, b in zip(*ends, strict=True):
        close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, None])
def test_the_fused_path_is_left_alone(fused):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = winnow.attach(model, optimizer, how=Variational(), where=Elements(), when=0.1, fused=fused)
    descend(model, optimizer, range(2))
    twin = network()
    other, *_ = attach(twin, Variational(), make=lambda p: torch.optim.AdamW(p, lr=0.01))
    descend(twin, other, range(2))
    assert run.clock.step == 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


# ---- the gradient beside the weight's --------------------------------------------------------------------------


def micro(model, seed, factor=1.0):
    torch.manual_seed(seed)
    (model(randn(3, 5, seed=seed)).square().mean() * factor).backward()


def beside(model, optimizer, lane):
    """What the optimizer is given for what is trained beside w, less the KL's share."""
    with torch.no_grad():
        num, den = lane.ratio()
        own = -0.1 / 2 * num * den * lane.penalty.dual_slope_ratio(num, den)
    optimizer.step()
    return optimizer.given[1] - own


@formed
@parametrised
def test_micro_batches_add_up(form, additive):
    """Two backward passes give the sum of what each gives alone; the step clears it."""
    def fresh():
        return linear(randn(3, 5), Variational(form, additive, start=-1.0))

    parts = []
    for seed in (1, 2):
        model, optimizer, _, lane = fresh()
        micro(model, seed)
        parts.append(beside(model, optimizer, lane))
    model, optimizer, _, lane = fresh()
    micro(model, 1)
    micro(model, 2)
    close(beside(model, optimizer, lane), parts[0] + parts[1], rtol=1e-10, atol=1e-14)
    assert lane.trained.grad is None


@pytest.mark.parametrize("to_none", [True, False])
@formed
def test_a_batch_that_was_skipped_leaves_no_trace(form, to_none):
    """zero_grad in the user's loop clears our gradient with the weight's, NaN and all."""
    given = []
    for skipped in (False, True):
        model, optimizer, _, lane = linear(randn(3, 5), Variational(form, start=-1.0))
        if skipped:
            micro(model, 7)
            optimizer.zero_grad(set_to_none=to_none)
            micro(model, 8, math.nan)
            if not to_none:
                with pytest.raises(GradientError):
                    optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
        micro(model, 1)
        given.append(beside(model, optimizer, lane))
    assert torch.equal(*given)


@formed
def test_clipping_reaches_what_is_beside_the_weight(form):
    whole, clipped = [], []
    for bound, to in ((math.inf, whole), (1e-3, clipped)):
        model, optimizer, _, lane = linear(randn(3, 5), Variational(form, start=-1.0))
        micro(model, 1)
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), bound))
        to += [beside(model, optimizer, lane), norm]
    close(clipped[0], whole[0] * (1e-3 / whole[1]), rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@formed
def test_a_gradient_scaler_changes_nothing(kind, fused, form):
    """Scales are powers of two; the third batch overflows and is skipped by both runs."""
    make = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=fused),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=fused),
    }[kind]
    ends = []
    for scaled in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        model, optimizer, run, lane = linear(randn(3, 5).float(), Variational(form, start=-1.0), make=make)
        for step in range(5):
            if step == 2 and not scaled:
                continue
            optimizer.zero_grad()
            torch.manual_seed(step)
            loss = model(randn(3, 5, seed=step).float()).square().mean()
            scaler.scale(loss * (math.inf if step == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert run.clock.step == 4
        ends.append((model.weight.detach(), lane.trained.detach()))
    for a, b in zip(*ends, strict=True):
        close(a, b, rtol=1e-6)


def test_tied_weights_draw_in_both_places():
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)}).double()
    model["b"].weight = model["a"].weight
    optimizer, _, (lane,) = attach(model, Variational(start=-1.0))
    x = randn(3, 4)
    torch.manual_seed(0)
    out = model["b"](model["a"](x))
    assert not torch.equal(out, x @ model["a"].weight.T @ model["a"].weight.T)
    out.square().mean().backward()
    before = lane.trained.detach().clone()
    optimizer.step()
    assert (lane.trained != before).all()
    assert model["b"].weight is model["a"].weight


# ---- the end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.01, 0.05, 0.5])
@parametrised
def test_prune_rule(tolerance, additive):
    """α = 1/(1+a) < tol ⇔ log a > log((1−tol)/tol) (6.13)."""
    edge = math.log((1 - tolerance) / tolerance)
    log_a = edge + tensor(-3.0, -1e-9, 1e-9, 3.0)[None]
    w = tensor(0.3, -2.0, 1e-3, 5.0)[None]
    model, _, run, lane = linear(w, Variational(additive=additive, tolerance=tolerance))
    lane.trained.data.copy_(log_a + (w**2).log() if additive else log_a)
    assert lane.doomed(0.1).tolist() == [[False, False, True, True]]
    assert run.density() == pytest.approx(0.5)
    run.settle()
    assert (model.weight == 0).tolist() == [[False, False, True, True]]


@formed
@parametrised
def test_what_is_cut_stays_cut(form, additive):
    model, optimizer, run, lane = linear(randn(3, 5), Variational(form, additive, start=-1.0), make=OPTIMIZERS["Adam"])
    micro(model, 0)
    optimizer.step()
    run.cut(0.4)
    dead = model.weight == 0
    assert int(dead.sum()) == 9
    for seed in range(3):
        optimizer.zero_grad()
        micro(model, seed)
        optimizer.step()
    assert torch.equal(model.weight == 0, dead)
    assert not lane.deviation(model.weight)[dead].any()
    assert lane.deviation(model.weight)[~dead].all()


@parametrised
def test_what_has_no_gradient_stays_in_range(additive):
    """Inputs that are always zero: log σ², or log a, drifts up to its limit and no further."""
    model, optimizer, _, lane = linear(randn(3, 5), Variational(additive=additive, start=9.0), make=OPTIMIZERS["SGD"])
    optimizer.param_groups[0]["lr"] = 50.0
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.zeros(2, 5, dtype=torch.float64)).sum().backward()
        optimizer.step()
        assert (lane.trained.abs() <= LIMIT * (2 if additive else 1)).all()
        assert torch.isfinite(model.weight).all()


# ---- refusals --------------------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A linear layer that does something else."""

    def forward(self, x):
        return 2 * super().forward(x)


STRANGERS = {
    "Embedding": (lambda: nn.Embedding(4, 3), "weight"),
    "Bilinear": (lambda: nn.Bilinear(2, 2, 3), "weight"),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 2, 2), "weight"),
    "Doubled": (lambda: Doubled(3, 2), "weight"),
    "bias of a Linear": (lambda: nn.Linear(3, 2), "bias"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_local_noise_refuses_what_it_does_not_know(name):
    make, pattern = STRANGERS[name]
    model = make()
    with pytest.raises(AttachError, match=r"local reparametrisation.*WeightNoise"):
        attach(model, Variational(), where={pattern: Elements()})
    assert not model._forward_hooks
    optimizer, _, (lane,) = attach(model, Variational(WeightNoise()), where={pattern: Elements()})
    assert lane.steps_weight
    assert optimizer.param_groups[0]["params"]


def test_one_stranger_among_the_weights_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 2), nn.Bilinear(2, 2, 3))
    with pytest.raises(AttachError, match=r"1\.weight"):
        attach(model, Variational())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_groups_are_refused():
    with pytest.raises(AttachError, match="single weight"):
        attach(nn.Linear(3, 2), Variational(), where=Rows())


BAD = [{"tolerance": 0.0}, {"tolerance": 1.0}, {"start": math.nan}, {"start": 11.0}, {"form": "local"}]
BAD += [{"penalty": winnow.L1}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(PenaltyError):
        Variational(**bad)


@formed
def test_a_weight_that_is_never_perturbed_is_said(form):
    model, optimizer, *_ = linear(randn(3, 5), Variational(form))
    model.eval()
    micro(model, 0)
    with pytest.warns(WinnowWarning, match="training mode"):
        optimizer.step()
    model, optimizer, *_ = linear(randn(3, 5), Variational(form))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        micro(model, 0)
        optimizer.step()


# ---- a short run -----------------------------------------------------------------------------------------------


@functools.cache
def digits():
    X, y = load_digits(return_X_y=True)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    X, y = torch.tensor(X, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]
    return X[:1400], y[:1400], X[1400:], y[1400:]


@formed
def test_digits(form):
    """64-100-10, λ = 1/N after a ramp, Adam: at most an eighth of the weights, above 90 % on the test part."""
    X, y, test_X, test_y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    when = winnow.Ramp(1 / len(X), 200)
    run = winnow.attach(model, optimizer, how=Variational(form), where=Elements(), when=when, fused=False)
    epochs = 25
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / epochs)
        for batch in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
    run.settle()
    zeros = sum(int((layer.weight == 0).sum()) for layer in (model[0], model[2]))
    accuracy = float((model.eval()(test_X).argmax(1) == test_y).float().mean())
    assert zeros / 7400 > 0.875
    assert accuracy > 0.92
