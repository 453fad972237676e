"""HOW meets PyTorch: the model stays as it is, the optimizer stays the user's, and a checkpoint holds everything.

Every law holds for every route under both optimizers; a new route joins `ROUTES` with one line.
"""

import copy
import functools
import io
import itertools
import warnings

import pytest
import torch
from torch import nn

import winnow
from winnow import (
    Balanced,
    Columns,
    Decay,
    Dropout,
    Elements,
    Expected,
    Gating,
    Gaussian,
    Hyperbolic,
    Latent,
    LogSum,
    Lp,
    Masking,
    Rows,
    Truncated,
    Variational,
    WeightNoise,
)
from winnow.errors import WinnowError, WinnowWarning

ROUTES = {
    "gating elements": (Gating(depth=3), Elements()),
    "gating rows": (Gating(depth=2), Rows()),
    "gating columns, LogSum": (Gating(LogSum(1.0)), Columns(weighted=True)),
    "gating full-size": (Gating(depth=3, start=Balanced()), Elements()),
    "decay": (Decay(Lp(0.5)), Elements()),
    "decay rows": (Decay(Lp(1.0), ridge=0.01), Rows()),
    "decay, η remembered": (Decay(Lp(0.5), refresh=3), Elements()),
    "decay adaptive": (Decay(Lp(0.5), metric="adaptive"), Elements()),
    "masking": (Masking(), Elements()),
    "hyperbolic": (Hyperbolic(alpha=2.0), Elements()),
    "latent": (Latent(), Elements()),
    "latent rows": (Latent(winnow.L1), Rows(weighted=True)),
    "dropout": (Dropout(LogSum(2.0)), Elements()),
    "dropout Gaussian rows": (Dropout(Lp(0.5), Gaussian()), Rows()),
    "dropout expected": (Dropout(Lp(1.0), Expected()), Elements()),
    "variational": (Variational(), Elements()),
    "variational weight noise": (Variational(WeightNoise(), additive=False), Elements()),
}
OPTIMIZERS = {
    "sgd": lambda params, **options: torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, **options}),
    "adamw": lambda params, **options: torch.optim.AdamW(params, **{"lr": 0.01, "weight_decay": 0.1, **options}),
}
PAIRS = [pair for pair in itertools.product(ROUTES, OPTIMIZERS) if pair != ("decay adaptive", "sgd")]
FACTORED = {route for route, (how, _) in ROUTES.items() if isinstance(how, (Gating, Latent, Masking))}
"""The optimizer steps factors, or a latent weight, in the weight's place."""
HALF = [route for route, (how, _) in ROUTES.items() if not isinstance(how, Decay)]
"""Decay refuses half-precision weights: `test_bad_input`."""
NOISY = {"dropout", "dropout Gaussian rows", "variational", "variational weight noise"}
"""The forward pass draws noise in training mode."""
every_pair = pytest.mark.parametrize(("route", "optimizer"), PAIRS)
every_route = pytest.mark.parametrize("route", ROUTES)


seed = torch.default_generator.manual_seed
"""`torch.manual_seed` without the devices that are not here, for each of which it writes down the stack: much faster."""


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Trial:
    """A model, its optimizer and a run; the user's own loop, on batches that depend on the step only."""

    def __init__(
        self, route, optimizer, *, when=None, dtype=torch.float64, net=Net, fused=False, params=None, **options
    ):
        seed(0)
        self.model = net().to(dtype)
        params = self.model.parameters() if params is None else params(self.model)
        self.optimizer = OPTIMIZERS[optimizer](params, **options)
        self.dtype, self.taken = dtype, 0
        self.run = None
        if route is not None:
            self.attach(route, when, fused)

    def attach(self, route, when=None, fused=False):
        how, where = ROUTES[route]
        ramp = winnow.Ramp(0.03, 8, 0.002)
        self.run = winnow.attach(self.model, self.optimizer, how=how, where=where, when=when or ramp, fused=fused)

    def loss(self, step=None, rows=slice(None)):
        step = self.taken if step is None else step
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=generator).to(self.dtype)
        y = torch.randn(8, 3, generator=generator).to(self.dtype)
        seed(step)  # masks depend on the step only, too
        return (self.model(x[rows]) - y[rows]).square().mean()

    def step(self, *args):
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step(*args)
        self.taken += 1

    def steps(self, count):
        for _ in range(count):
            self.step()
        return self


