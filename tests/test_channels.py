"""Units gated as one group across weights: the same objective, on every route, and every zero can be taken out."""

import copy
import io
import warnings

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

import winnow
from winnow import Channels, Decay, Dropout, Expected, Gating, LogSum, Lp, Masking, Rows, Toward
from winnow.errors import AttachError, TraceError, WinnowWarning
from winnow.trace import call, leaves
from winnow.units import find_units

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
ROUTES = {
    "gating": Gating(depth=3),
    "gating LogSum": Gating(LogSum(1.0)),
    "decay": Decay(Lp(0.5)),
    "dropout": Dropout(LogSum(2.0)),
    "dropout expected": Dropout(Lp(1.0), Expected()),
    "latent": winnow.Latent(),
}
every_route = pytest.mark.parametrize("route", ROUTES)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def train(model, example, optimizer, steps, target=0.5):
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sum((out - target).square().mean() for out in leaves(call(model, example))).backward()
        optimizer.step()


@every_route
@every_optimizer
@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV2", "nanoGPT", "SwiGLU"])
def test_to_a_target_and_every_zero_comes_out(name, route, optimizer):
    model, example = zoo.build(name)
    model.train()
    opt = OPTIMIZERS[optimizer](model.parameters())
    run = winnow.attach(model, opt, how=ROUTES[route], where=Channels(example), when=Toward(density=0.5, steps=30))
    keys = list(model.state_dict())
    train(model, example, opt, 30)
    run.settle()
    largest = max(layer.size / layer.groups for layer in run.layers()) / sum(layer.size for layer in run.layers())
    assert abs(run.density() - 0.5) <= max(0.01, largest + 1e-9)
    assert list(model.state_dict()) == keys
    layers = find_units(model, example)
    by_name = {layer.name: layer for layer in layers}
    small, proof = winnow.compact(model, example)
    for layer in run.layers():
        member = by_name[layer.name].members[0]
        kept = dict(small.named_parameters())[member.name].shape[member.axis]
        assert kept == layer.alive * member.indices.shape[1], "every zero came out"
    assert proof.proved


def test_as_a_parametrisation_by_hand():
    """D = 2 with one gate per neuron over weight and bias, against autograd through the product."""
    torch.manual_seed(0)
    x, y, lam, lr = torch.randn(16, 5).double(), torch.randn(16, 2).double(), 0.02, 0.05
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    twin = copy.deepcopy(model)
    v = [nn.Parameter(twin[0].weight.detach().clone()), nn.Parameter(twin[0].bias.detach().clone())]
    s = nn.Parameter(torch.ones(7).double())
    rest = [twin[2].weight, twin[2].bias]
    hand = torch.optim.SGD([*v, s, *rest], lr=lr, momentum=0.9)
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    winnow.attach(model, opt, how=Gating(depth=2), where=Channels(x), when=lam)
    for _ in range(200):
        opt.zero_grad()
        (model(x) - y).square().mean().backward()
        opt.step()
        hand.zero_grad()
        hidden = torch.tanh(F.linear(x, v[0] * s[:, None], v[1] * s))
        loss = (F.linear(hidden, *rest) - y).square().mean()
        penalty = lam / 2 * (v[0].square().sum() + v[1].square().sum() + s.square().sum())
        (loss + penalty).backward()
        hand.step()
    torch.testing.assert_close(model[0].weight, v[0] * s[:, None], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model[0].bias, v[1] * s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model[2].weight, rest[0], rtol=1e-9, atol=1e-12)


@every_optimizer
def test_units_of_one_weight_are_its_rows(optimizer):
    """Where a unit has slices of one weight only, Channels and Rows are the same run, bit for bit."""
    x = torch.randn(8, 6)
    outcomes = []
    for where in (Channels(x), {"0.weight": Rows()}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 3))
        opt = OPTIMIZERS[optimizer](model.parameters())
        run = winnow.attach(model, opt, how=Gating(depth=3), where=where, when=0.01)
        train(model, x, opt, 25)
        outcomes.append((copy.deepcopy(model.state_dict()), str(run.certificate())))
    for a, b in zip(outcomes[0][0].values(), outcomes[1][0].values(), strict=True):
        assert torch.equal(a, b)
    assert outcomes[0][1] == outcomes[1][1]


