"""What cannot work is refused by name before anything is changed: both sides of the mistake, and what to try next."""

import copy
import math
import warnings

import pytest
import torch
from test_host import ROUTES, Net, Trial, every_pair, every_route, everything, same, saved
from torch import nn

import winnow
from winnow import (
    Axes,
    Balanced,
    Blocks,
    Columns,
    Decay,
    Dropout,
    Elements,
    Expected,
    Gating,
    Heads,
    LogSum,
    Lp,
    Masking,
    Rows,
    Toward,
)
from winnow.errors import (
    AttachError,
    CheckpointError,
    GradientError,
    GroupError,
    PenaltyError,
    ScheduleError,
    WinnowError,
)

NAN, INF = math.nan, math.inf


class Zoo(nn.Module):
    """A model with one of each kind of weight."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 5)
        self.fc2 = nn.Linear(5, 3)
        self.conv = nn.Conv2d(2, 4, 3)
        self.table = nn.Embedding(7, 4)
        self.sparse_table = nn.Embedding(7, 4, sparse=True)
        self.bag = nn.EmbeddingBag(7, 4, sparse=True)
        self.waves = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64))
        self.codes = nn.Parameter(torch.arange(6).view(2, 3), requires_grad=False)
        self.still = nn.Parameter(torch.randn(3, 3), requires_grad=False)
        self.broken = nn.Parameter(torch.full((2, 2), NAN))
        self.lazy = nn.LazyLinear(3)
        self.elsewhere = nn.Linear(4, 4)


def zoo():
    """A model and an optimizer that has taken a step already, so that there is something to damage."""
    torch.manual_seed(0)
    model = Zoo()
    held = [p for name, p in model.named_parameters() if not name.startswith(("elsewhere", "lazy"))]
    optimizer = torch.optim.AdamW(held, lr=0.01, weight_decay=0.1)
    for theta in (*model.fc1.parameters(), *model.fc2.parameters(), *model.conv.parameters()):
        theta.grad = torch.ones_like(theta)
    optimizer.step()
    return model, optimizer


def picture(model, optimizer):
    """All that an attach could change: tensors, their order, the optimizer's state and groups, and every hook."""
    hooks = {
        f"{index}.{name}": len(value)
        for index, owner in enumerate([optimizer, *model.modules()])
        for name, value in vars(owner).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
    }
    lazy = nn.parameter.UninitializedTensorMixin
    tensors = {name: p.detach().nan_to_num(9e9) for name, p in model.named_parameters() if not isinstance(p, lazy)}
    order = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    state = [(id(p), entry) for p, entry in optimizer.state.items()]
    grads = [None if p.grad is None else (id(p.grad), p.grad) for p in model.parameters()]
    kept = copy.deepcopy((tensors, groups, state, grads))
    return [*kept, order, hooks, [id(p) for p in model.parameters()]]


def refused(kind, needles, model, optimizer, **words):
    """attach raises `kind`, says all `needles`, and leaves everything as it was."""
    before = picture(model, optimizer)
    words = {"how": Gating(depth=3), "where": {"fc1.weight": Rows()}, "when": 0.1} | words
    with pytest.raises(kind) as error:
        winnow.attach(model, optimizer, **words)
    same(picture(model, optimizer), before)
    message = str(error.value)
    assert isinstance(error.value, WinnowError)
    for needle in needles:
        assert needle in message, f"{needle!r} is not in {message!r}"
    # and nothing stands in the way of a better attempt
    winnow.attach(model, optimizer, how=Gating(depth=3), where={"fc2.weight": Rows()}, when=0.1)