def saved(*parts):
    """state_dicts through a file and back, as `torch.load` reads them by default."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b, where="", **close):
    """Equal bit for bit, all the way down (or `close` to the tolerances given); says where not."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor), where
        assert a.dtype == b.dtype, where
        if close and a.is_floating_point():
            torch.testing.assert_close(a, b, **close, msg=lambda text: f"{where}: {text}")
        else:
            assert torch.equal(a, b), f"{where}: off by {(a.double() - b.double()).abs().max()}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: {list(a)} != {list(b)}"
        for key in a:
            same(a[key], b[key], f"{where}.{key}", **close)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{index}]", **close)
    elif close and isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-9), where
    else:
        assert a == b, f"{where}: {a} != {b}"


def differ(a, b):
    try:
        same(a, b)
    except AssertionError:
        return True
    return False


def everything(trial):
    """All that training has produced; a deep copy."""
    return copy.deepcopy([trial.model.state_dict(), trial.optimizer.state_dict()])


def penalised(trial):
    return [theta.detach() for theta in trial.model.parameters() if theta.ndim >= 2]


# ---- the model stays as it is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "dtype"),
    [
        *itertools.product(ROUTES, [torch.float64, torch.float32]),
        *itertools.product(HALF, [torch.bfloat16, torch.float16]),
    ],
    ids=str,
)
def test_attach_leaves_the_model_bitwise(route, dtype):
    trial = Trial(None, "adamw", dtype=dtype)
    model, x = trial.model.eval(), torch.randn(4, 6).to(dtype)
    model[0].weight.data[1:3, 2] = 0.0
    model[0].weight.data[4] = 0.0
    model[0].weight.data[0, 1] = -1e-7
    before, out, tensors = copy.deepcopy(model.state_dict()), model(x), list(model.parameters())
    trial.attach(route)
    same(model.state_dict(), before)
    assert type(model) is Net
    assert type(model[0]) is nn.Linear
    assert all(a is b for a, b in zip(model.parameters(), tensors, strict=True))
    assert torch.equal(model(x), out)
    assert not any(theta.grad is not None for theta in tensors)
    if route not in NOISY:
        assert torch.equal(model.train()(x), out)


def test_a_start_that_draws_its_own_weights_says_so_by_its_function():
    trial = Trial(None, "sgd")
    before = penalised(trial)[0].clone()
    winnow.attach(trial.model, trial.optimizer, how=Gating(depth=3, start=Truncated()), where=Elements(), when=0.01)
    assert not torch.equal(penalised(trial)[0], before)


@every_pair
def test_settle_releases_the_optimizer(route, optimizer):
    """Afterwards it is torch's own: nothing of ours is left, and it trains as any optimizer in that state does."""
    trial = Trial(route, optimizer, weight_decay=0.2).steps(4)
    trial.run.cut(0.5)
    before = copy.deepcopy(trial.model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WinnowWarning)  # four steps are too few for zeros
        assert trial.run.settle() is trial.run
    same(trial.model.state_dict(), before)
    assert trial.run.density() <= 0.5
    assert "winnow" not in repr(trial.optimizer.state_dict())
    hooks = [value for name, value in vars(trial.optimizer).items() if name.endswith("_hooks")]
    hooks += [value for m in trial.model.modules() for name, value in vars(m).items() if name.endswith("_hooks")]
    assert len(hooks) > 5
    assert not any(hooks)
    assert all("params" in group and group["weight_decay"] == 0.2 for group in trial.optimizer.param_groups)

    twin = Trial(None, optimizer, weight_decay=0.2)
    twin.taken = trial.taken
    twin.model.load_state_dict(trial.model.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(trial.optimizer.state_dict()))
    same(everything(twin.steps(3)), everything(trial.steps(3)))
    with pytest.raises(WinnowError, match="settled"):
        trial.run.settle()
    trial.attach(route)  # and can be attached again
    trial.steps(2)


def test_weight_decay_is_in_force_again_after_settle():
    trial = Trial("gating rows", "adamw", when=0.0, weight_decay=0.3).steps(2)
    trial.run.settle()
    weight = trial.model[0].weight
    before = weight.detach().clone()
    for theta in trial.model.parameters():
        theta.grad = torch.zeros_like(theta)
    trial.optimizer.step()
    same(weight.detach(), before * (1 - 0.01 * 0.3))


@every_pair
def test_release_leaves_the_weights(route, optimizer):
    trial = Trial(route, optimizer).steps(3)
    before = copy.deepcopy(trial.model.state_dict())
    trial.run.release()
    same(trial.model.state_dict(), before)
    assert "winnow" not in repr(trial.optimizer.state_dict())


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 3])
@every_pair
def test_resume_is_bit_exact_in_the_middle_of_a_ramp(route, optimizer, at):
    trial = Trial(route, optimizer).steps(at)
    model, state = saved(trial.model, trial.optimizer)
    trial.steps(4)

    again = Trial(None, optimizer)
    again.model.load_state_dict(model)
    again.attach(route)
    again.optimizer.load_state_dict(state)
    again.taken = at
    assert again.run.clock.step == at
    again.steps(4)
    same(everything(again), everything(trial))
    assert again.run.clock == trial.run.clock
    assert again.run.strength == trial.run.strength > 0.002
    assert 0 < trial.run.clock.step < 8, "not in the middle of the ramp"