@every_route
@every_optimizer
def test_resuming_is_bit_exact(route, optimizer):
    def start():
        model, example = zoo.build("U-Net")
        model.train()
        opt = OPTIMIZERS[optimizer](model.parameters())
        when = winnow.Ramp(0.02, 8)
        return model, example, opt, when

    model, example, opt, when = start()
    winnow.attach(model, opt, how=ROUTES[route], where=Channels(example), when=when)
    train(model, example, opt, 4)
    file = io.BytesIO()
    torch.save([model.state_dict(), opt.state_dict()], file)
    train(model, example, opt, 4)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again, example, opt2, when = start()
    again.load_state_dict(weights)
    winnow.attach(again, opt2, how=ROUTES[route], where=Channels(example), when=when)
    opt2.load_state_dict(state)
    train(again, example, opt2, 4)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_weights_that_belong_to_units_in_part_train_on():
    """Half of a layer's rows are pinned (they are an output); those are stepped as without Winnow."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 3)

        def forward(self, x):
            left, right = self.a(x).split(4, -1)
            return self.b(torch.tanh(left)), right

    torch.manual_seed(0)
    model, x = Half(), torch.randn(6, 4)
    twin = copy.deepcopy(model)
    opts = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin)]
    run = winnow.attach(model, opts[0], how=Gating(depth=2), where=Channels(x), when=0.05)
    for m, opt in zip((model, twin), opts, strict=True):
        train(m, x, opt, 10)
    assert torch.equal(model.a.weight[4:], twin.a.weight[4:])
    assert not torch.allclose(model.a.weight[:4], twin.a.weight[:4])
    assert run.layers()[0].groups == 4
    run.settle()
    assert set(opts[0].state_dict()["state"]) <= {0, 1, 2, 3}


def test_the_masks_of_a_unit_agree():
    """One draw for weight and bias of a neuron, a fresh one in every forward pass."""
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    winnow.attach(model, opt, how=Dropout(Lp(1.0)), where=Channels(x), when=2.0)
    model[0].register_forward_hook(lambda m, _, out: seen.append(out.detach().clone()))
    plain = F.linear(x, model[0].weight, model[0].bias).detach()
    for _ in range(20):
        model(x)
    ratios = torch.stack(seen) / plain
    spread = ratios.max(1).values - ratios.min(1).values
    assert float(spread.abs().max()) < 1e-4, "all of a neuron's output is scaled by one number"
    assert len({tuple(r[0].tolist()) for r in ratios}) > 5


@pytest.mark.parametrize("count", [None, winnow.Parameters()], ids=["entries", "parameters"])
def test_some_layers_alone(count):
    """What `only` leaves out stays whole, and counts as it should."""
    model, example = zoo.build("nanoGPT")
    every = find_units(model, example)
    opt = OPTIMIZERS["sgd"](model.parameters())
    where = Channels(example, count=count, only=["*mlp*"])
    run = winnow.attach(model, opt, how=Gating(depth=3), where=where, when=Toward(density=0.8, steps=30))
    assert {layer.name for layer in run.layers()} == {layer.name for layer in every if "mlp" in layer.name}
    assert 0 < len(run.layers()) < len(every)
    train(model, example, opt, 30)
    run.settle()
    small, proof = winnow.compact(model, example)
    assert proof.proved and proof.parameters[1] < proof.parameters[0]
    if count is not None:
        assert proof.parameters[1] / proof.parameters[0] == pytest.approx(run.density(), abs=1e-6)
    left = {layer.name: layer.count for layer in find_units(small, example)}
    for layer in every:
        assert (left[layer.name] == layer.count) == ("mlp" not in layer.name)
    with pytest.raises(AttachError, match=r"matches none of these units: .*mlp"):
        wrong = Channels(example, only=["*mlp*", "*mpl*"])
        winnow.attach(zoo.build("nanoGPT")[0], opt, how=Gating(depth=3), where=wrong, when=0.1)


def test_masking_needs_single_weights():
    model, example = zoo.build("MLP")
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachError, match=r"single weights|Elements"):
        winnow.attach(model, opt, how=Masking(), where=Channels(example), when=0.1)


BAD = {
    "frozen": (lambda m: m[0].bias.requires_grad_(False), None, r"'0\.bias' is frozen"),
    "not held": (None, lambda m: torch.optim.SGD([m[0].weight, *m[3].parameters()], lr=0.1), r"'0\.bias' is not held"),
    "two rates": (
        None,
        lambda m: torch.optim.SGD(
            [
                {"params": [p for p in m.parameters() if p.ndim > 1]},
                {"params": [p for p in m.parameters() if p.ndim == 1], "lr": 0.01},
            ],
            lr=0.1,
        ),
        "learning rates",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    change, build, says = BAD[case]
    model, example = zoo.build("MLP")
    if change:
        change(model)
    opt = (build or (lambda m: torch.optim.SGD(m.parameters(), lr=0.1)))(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AttachError, match=says):
        winnow.attach(model, opt, how=Gating(depth=3), where=Channels(example), when=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not opt.state


def test_a_model_that_cannot_be_read():
    model = zoo.Deciding()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TraceError, match=r"torch\.export cannot read Deciding"):
        winnow.attach(model, opt, how=Gating(depth=3), where=Channels(torch.randn(2, 4)), when=0.1)


def test_compacting_before_settling_warns(recwarn):
    """And after settling, or release, it does not; copies and files know nothing of it."""
    for leave in ("settle", "release"):
        model, example = zoo.build("MLP")
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        run = winnow.attach(model, opt, how=Gating(depth=2), where=Channels(example), when=0.0)
        with pytest.warns(WinnowWarning, match="not settled"):
            winnow.compact(model, example)
        recwarn.clear()
        winnow.compact(copy.deepcopy(model), example)
        getattr(run, leave)()
        winnow.compact(model, example)
        assert not recwarn.list


@every_route
@pytest.mark.parametrize("where", ["units", "rows"])
def test_masks_say_what_settle_will_zero(where, route):
    """Before settling, after it, and for weights that several layers of units share."""
    model, example = zoo.build("nanoGPT")
    model.train()
    opt = OPTIMIZERS["adamw"](model.parameters())
    rule = Channels(example) if where == "units" else Rows()
    run = winnow.attach(model, opt, how=ROUTES[route], where=rule, when=1e-3)
    before = {theta: theta.detach() != 0 for theta in run.masks()}
    train(model, example, opt, 5)
    run.cut(0.4)
    masks = run.masks()
    share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert 0.2 < share < 0.7 and all(mask.shape == theta.shape for theta, mask in masks.items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WinnowWarning)
        run.settle()
    for theta, mask in masks.items():
        assert torch.equal((theta.detach() != 0)[before[theta]], mask[before[theta]])
    assert all(torch.equal(mask, masks[theta]) for theta, mask in run.masks().items())


class Running(nn.Module):
    """Keeps the running mean of its units in a buffer, updated in place and replaced."""

    def __init__(self, replaced):
        super().__init__()
        self.a, self.b, self.replaced = nn.Linear(12, 20), nn.Linear(20, 3), replaced
        self.register_buffer("mean", torch.zeros(20))

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.replaced:
            self.mean = self.mean + h.detach().mean(0)
        else:
            self.mean.add_(h.detach().mean(0))
        return self.b(h)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_buffer_that_follows_the_units_is_no_weight_of_theirs(replaced):
    torch.manual_seed(0)
    model, x = Running(replaced), torch.randn(64, 12)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = winnow.attach(model, optimizer, how=Gating(depth=3), where=winnow.Channels(x[:2]), when=winnow.Toward(0.5, 40))
    for _ in range(40):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    run.settle()
    assert sum(int((row != 0).any()) for row in model.a.weight) == 10


@pytest.mark.parametrize("units", [True, False])
def test_units_are_not_told_to_be_units(units, recwarn):
    """A normalised layer ignores the scale of its weight: rows are warned to be cut as units, units are not."""

    def block(i, o, groups=1, size=3):
        return nn.Conv2d(i, o, size, padding=size // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU()

    torch.manual_seed(0)
    layers = [*block(3, 16), *block(16, 16), *block(16, 16, 16), *block(16, 24, size=1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
    x, y = torch.randn(32, 3, 8, 8), torch.randint(0, 4, (32,))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    where = winnow.Channels(x[:2]) if units else winnow.Rows()
    winnow.attach(model, optimizer, how=winnow.Gating(depth=3), where=where, when=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert any("a normalisation follows" in str(said.message) for said in recwarn) is not units