WHERE = {
    "matches nothing": ({"fc3.weight": Rows()}, AttachError, ["'fc3.weight'", "nearest", "fc1.weight", "fc2.weight"]),
    "matches nothing, glob": ({"fc?.wieght": Rows()}, AttachError, ["'fc?.wieght'", "nearest", "fc1.weight"]),
    "in two rules": (
        {"fc*.weight": Rows(), "*1.weight": Elements()},
        AttachError,
        ["'fc1.weight'", "'fc*.weight'", "'*1.weight'", "make them disjoint"],
    ),
    "not in the optimizer": ({"elsewhere.weight": Rows()}, AttachError, ["'elsewhere.weight'", "not held", "add it"]),
    "frozen": ({"still": Rows()}, AttachError, ["'still'", "requires_grad=False", "unfreeze"]),
    "complex": ({"waves": Rows()}, AttachError, ["'waves'", "torch.complex64", "real"]),
    "integer": ({"codes": Rows()}, AttachError, ["'codes'", "torch.int64", "real"]),
    "not finite": ({"broken": Rows()}, AttachError, ["'broken'", "not finite"]),
    "lazy": ({"lazy.weight": Rows()}, AttachError, ["'lazy.weight'", "one batch"]),
    "sparse embedding": ({"sparse_table.weight": Rows()}, AttachError, ["'sparse_table.weight'", "sparse=False"]),
    "sparse bag": ({"bag.weight": Elements()}, AttachError, ["'bag.weight'", "sparse=False"]),
    "all, one of them impossible": (Rows(), AttachError, ["leave it out"]),
    "one good, one bad": ({"fc1.weight": Rows(), "waves": Rows()}, AttachError, ["'waves'"]),
    "no rule": ({}, AttachError, ["non-empty mapping"]),
    "not a rule": ("rows", AttachError, ["'rows'", "grouping"]),
    "a pattern that is no name": ({0: Rows()}, AttachError, ["where[0]", "pattern"]),
    "channels under a name": ({"*": winnow.Channels(0)}, AttachError, ["where['*']", "where=Channels(example, only="]),
    "a rule's class": ({"fc1.weight": Rows}, AttachError, ["where['fc1.weight']", "Rows()"]),
    "blocks that do not divide": (
        {"fc1.weight": Blocks((2, 4))},
        GroupError,
        ["'fc1.weight'", "block=(2, 4)", "(5, 6)", "another grouping"],
    ),
    "blocks of too many axes": ({"fc1.weight": Blocks((1, 1, 1))}, GroupError, ["(1, 1, 1)", "(5, 6)"]),
    "heads that do not divide": ({"fc1.weight": Heads(2)}, GroupError, ["'fc1.weight'", "count × fused = 2", "(5, 6)"]),
    "fused heads that do not": ({"fc2.weight": Heads(2, fused=3)}, GroupError, ["count × fused = 6", "(3, 5)"]),
    "no such axis": ({"fc1.weight": Axes(2)}, GroupError, ["'fc1.weight'", "(2,)", "(5, 6)"]),
    "columns of a vector": ({"fc1.bias": Columns()}, GroupError, ["'fc1.bias'", "(5,)"]),
}


@pytest.mark.parametrize("case", WHERE)
def test_where(case):
    where, kind, needles = WHERE[case]
    refused(kind, needles, *zoo(), where=where)


HOW = {
    "masking groups": (
        Masking(),
        {"fc1.weight": Rows()},
        ["'fc1.weight'", "single entries", "Elements()", "Gating(depth=2)"],
    ),
    "a start for groups": (
        Gating(depth=3, start=Balanced()),
        {"fc1.weight": Rows()},
        ["'fc1.weight'", "Elements()", "start="],
    ),
    "a route's class": (Gating, {"fc1.weight": Rows()}, ["Gating", "such as Gating(depth=3)"]),
    "a penalty": (Lp(0.5), {"fc1.weight": Rows()}, ["Lp(p=0.5)", "route"]),
}


@pytest.mark.parametrize("case", HOW)
def test_how(case):
    how, where, needles = HOW[case]
    refused(AttachError, needles, *zoo(), how=how, where=where)


@pytest.mark.parametrize("when", [-0.1, NAN, INF, -INF, True, None, "0.1", 1j], ids=repr)
def test_when(when):
    refused(ScheduleError, ["try"], *zoo(), when=when)