@pytest.mark.parametrize(
    ("route", "optimizer", "dtype"),
    [(*pair, torch.bfloat16) for pair in PAIRS if pair[0] in HALF]
    + [("gating rows", name, torch.float16) for name in OPTIMIZERS],
)
def test_resume_of_half_precision_weights_keeps_float32_factors(route, optimizer, dtype):
    options = {"dtype": dtype, **({"eps": 1e-4} if optimizer == "adamw" else {})}
    trial = Trial(route, optimizer, **options).steps(3)
    model, state = saved(trial.model, trial.optimizer)
    factors = [entry["winnow"] for entry in state["state"].values() if "winnow" in entry]
    values = [part["value"] for bag in factors for part in bag.values() if isinstance(part, dict)]
    assert bool(values) == bool(trial.run._lanes[0].coordinates())
    assert bool(values) >= (route in FACTORED)
    assert all(value.dtype == torch.float32 for value in values)
    trial.steps(4)

    again = Trial(None, optimizer, **options)
    again.model.load_state_dict(model)
    again.attach(route)
    again.optimizer.load_state_dict(state)
    again.taken = 3
    same(everything(again.steps(4)), everything(trial))
    assert all(theta.dtype == dtype for theta in again.model.parameters())
    assert all(bool(torch.isfinite(theta).all()) for theta in again.model.parameters())


@pytest.mark.parametrize("order", ["optimizer last", "optimizer first"])
@every_pair
def test_resume_into_an_attached_model_in_either_order(route, optimizer, order):
    trial = Trial(route, optimizer).steps(3)
    model, state = saved(trial.model, trial.optimizer)
    trial.steps(2)
    again = Trial(route, optimizer)
    loads = [lambda: again.model.load_state_dict(model), lambda: again.optimizer.load_state_dict(state)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", WinnowWarning)  # the weights fit the factors: nothing to warn of
        for load in loads if order == "optimizer last" else reversed(loads):
            load()
        again.taken = 3
        again.steps(2)
    same(everything(again), everything(trial))


@every_pair
def test_cut_zeros_stay_zero_through_training_and_checkpoints(route, optimizer):
    trial = Trial(route, optimizer).steps(2)
    trial.run.cut(0.4)
    zeros = [theta == 0 for theta in penalised(trial)]
    assert 0.1 < trial.run.density() <= 0.4
    trial.steps(2)
    model, state = saved(trial.model, trial.optimizer)
    trial.steps(3)
    again = Trial(None, optimizer)
    again.model.load_state_dict(model)
    again.attach(route)
    again.optimizer.load_state_dict(state)
    again.taken = 4
    again.steps(3)
    same(everything(again), everything(trial))
    for theta, zero in zip(penalised(again), zeros, strict=True):
        assert bool((theta[zero] == 0).all())
        assert bool((theta[~zero] != 0).any())


@every_pair
def test_a_schedules_memory_is_in_the_checkpoint(route, optimizer):
    def live(trial, epochs):
        for _ in range(epochs):
            trial.steps(2)
            trial.run.feedback(float(trial.loss().detach()))
        return trial

    when = winnow.Feedback(epochs=8, initial=1e-2, delta=1.5, ceiling=1.0)
    trial = live(Trial(route, optimizer, when=when), 3)
    model, state = saved(trial.model, trial.optimizer)
    again = Trial(None, optimizer)
    again.model.load_state_dict(model)
    again.attach(route, when)
    again.optimizer.load_state_dict(state)
    again.taken = trial.taken
    assert again.run.clock == trial.run.clock
    assert again.run.phase == trial.run.phase == "epoch 4"
    same(everything(live(again, 2)), everything(live(trial, 2)))
    assert again.run.clock.memory["epoch"] == 5
    assert again.run.strength != 1e-2


@every_pair
def test_a_state_dict_in_memory_holds(route, optimizer):
    """As with any torch optimizer its tensors are the live ones, its numbers are not; a deep copy is a checkpoint."""
    trial = Trial(route, optimizer).steps(2)
    held = trial.optimizer.state_dict()
    kept, weights = copy.deepcopy(held), copy.deepcopy(trial.model.state_dict())
    trial.steps(2)
    trial.run.cut(0.5)
    trial.steps(1)
    same(held["param_groups"], kept["param_groups"])
    # back to the copy, as often as wanted: loading neither shares nor changes it
    ends = []
    for _ in range(2):
        trial.model.load_state_dict(weights)
        trial.optimizer.load_state_dict(copy.deepcopy(kept))  # torch itself goes on with the tensors it is given
        trial.taken = 2
        ends.append(everything(trial.steps(3)))
    same(*ends)
    fresh = Trial(route, optimizer).steps(5)
    same(ends[0], everything(fresh))


@every_pair
def test_loading_weights_after_attach_starts_the_factors_again(route, optimizer):
    other = {name: value + 0.1 for name, value in Net().double().state_dict().items()}
    for before in (0, 2):
        trial = Trial(route, optimizer, when=1e-9).steps(before)
        trial.model.load_state_dict(other)
        for group in trial.optimizer.param_groups:
            group["lr"] = 1e-12
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trial.step()
        said = [str(w.message) for w in said if "changed outside" in str(w.message)]
        assert len(said) == (2 if route in FACTORED else 0)  # one for each weight
        for text in said:
            assert f"step {before}" in text
            assert "starts again from the new weights" in text
        for name, value in trial.model.state_dict().items():
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-10)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trial.step()


def test_a_weight_changed_while_it_had_no_gradient_is_noticed_later():
    trial = Trial("gating rows", "sgd").steps(1)
    with torch.no_grad():
        trial.model[0].weight.mul_(0.5)
    wanted = trial.model[0].weight.detach().clone()
    trial.loss().backward()
    trial.model[0].weight.grad = None
    trial.optimizer.step()
    assert torch.equal(trial.model[0].weight, wanted)
    trial.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.warns(WinnowWarning, match=r"0\.weight"):
        trial.step()
    torch.testing.assert_close(trial.model[0].weight.detach(), wanted)


def test_a_cut_by_hand_is_no_change_from_outside():
    trial = Trial("gating elements", "adamw").steps(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WinnowWarning)
        trial.run.cut(0.5)
        trial.steps(2)


# ---- the loop stays as it is -----------------------------------------------------------------------------------------


@every_pair
def test_schedulers_made_before_or_after_attach(route, optimizer):
    """Equal to setting learning rate and momentum by hand, wherever the scheduler was made."""

    def cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=10)

    rates, trials = [], {}
    for made in ("before", "after"):
        trial = Trial(None, optimizer)
        scheduler = cycle(trial.optimizer) if made == "before" else None
        trial.attach(route)
        scheduler = scheduler or cycle(trial.optimizer)
        rates = []
        for _ in range(4):
            group = trial.optimizer.param_groups[0]
            rates.append({key: group[key] for key in ("lr", "momentum", "betas") if key in group})
            trial.step()
            scheduler.step()
        trials[made] = trial
    same(everything(trials["before"]), everything(trials["after"]))
    by_hand = Trial(route, optimizer)
    for rate in rates:
        by_hand.optimizer.param_groups[0].update(rate)
        by_hand.step()
    assert len({rate["lr"] for rate in rates}) == 4
    same(by_hand.model.state_dict(), trials["after"].model.state_dict())
    assert by_hand.run.clock == trials["after"].run.clock


@every_pair
def test_clipping_sees_the_weights_gradients(route, optimizer):
    """Clipping at the weights' own gradient norm times c is training on c times the loss."""
    clipped, scaled, free = Trial(route, optimizer), Trial(route, optimizer), Trial(route, optimizer)
    for _ in range(4):
        for trial, factor in ((clipped, 1.0), (scaled, 0.25)):
            trial.optimizer.zero_grad()
            (factor * trial.loss()).backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in clipped.model.parameters()]))
        found = nn.utils.clip_grad_norm_(clipped.model.parameters(), 0.25 * (float(norm) + 1e-6))
        torch.testing.assert_close(found, norm)
        for trial in (clipped, scaled):
            trial.optimizer.step()
            trial.taken += 1
    same(everything(clipped), everything(scaled), rtol=1e-9, atol=1e-12)
    free.steps(4)
    assert differ(free.model.state_dict(), scaled.model.state_dict())


@pytest.mark.parametrize(("route", "optimizer"), [pair for pair in PAIRS if pair[0] != "variational"])
def test_two_micro_batches_are_one_batch(route, optimizer):
    """`Local` noise is drawn for each example, so that batches of another size draw other numbers."""
    whole, halves = Trial(route, optimizer).steps(4), Trial(route, optimizer)
    for _ in range(4):
        halves.optimizer.zero_grad(set_to_none=False)
        for rows in (slice(0, 4), slice(4, 8)):
            (halves.loss(rows=rows) / 2).backward()
        halves.optimizer.step()
        halves.taken += 1
    same(everything(halves), everything(whole), rtol=1e-9, atol=1e-11)