OPTIMIZERS = {
    "adaptive decay": (
        lambda p: torch.optim.SGD(p, lr=0.1),
        {"how": Decay(metric="adaptive")},
        ["SGD", "adaptive", 'metric="plain"'],
    ),
    "LBFGS": (torch.optim.LBFGS, {}, ["LBFGS", "SGD, Adam, AdamW"]),
    "SparseAdam": (torch.optim.SparseAdam, {}, ["SparseAdam", "SGD, Adam, AdamW"]),
    "fused by force": (torch.optim.RMSprop, {"fused": True}, ["RMSprop", "fused=True", "fused=False"]),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_optimizer(case):
    make, words, needles = OPTIMIZERS[case]
    model = Net()
    optimizer = make(model.parameters())
    before = picture(model, optimizer)
    words = {"how": Gating(depth=2), "where": Rows(), "when": 0.1} | words
    with pytest.raises(AttachError) as error:
        winnow.attach(model, optimizer, **words)
    assert all(needle in str(error.value) for needle in needles), str(error.value)
    same(picture(model, optimizer), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_decay_of_half_precision_weights(dtype):
    model = Net().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = picture(model, optimizer)
    with pytest.raises(AttachError, match=rf"'0\.weight' is {dtype}.*float32 weights"):
        winnow.attach(model, optimizer, how=Decay(), where=Rows(), when=0.1)
    same(picture(model, optimizer), before)


def test_not_an_optimizer_and_another_models_optimizer():
    model = Net()
    with pytest.raises(AttachError, match="generator"):
        winnow.attach(model, model.parameters(), how=Gating(depth=2), where=Rows(), when=0.1)
    other = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(AttachError, match="build the optimizer from this model's parameters"):
        winnow.attach(model, other, how=Gating(depth=2), where=Rows(), when=0.1)


@every_route
def test_attaching_twice(route):
    trial = Trial(route, "adamw").steps(2)
    before = picture(trial.model, trial.optimizer)
    with pytest.raises(AttachError, match=r"attached already.*run\.settle\(\) or run\.release\(\)"):
        trial.attach("gating rows")
    same(picture(trial.model, trial.optimizer), before)
    trial.run.release()
    trial.attach("gating rows")
    trial.steps(1)


NUMBERS = {
    "strength < 0": (lambda: winnow.Constant(-1.0), ScheduleError, ["strength", "-1.0", "try"]),
    "strength NaN": (lambda: winnow.Constant(NAN), ScheduleError, ["strength", "nan"]),
    "ramp to NaN": (lambda: winnow.Ramp(NAN, 10), ScheduleError, ["strength", "nan"]),
    "ramp from below": (lambda: winnow.Ramp(0.1, 10, -1.0), ScheduleError, ["start", "-1.0"]),
    "ramp over no steps": (lambda: winnow.Ramp(0.1, 0), ScheduleError, ["steps", "0"]),
    "harmonic": (lambda: winnow.Harmonic(-0.1), ScheduleError, ["strength", "-0.1"]),
    "geometric": (lambda: winnow.Geometric(0.1, 1.5), ScheduleError, ["ratio", "1.5"]),
    "off": (lambda: winnow.Off(winnow.Constant(0.1), 10, 2.0), ScheduleError, ["fraction", "2.0"]),
    "feedback": (lambda: winnow.Feedback(10, initial=NAN), ScheduleError, ["initial", "nan"]),
    "feedback's factor": (lambda: winnow.Feedback(10, delta=0.5), ScheduleError, ["delta", "0.5"]),
    "density 0": (lambda: Toward(0, 100), ScheduleError, ["density", "(0, 1]"]),
    "density 1.5": (lambda: Toward(1.5, 100), ScheduleError, ["density", "1.5", "(0, 1]"]),
    "density -0.1": (lambda: Toward(-0.1, 100), ScheduleError, ["density", "-0.1", "(0, 1]"]),
    "density NaN": (lambda: Toward(NAN, 100), ScheduleError, ["density", "nan", "(0, 1]"]),
    "no steps": (lambda: Toward(0.1, 0), ScheduleError, ["steps"]),
    "no depth": (Gating, PenaltyError, ["depth"]),
    "depth and penalty": (lambda: Gating(Lp(0.5), depth=3), PenaltyError, ["Lp(p=0.5)", "depth=3"]),
    "a depth without its name": (lambda: Gating(3), PenaltyError, ["3", "a Penalty", "Gating(depth=3)"]),
    "a p for a penalty": (lambda: Decay(0.5), PenaltyError, ["0.5", "a Penalty", "Decay(Lp(0.5))"]),
    "a penalty's class": (lambda: Dropout(Lp), PenaltyError, ["Lp", "a Penalty", "Dropout(LogSum(1.0))"]),
    "a depth in quotes": (lambda: Gating(depth="3"), PenaltyError, ["'3'", "try depth=3"]),
    "a start's name": (lambda: Gating(depth=3, start="balanced"), PenaltyError, ["'balanced'", "Balanced()"]),
    "a gap in quotes": (lambda: Masking("1"), PenaltyError, ["beta", "'1'"]),
    "a mask's name": (lambda: Dropout(LogSum(1.0), mask="gauss"), PenaltyError, ["'gauss'", "Gaussian()"]),
    "off without a schedule": (lambda: winnow.Off(0.1, 100), ScheduleError, ["0.1", "Off(Constant(1e-4), steps)"]),
    "one block length": (lambda: Blocks(4), GroupError, ["4", "Blocks((4, 4))"]),
    "heads in quotes": (lambda: Heads("4"), GroupError, ["whole numbers", "'4'"]),
    "n of m in quotes": (lambda: winnow.NM("2", "4"), GroupError, ["whole numbers", "'2', '4'"]),
    "depth 1": (lambda: Gating(depth=1), PenaltyError, ["depth", "1", "try depth=3"]),
    "depth NaN": (lambda: Gating(depth=NAN), PenaltyError, ["depth", "nan"]),
    "no dual": (lambda: Gating(Lp(2.0)), PenaltyError, ["Lp(p=2.0)", "weight decay", "use p < 2"]),
    "no dual, scaled": (lambda: Gating(winnow.Scaled(Lp(2.0), 3.0)), PenaltyError, ["Lp(2)", "dual"]),
    "a slope no gate carries": (
        lambda: Gating(winnow.Scaled(Lp(0.5), 3.0)),
        PenaltyError,
        ["Scaled", "infinite", "use Lp"],
    ),
    "no whole depth": (lambda: Gating(Lp(0.7), start=Balanced()), PenaltyError, ["integer", "Lp(p=0.7)"]),
    "p": (lambda: Lp(-0.5), PenaltyError, ["-0.5"]),
    "p NaN": (lambda: Lp(NAN), PenaltyError, ["nan"]),
    "beta": (lambda: Masking(-1.0), PenaltyError, ["beta", "-1.0"]),
    "metric": (lambda: Decay(metric="adam"), PenaltyError, ["'adam'", '"plain" or "adaptive"']),
    "ridge": (lambda: Decay(ridge=NAN), PenaltyError, ["ridge", "nan"]),
    "refresh": (lambda: Decay(refresh=0), PenaltyError, ["refresh", "0"]),
    "anneal": (lambda: Decay(LogSum(1.0), anneal=10), PenaltyError, ["anneal", "LogSum(epsilon=1.0)"]),
    "floor": (lambda: Dropout(Lp(1.0), floor=0.0), PenaltyError, ["floor", "0.0"]),
    "curvature": (lambda: Dropout(Lp(1.0), curvature=-1.0), PenaltyError, ["curvature", "-1.0"]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(case):
    make, kind, needles = NUMBERS[case]
    with pytest.raises(kind) as error:
        make()
    assert isinstance(error.value, WinnowError)
    assert all(needle in str(error.value) for needle in needles), str(error.value)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

OTHERS = {
    "other groups": ((Gating(depth=3), Rows()), (Gating(depth=3), Columns()), ["5 groups of 6", "6 groups of 5"]),
    "other blocks": (
        (Gating(depth=3), {"0.weight": Blocks((5, 2))}),
        (Gating(depth=3), {"0.weight": Blocks((5, 3))}),
        ["3 groups of 5×2", "2 groups of 5×3"],
    ),
    "a weight of the groups": ((Decay(), Rows()), (Decay(), Rows(weighted=True)), ["weight 2.44949"]),
    "another depth": ((Gating(depth=3), Rows()), (Gating(depth=4), Rows()), ["depth=3", "depth=4"]),
    "another gate": ((Gating(LogSum(1.0)), Rows()), (Gating(LogSum(2.0)), Rows()), ["epsilon=1.0", "epsilon=2.0"]),
    "another penalty": ((Decay(Lp(0.5)), Rows()), (Decay(Lp(1.0)), Rows()), ["p=0.5", "p=1.0"]),
    "gating as masking": ((Gating(depth=2), Elements()), (Masking(), Elements()), ["PowerGate", "Product"]),
    "gating as decay": ((Gating(depth=4), Elements()), (Decay(Lp(0.5)), Elements()), ["PowerGate", "Decay"]),
    "decay as gating": ((Decay(Lp(0.5)), Elements()), (Gating(depth=4), Elements()), ["Decay", "PowerGate"]),
    "decay as dropout": ((Decay(Lp(0.5)), Rows()), (Dropout(Lp(0.5)), Rows()), ["Decay", "Dropout"]),
    "more weights": (
        (Gating(depth=3), {"0.weight": Rows()}),
        (Gating(depth=3), {"0.weight": Rows(), "2.weight": Rows()}),
        ["'2.weight'", "not penalised"],
    ),
    "fewer weights": (
        (Gating(depth=3), {"0.weight": Rows(), "2.weight": Rows()}),
        (Gating(depth=3), {"0.weight": Rows()}),
        ["'2.weight'", "not penalised"],
    ),
}


def run_of(how, where, make=torch.optim.AdamW):
    trial = Trial(None, "adamw")
    trial.optimizer = make(trial.model.parameters(), lr=0.01)
    trial.run = winnow.attach(trial.model, trial.optimizer, how=how, where=where, when=winnow.Ramp(0.1, 10))
    return trial.steps(2)


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_run(case):
    theirs, ours, needles = OTHERS[case]
    [state] = saved(run_of(*theirs).optimizer)
    trial = run_of(*ours)
    before, clock = picture(trial.model, trial.optimizer), trial.run.clock
    with pytest.raises(CheckpointError) as error:
        trial.optimizer.load_state_dict(state)
    assert all(needle in str(error.value) for needle in [*needles, "attach with the same"]), str(error.value)
    same(picture(trial.model, trial.optimizer), before)
    assert trial.run.clock == clock
    trial.steps(1)


@every_route
def test_a_checkpoint_made_without_winnow(route):
    [state] = saved(Trial(None, "adamw").steps(2).optimizer)
    trial = Trial(route, "adamw").steps(1)
    before = picture(trial.model, trial.optimizer)
    with pytest.raises(CheckpointError, match=r"without Winnow; load it before attach\(\)"):
        trial.optimizer.load_state_dict(state)
    same(picture(trial.model, trial.optimizer), before)
    early = Trial(None, "adamw")
    early.optimizer.load_state_dict(state)  # the advice works
    early.attach(route)
    early.steps(2)


def test_a_checkpoint_of_another_optimizer_or_a_damaged_one():
    trial = run_of(Gating(depth=3), Rows())
    [state] = saved(trial.optimizer)
    fewer, damaged = copy.deepcopy(state), copy.deepcopy(state)
    fewer["param_groups"][0]["params"].pop()
    del damaged["state"][0]["winnow"]["s"]
    before = picture(trial.model, trial.optimizer)
    with pytest.raises(CheckpointError, match=r"holds 3 parameters and this one 4"):
        trial.optimizer.load_state_dict(fewer)
    with pytest.raises(CheckpointError, match=r"lacks s of '0\.weight'"):
        trial.optimizer.load_state_dict(damaged)
    two = copy.deepcopy(state)
    two["param_groups"] = [{**two["param_groups"][0], "params": [0, 1]}, {**two["param_groups"][0], "params": [2, 3]}]
    with pytest.raises(CheckpointError, match="holds 4 parameters in groups of 2, 2 and this one 4 parameters; build"):
        trial.optimizer.load_state_dict(two)
    same(picture(trial.model, trial.optimizer), before)
    trial.optimizer.load_state_dict(state)
    same(picture(trial.model, trial.optimizer)[0], before[0])


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "closure"), [(NAN, False), (INF, True), (-INF, False)])
@every_pair
def test_a_gradient_that_is_not_finite(route, optimizer, bad, closure):
    """The step is refused as if it had never been asked for, and training goes on."""
    trial, smooth = Trial(route, optimizer).steps(3), Trial(route, optimizer).steps(5)

    def poisoned():
        trial.optimizer.zero_grad()
        loss = trial.loss()
        loss.backward()
        trial.model[2].weight.grad[1, 2] = bad
        return loss

    before, clock = everything(trial), trial.run.clock
    args = [poisoned] if closure else []
    if not closure:
        poisoned()
    with pytest.raises(GradientError) as error:
        trial.optimizer.step(*args)
    message = str(error.value)
    for needle in ("'2.weight'", "step 3", "not finite", "zero_grad()"):
        assert needle in message
    assert "'0.weight'" not in message
    same(everything(trial), before)
    assert trial.run.clock == clock
    trial.optimizer.zero_grad()
    same(everything(trial.steps(2)), everything(smooth))


def test_a_huge_but_finite_gradient_is_no_error():
    trial = Trial("decay", "sgd", dtype=torch.float32, lr=1e-38)
    for theta in trial.model.parameters():
        theta.grad = torch.full_like(theta, 3e38)  # its sum overflows
    trial.optimizer.step()


class Lookup(nn.Module):
    """Asks for sparse gradients where no module tells of it."""

    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 5))
        self.out = nn.Linear(5, 3)
        self.sparse = sparse

    def forward(self, index):
        return self.out(nn.functional.embedding(index, self.table, sparse=self.sparse))