@every_pair
def test_steps_leave_the_gradients_alone(route, optimizer):
    trial = Trial(route, optimizer).steps(2)
    trial.optimizer.zero_grad()
    trial.loss().backward()
    before = [theta.grad.clone() for theta in trial.model.parameters()]
    tensors = [theta.grad for theta in trial.model.parameters()]
    trial.optimizer.step()
    assert all(theta.grad is grad for theta, grad in zip(trial.model.parameters(), tensors, strict=True))
    same([theta.grad for theta in trial.model.parameters()], before)


@pytest.mark.parametrize("hand", ["to the kernel", "unscaled by hand", "to the loop"])
@every_pair
def test_gradient_scaler(route, optimizer, hand):
    """Scaling by a power of two changes no bit, and an infinite gradient skips exactly one step."""
    options = {"dtype": torch.float32, "fused": hand != "to the loop", "weight_decay": 0.25}
    plain, scaled = Trial(None, optimizer, **options), Trial(None, optimizer, **options)
    for trial in (plain, scaled):
        trial.attach(route)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(trial, poison=False):
        trial.optimizer.zero_grad()
        loss = trial.loss()
        scaler.scale(loss * float("inf") if poison else loss).backward()
        if hand == "unscaled by hand":
            scaler.unscale_(trial.optimizer)
        scaler.step(trial.optimizer)
        scaler.update()

    for k in range(5):
        if k == 2:
            before, clock = everything(scaled), scaled.run.clock
            step(scaled, poison=True)
            assert scaler.get_scale() == 512.0
            same(everything(scaled), before)
            assert scaled.run.clock == clock
        step(scaled)
        scaled.taken += 1
        plain.step()
    same(everything(scaled), everything(plain), **({} if optimizer == "sgd" else {"rtol": 1e-5, "atol": 1e-8}))
    assert scaled.run.clock.step == 5


@every_pair
def test_gradients_that_a_kernel_unscales_are_left_unscaled(route, optimizer):
    """As torch's fused kernels leave them for any weight: schedules and certificates read them after the step."""
    plain, scaled = (Trial(route, optimizer, dtype=torch.float32, fused=False) for _ in range(2))
    for group in scaled.optimizer.param_groups:
        group["fused"] = True
    scaled.optimizer._step_supports_amp_scaling = True
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for trial in (plain, scaled):
        loss = trial.loss()
        (loss if trial is plain else scaler.scale(loss)).backward()
    plain.optimizer.step()
    scaler.step(scaled.optimizer)
    same([p.grad for p in scaled.model.parameters()], [p.grad for p in plain.model.parameters()])


@pytest.mark.parametrize("keyword", [False, True])
@every_pair
def test_closures(route, optimizer, keyword):
    plain, closed = Trial(route, optimizer).steps(4), Trial(route, optimizer)
    seen = []
    for _ in range(4):

        def closure():
            assert [id(p) for g in closed.optimizer.param_groups for p in g["params"]] == [
                id(p) for p in closed.model.parameters()
            ]
            closed.optimizer.zero_grad()
            loss = closed.loss()
            loss.backward()
            seen.append(float(loss.detach()))
            return loss

        loss = closed.optimizer.step(closure=closure) if keyword else closed.optimizer.step(closure)
        assert float(loss.detach()) == seen[-1]
        closed.taken += 1
    assert len(seen) == 4
    same(everything(closed), everything(plain))


@every_pair
def test_parameter_groups_keep_their_own_settings(route, optimizer):
    def split(*settings):
        return lambda model: [
            {"params": list(layer.parameters()), **own}
            for layer, own in zip((model[0], model[2]), settings, strict=True)
        ]

    one, two = Trial(route, optimizer), Trial(route, optimizer, params=split({}, {}))
    same(one.steps(3).model.state_dict(), two.steps(3).model.state_dict())
    still = Trial(route, optimizer, params=split({}, {"lr": 0.0}))
    frozen, before = Trial(None, optimizer), copy.deepcopy(still.model[2].state_dict())
    frozen.model[2].requires_grad_(False)
    frozen.attach(route)
    same(still.steps(3).model[2].state_dict(), before, rtol=1e-14, atol=0)  # of the factors' product
    if route not in NOISY:  # a dropped last layer changes the first one's gradients
        same(frozen.steps(3).model[0].state_dict(), still.model[0].state_dict(), rtol=1e-12, atol=1e-14)
    fast = Trial(route, optimizer, params=split({}, {"lr": 0.02})).steps(3)
    assert differ(fast.model[2].state_dict(), one.model[2].state_dict())
    assert [group["lr"] for group in fast.optimizer.param_groups][1] == 0.02


class Tied(nn.Module):
    """Input and output share their table, as language models do."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.last = nn.Linear(6, 6, bias=False)
        self.last.weight = self.first.weight
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.last(self.first(x).tanh()))


@every_pair
def test_tied_weights_are_one_weight_and_stay_tied(route, optimizer):
    trial = Trial(route, optimizer, net=Tied)
    assert [layer.name for layer in trial.run.layers()] == ["first.weight", "out.weight"]
    trial.steps(4)
    assert trial.model.first.weight is trial.model.last.weight
    assert list(trial.model.state_dict()) == ["first.weight", "last.weight", "out.weight", "out.bias"]
    model, state = saved(trial.model, trial.optimizer)
    trial.steps(2)
    again = Trial(None, optimizer, net=Tied)
    again.model.load_state_dict(model)
    again.attach(route)
    again.optimizer.load_state_dict(state)
    again.taken = 4
    same(everything(again.steps(2)), everything(trial))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WinnowWarning)
        trial.run.settle()
    assert trial.model.first.weight is trial.model.last.weight


@every_pair
def test_frozen_parameters_are_left_out(route, optimizer):
    trial = Trial(None, optimizer)
    trial.model[0].weight.requires_grad_(False)
    before = trial.model[0].weight.detach().clone()
    trial.attach(route)
    assert [layer.name for layer in trial.run.layers()] == ["2.weight"]
    trial.steps(3)
    assert torch.equal(trial.model[0].weight, before)


@every_pair
def test_a_weight_without_gradient_rests_for_the_step(route, optimizer):
    """As in torch: it does not move, nor does anything the optimizer remembers of it; from the first step on, too."""
    trial = Trial(route, optimizer)
    for rest in (True, False, True, True, False):
        before, memory = everything(trial)
        trial.optimizer.zero_grad()
        trial.loss().backward()
        if rest:
            for theta in trial.model[0].parameters():
                theta.grad = None
        trial.optimizer.step()
        trial.taken += 1
        after, now = everything(trial)
        assert torch.equal(after["0.weight"], before["0.weight"]) == rest
        assert torch.equal(after["0.bias"], before["0.bias"]) == rest
        assert not torch.equal(after["2.weight"], before["2.weight"])
        if rest:
            for index in (0, 1):
                same(now["state"].get(index, {}), memory["state"].get(index, {}))
    assert trial.run.clock.step == 5
    trial.optimizer.zero_grad()
    trial.optimizer.step()  # no gradient at all
    assert all(torch.isfinite(theta).all() for theta in trial.model.parameters())


class Counting(torch.optim.Optimizer):
    """Gradient descent that counts in its groups, as schedule-free and Prodigy do."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "k": 0})
        for group in self.param_groups:
            group["ticks"] = torch.zeros(())

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["ticks"] += 1
            group["mean"] = group.get("mean", 0.0) + group["lr"] / group["k"]
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["n"] = state.get("n", 0) + 1
                    p.add_(p.grad + group["weight_decay"] * p, alpha=-group["lr"] / group["k"])


@pytest.mark.parametrize("route", [route for route in ROUTES if route != "decay adaptive"])
def test_what_an_optimizer_counts_in_its_groups_survives(route, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "counting", Counting)
    trial = Trial(route, "counting", params=lambda m: [{"params": m[0].parameters()}, {"params": m[2].parameters()}])
    trial.optimizer.param_groups[1]["lr"] = 0.05
    ticks = [group["ticks"] for group in trial.optimizer.param_groups]
    trial.steps(3)
    assert all(group["ticks"] is tick for group, tick in zip(trial.optimizer.param_groups, ticks, strict=True))
    for group in trial.optimizer.param_groups:
        assert group["k"] == 3
        assert float(group["ticks"]) == 3
        assert group["mean"] == pytest.approx(group["lr"] * (1 + 1 / 2 + 1 / 3))
    model, state = saved(trial.model, trial.optimizer)
    again = Trial(None, "counting", params=lambda m: [{"params": m[0].parameters()}, {"params": m[2].parameters()}])
    again.model.load_state_dict(model)
    again.attach(route)
    again.optimizer.load_state_dict(state)
    again.taken = 3
    same(everything(again.steps(2)), everything(trial.steps(2)))


class Bare(nn.Sequential):
    """No parameter but penalised ones."""

    def __init__(self):
        super().__init__(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))


@pytest.mark.parametrize("optimizer", ["adamw", "counting"])
@pytest.mark.parametrize("route", [route for route in ROUTES if route != "decay adaptive"])
def test_a_decoupled_or_unknown_decay_touches_no_penalised_weight(route, optimizer, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "counting", Counting)
    with_decay = Trial(route, optimizer, net=Bare, weight_decay=0.5)
    without = Trial(route, optimizer, net=Bare, weight_decay=0.0)
    same(with_decay.steps(4).model.state_dict(), without.steps(4).model.state_dict())
    same(with_decay.optimizer.state_dict()["state"], without.optimizer.state_dict()["state"])
    assert with_decay.optimizer.param_groups[0]["weight_decay"] == 0.5