@pytest.mark.parametrize("how", [Gating(depth=3), Decay(), Masking(), Dropout(Lp(1.0), Expected())], ids=str)
def test_a_sparse_gradient(how):
    model = Lookup(sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = winnow.attach(model, optimizer, how=how, where=Elements(), when=0.1)
    model(torch.tensor([0, 3])).square().sum().backward()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    with pytest.raises(GradientError, match=r"'table' has a sparse gradient; .*sparse=False"):
        optimizer.step()
    same([model.state_dict(), optimizer.state_dict()], before)
    assert run.clock.step == 0
    model.sparse = False
    optimizer.zero_grad()
    model(torch.tensor([0, 3])).square().sum().backward()
    optimizer.step()
    assert run.clock.step == 1


def test_a_sparse_gradient_of_a_weight_left_out_is_the_optimizers_business():
    model = nn.ModuleDict({"table": nn.Embedding(6, 5, sparse=True), "out": nn.Linear(5, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    winnow.attach(model, optimizer, how=Gating(depth=3), where={"out.weight": Rows()}, when=0.1)
    before = model["table"].weight.detach().clone()
    model["out"](model["table"](torch.tensor([0, 3]))).square().sum().backward()
    optimizer.step()
    assert (model["table"].weight != before).any(dim=1).tolist() == [True, False, False, True, False, False]


@every_route
def test_verbs_after_the_end(route):
    trial = Trial(route, "adamw").steps(1)
    trial.run.release()
    before = picture(trial.model, trial.optimizer)
    for verb in (trial.run.settle, trial.run.release, lambda: trial.run.cut(0.5), lambda: trial.run.feedback(1.0)):
        with pytest.raises(WinnowError, match="attach again"):
            verb()
    same(picture(trial.model, trial.optimizer), before)


def test_every_route_is_here():
    assert {type(how).__name__ for how, _ in ROUTES.values()} == {
        kind.__name__ for kind in winnow.Route.__subclasses__() if kind.__module__.startswith("winnow.")
    }


@every_route
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, NAN])
def test_a_cut_to_no_density(route, density):
    trial = Trial(route, "adamw").steps(1)
    before = picture(trial.model, trial.optimizer)
    with pytest.raises(ScheduleError, match=r"density must lie in \(0, 1\]"):
        trial.run.cut(density)
    same(picture(trial.model, trial.optimizer), before)


@pytest.mark.parametrize("threshold", [-1e-3, NAN, INF])
def test_settling_at_no_threshold(threshold):
    trial = Trial(next(iter(ROUTES)), "sgd").steps(1)
    with pytest.raises(ScheduleError, match="threshold must be a norm"):
        trial.run.settle(threshold)
    trial.run.settle()  # still open


def test_feedback_of_nan():
    trial = Trial(next(iter(ROUTES)), "sgd", when=winnow.Feedback(4)).steps(1)
    with pytest.raises(ScheduleError, match="feedback needs a number"):
        trial.run.feedback(NAN)


def test_warnings_stand_at_the_users_own_line():
    """Not at torch's, though it is torch's optimizer that calls Winnow."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = winnow.attach(model, optimizer, how=Gating(depth=2), where=Rows(), when=winnow.Toward(density=0.5, steps=100))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model(torch.randn(2, 4)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight.mul_(2)
        run.settle()
    assert [w.filename for w in caught] == [__file__, __file__]
    assert "changed outside" in str(caught[0].message)
    assert "before Toward" in str(caught[1].message)


def test_the_optimizer_where_the_model_goes():
    optimizer = zoo()[1]
    with pytest.raises(AttachError, match=f"model must be .*Module, got {type(optimizer).__name__}"):
        winnow.attach(optimizer, optimizer, how=Gating(depth=3), where=Rows(), when=0.1)


def two_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    return model, torch.optim.AdamW(model.parameters(), 1e-2)


def trained(model, optimizer, steps, **words):
    run = winnow.attach(model, optimizer, how=Gating(depth=3), **words)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 12)).square().mean().backward()
        optimizer.step()
    return run


def test_a_density_below_what_has_to_stay_is_said_at_once():
    model, optimizer = two_layers()
    with pytest.warns(winnow.WinnowWarning, match=r"density of 0.01 cannot be reached.*together 0.107"):
        run = trained(model, optimizer, 40, where=Rows(), when=Toward(0.01, 40))  # 1 of 20 rows of 12, 1 of 3 rows of 20
    assert run.floor == pytest.approx(32 / 300)
    with pytest.warns(winnow.WinnowWarning, match=r"0.01 was asked for, 0.1067 is left"):
        run.settle()


def test_too_few_steps_and_no_zeros_are_said():
    with pytest.warns(winnow.WinnowWarning, match="only 3 of 6 optimizer steps are there to choose what stays"):
        Toward(0.1, 6)
    model, optimizer = two_layers()
    run = trained(model, optimizer, 5, where=Elements(), when=1e-4)
    with pytest.warns(winnow.WinnowWarning, match="none of 300 groups reached zero under 0.0001"):
        run.settle()


def test_a_second_run_on_the_same_weights_is_said():
    model, optimizer = two_layers()
    trained(model, optimizer, 1, where=Elements(), when=1e-4)
    with pytest.warns(winnow.WinnowWarning, match="carried a run before, which was neither settled nor released"):
        trained(model, torch.optim.SGD(model.parameters(), 0.1), 0, where=Elements(), when=1e-4)


def test_a_certificate_of_something_else():
    model, optimizer = two_layers()
    run = trained(model, optimizer, 1, where=Elements(), when=1e-4)
    for given in (3, lambda: 3.0, lambda: torch.tensor(1.0)):
        with pytest.raises(GradientError, match="closure that returns the whole training loss"):
            run.certificate(given)


def test_single_weights_before_a_normalisation_are_nothing_to_warn_of():
    """Toward cuts them by size all the same; for groups the warning stands (test_host)."""
    model = nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", winnow.WinnowWarning)
        trained(model, optimizer, 5, where={"0.weight": Elements()}, when=1e-5)


def test_zeros_that_are_held():
    """Without holding they train away; what is held stays, until it is let go."""
    model, optimizer = two_layers()
    with pytest.raises(AttachError, match="has a zero to hold"):
        winnow.hold(model, optimizer)
    trained(model, optimizer, 60, where=Elements(), when=Toward(0.2, 60)).settle()
    zero = [(p == 0).clone() for p in model.parameters()]
    handle = winnow.hold(model, optimizer)

    def lost():
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(16, 12)).square().mean().backward()
            optimizer.step()
        return sum(int((p[z] != 0).sum()) for p, z in zip(model.parameters(), zero, strict=True) if p.dim() > 1)

    assert lost() == 0
    handle.remove()
    assert lost() > 0