class Ridged(Trial):
    """The L2 penalty in the loss instead of in the optimizer."""

    strength = 0.5

    def loss(self, step=None, rows=slice(None)):
        return super().loss(step, rows) + self.strength / 2 * sum(w.square().sum() for w in self.model.parameters())


COUPLED = {
    "sgd": torch.optim.SGD,
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": functools.partial(torch.optim.Adam, betas=(0.8, 0.9)),
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("optimizer", COUPLED)
@pytest.mark.parametrize("route", ROUTES)
def test_a_coupled_decay_is_l2_on_the_weight(route, optimizer, monkeypatch):
    """On factors too: the loss's L2 goes through the chain rule, the optimizer's decay of a factor would not."""
    if route == "decay adaptive" and optimizer != "adam":
        pytest.skip("this route needs Adam's second moments")
    monkeypatch.setitem(OPTIMIZERS, "coupled", COUPLED[optimizer])
    decayed = Trial(route, "coupled", net=Bare, lr=0.02, weight_decay=Ridged.strength).steps(6)
    told = Ridged(route, "coupled", net=Bare, lr=0.02).steps(6)
    bare = Trial(route, "coupled", net=Bare, lr=0.02).steps(6)
    same(decayed.model.state_dict(), told.model.state_dict(), rtol=1e-9, atol=1e-12)
    assert differ(decayed.model[0].weight.detach(), bare.model[0].weight.detach())
    a, b = decayed.run.certificate(decayed.loss), told.run.certificate(told.loss)
    assert a.residual_active == pytest.approx(b.residual_active, rel=1e-7)
    assert a.loss == pytest.approx(b.loss, rel=1e-7)
    assert a.loss > float(decayed.loss().detach())


@every_route
def test_the_losss_own_gradient_is_left_after_a_step_with_decay(route):
    optimizer = "adamw" if route == "decay adaptive" else "sgd"
    trial, bare = (Trial(route, optimizer, net=Bare, weight_decay=wd).steps(1) for wd in (0.5, 0.0))
    same([p.grad for p in trial.model.parameters()], [p.grad for p in bare.model.parameters()])


def test_an_optimizer_that_maximizes_is_refused():
    with pytest.raises(WinnowError, match="maximizes"):
        Trial("gating rows", "sgd", maximize=True)


@every_pair
def test_the_optimizers_own_decay_still_acts_on_the_others(route, optimizer):
    trial, dense = Trial(route, optimizer, weight_decay=0.5), Trial(None, optimizer, weight_decay=0.5)
    bare = Trial(None, optimizer, weight_decay=0.0)
    for each in (trial, dense, bare):
        each.model[2].bias.grad = torch.full_like(each.model[2].bias, 0.1)
        each.optimizer.step()
    same(trial.model[2].bias.detach(), dense.model[2].bias.detach())
    assert differ(trial.model[2].bias.detach(), bare.model[2].bias.detach())


# ---- what may go wrong inside a step ---------------------------------------------------------------------------------


class Tripping(Counting):
    trip = False

    def step(self, closure=None):
        if self.trip:
            raise KeyboardInterrupt
        super().step(closure)


@pytest.mark.parametrize("route", ["gating rows", "decay", "masking", "dropout expected"])
def test_an_interrupted_step_can_be_taken_again(route, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "tripping", Tripping)
    trial, smooth = Trial(route, "tripping").steps(2), Trial(route, "tripping").steps(3)
    before = everything(trial)
    trial.optimizer.trip = True
    with pytest.raises(KeyboardInterrupt):
        trial.step()
    same(everything(trial), before)  # what is saved now is what was before the step
    trial.optimizer.trip = False
    same(everything(trial.steps(1)), everything(smooth))


class Twice(torch.optim.SGD):
    """Looks at the loss twice, as sharpness-aware minimisers and line searches do."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            closure()
        return super().step()


def test_an_optimizer_that_looks_twice_is_refused():
    trial = Trial(None, "sgd")
    trial.optimizer = Twice(trial.model.parameters(), lr=0.1)
    trial.attach("gating rows")
    before = everything(trial)

    def closure():
        trial.optimizer.zero_grad()
        loss = trial.loss()
        loss.backward()
        return loss

    with pytest.raises(WinnowError, match="Twice looks at the loss more than once"):
        trial.optimizer.step(closure)
    same(everything(trial), before)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.lstm(x[:, None])[0][:, -1])


def test_dropout_reaches_a_recurrent_layers_weights():
    trial = Trial("dropout", "sgd", net=Recurrent, when=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trial.steps(2)
    x = torch.randn(3, 6).double()
    lstm = trial.model.lstm
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    trial.model.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    trial.model.train()
    trial.run.release()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


class Wrapper(nn.Module):
    """A user's own module may be called anything."""

    def __init__(self):
        super().__init__()
        self.base_module = nn.Linear(6, 3)
        self.module = nn.Linear(3, 3)

    def forward(self, x):
        return self.module(self.base_module(x))


def test_names_survive_wrappers():
    model = Wrapper()
    for outer in (model, torch.compile(model), nn.DataParallel(model)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = winnow.attach(outer, optimizer, how=Decay(), where={"base_module.weight": Rows()}, when=0.1)
        assert [layer.name for layer in run.layers()] == ["base_module.weight"]
        run.release()
    run = winnow.attach(model, optimizer, how=Decay(), where={"module.weight": Rows()}, when=0.1)
    assert run.layers()[0].size == 9


# ---- torch.compile ---------------------------------------------------------------------------------------------------


class Counted:
    """A backend that runs what it is given and counts how often it is asked."""

    def __init__(self):
        self.compiled = 0

    def __call__(self, graph, example):
        self.compiled += 1
        return graph.forward


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


afresh = pytest.mark.usefixtures("dynamo")


@afresh
@every_route
def test_the_model_compiles_whole(route):
    """`fullgraph=True`, with no compilation per step though the strength changes at each, and the same numbers."""
    plain, compiled = Trial(route, "adamw"), Trial(route, "adamw")
    owner, backend = compiled.model, Counted()
    compiled.model = torch.compile(owner, fullgraph=True, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WinnowWarning)
        plain.steps(6)
        compiled.steps(6)
    assert 1 <= backend.compiled <= 2
    compiled.model = owner
    same(everything(compiled), everything(plain))
    x = torch.randn(8, 6).double()
    run, whole = compiled.run, torch.compile(owner, fullgraph=True, backend=backend)
    assert torch.equal(whole(x), whole(x)) == (route not in NOISY)
    run.release()
    assert torch.equal(whole(x), owner(x)), "noise outlives the run"


@afresh
def test_the_default_backend_compiles_dropout():
    trial = Trial("dropout", "sgd", dtype=torch.float32, when=0.5)
    owner = trial.model
    trial.model = torch.compile(owner, fullgraph=True)
    trial.steps(3)
    x = torch.randn(8, 6)
    assert not torch.equal(trial.model(x), trial.model(x))
    owner.eval()
    torch.testing.assert_close(trial.model(x), owner(x))


@afresh
def test_a_model_compiled_and_run_before_attach_is_reported():
    """Dynamo does not look for hooks again; dropout would silently do nothing."""
    trial = Trial(None, "sgd")
    trial.model, owner = torch.compile(trial.model, backend="eager"), trial.model
    trial.steps(1)
    trial.model, compiled = owner, trial.model
    trial.attach("dropout")
    trial.model = compiled
    with pytest.warns(WinnowWarning, match="not dropped"):
        trial.step()


COMPILED = [("gating rows", "adamw"), ("decay", "sgd"), ("dropout expected", "sgd")]


@afresh
@pytest.mark.parametrize(("route", "optimizer"), COMPILED)
def test_a_compiled_step_is_right(route, optimizer):
    """Compiled is torch's part, around our hooks; through attach and release, without a compilation per step."""
    plain, compiled = Trial(None, optimizer), Trial(None, optimizer)
    backend = Counted()
    step = torch.compile(compiled.optimizer.step, backend=backend)

    def both(count):
        plain.steps(count)
        for _ in range(count):
            compiled.optimizer.zero_grad()
            compiled.loss().backward()
            step()
            compiled.taken += 1

    both(2)
    for trial in (plain, compiled):
        trial.attach(route)
    both(3)
    compilations = backend.compiled
    both(4)
    assert backend.compiled == compilations > 0
    assert compiled.run.clock == plain.run.clock
    assert compiled.run.clock.step == 7
    for trial in (plain, compiled):
        trial.run.release()
    both(2)
    # Adam's compiled bias correction is float32, with or without us
    close = {"rtol": 1e-12, "atol": 1e-14} if optimizer == "sgd" else {"rtol": 1e-3, "atol": 1e-6}
    same(compiled.model.state_dict(), plain.model.state_dict(), **close)
    assert differ(plain.model.state_dict(), Trial(None, optimizer).steps(11).model.state_dict())


@afresh
def test_a_step_compiled_whole_is_refused():
    trial = Trial("gating rows", "adamw")
    before = everything(trial)
    trial.loss().backward()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="without fullgraph=True"):
        torch.compile(trial.optimizer.step, fullgraph=True, backend="eager")()
    same(everything(trial), before)
    trial.optimizer.step()
