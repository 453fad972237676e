"""The path: a finished model on every rung, the same after an interruption, and a pick that keeps its limits."""

import itertools
import json
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import winnow
from winnow import Channels, Decay, Elements, Gating, LogSum, Lp, Masking
from winnow.errors import FileError, ScheduleError, WinnowError
from winnow.ladder import _lengths
from winnow.routes import Dropout, Expected

pytestmark = pytest.mark.filterwarnings("ignore::winnow.errors.WinnowWarning")
DENSITIES = (1.0, 0.5, 0.2)
X = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def fit(model, optimizer, steps):
    """Its minibatches and its dropout are drawn from torch's global generator."""
    for _ in range(steps):
        rows = torch.randint(len(X), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(X[rows]), Y[rows]).backward()
        optimizer.step()


def score(model):
    assert not model.training
    return float((model(X).argmax(1) == Y).float().mean())


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def climb(out, model=None, fit=fit, **changes):
    options = {"how": Gating(depth=3), "where": Elements(), "densities": DENSITIES, "steps": 60, "example": X[:2]}
    torch.manual_seed(1)
    return winnow.path(model or network(), fit, score, optimizer=sgd, batches=(4,), out=out, **{**options, **changes})


ROUTES = {
    "gating": {"how": Gating(depth=3)},
    "gating LogSum": {"how": Gating(LogSum(1.0))},
    "decay": {"how": Decay(Lp(0.5))},
    "masking": {"how": Masking(1.0)},
    "dropout": {"how": Dropout(LogSum(2.0), Expected())},
    "units": {"how": Gating(depth=3), "where": Channels(X[:2])},
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_rung_has_the_density_asked_for_and_a_model_of_its_own(route, tmp_path):
    found = climb(tmp_path / "p", **ROUTES[route])
    grain = 1 / 16 if route == "units" else 1 / 224
    assert [p.asked for p in found.points] == list(DENSITIES)
    assert all(abs(p.density - p.asked) <= grain + 1e-9 for p in found.points)
    assert found.points[0].density == 1 and found.points[0].score > 0.8
    for point in found.points:
        model = found.load(point)
        assert score(model) == point.score
        assert sum(theta.numel() for theta in model.parameters()) == point.parameters
        assert sum(int(torch.count_nonzero(theta)) for theta in model.parameters()) == point.nonzero
        assert point.error < 1e-5 and set(point.seconds) == {"4"}
    assert all(a.nonzero > b.nonzero and a.bytes > b.bytes for a, b in itertools.pairwise(found.points))


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_zero_stays_zero(route, tmp_path):
    """A rung's survivors are among those of the rung before."""
    found = climb(tmp_path / "p", **ROUTES[route])
    states = [winnow.load(tmp_path / "p" / f"rung-{k}" / "state", network).state_dict() for k in range(len(found.points))]
    for before, after in itertools.pairwise(states):
        assert not any(bool(((after[name] != 0) & (before[name] == 0)).any()) for name in before if name.endswith("weight"))


@pytest.mark.parametrize("finished", [1, 2, 3])
def test_an_interrupted_path_ends_as_if_it_had_not_been(finished, tmp_path):
    whole = climb(tmp_path / "whole")
    rungs = []

    def stopped(model, optimizer, steps):
        if len(rungs) == finished:
            fit(model, optimizer, steps // 2)
            raise KeyboardInterrupt
        rungs.append(steps)
        fit(model, optimizer, steps)

    if finished < 3:
        with pytest.raises(KeyboardInterrupt):
            climb(tmp_path / "p", fit=stopped)
        assert len(json.loads((tmp_path / "p" / "path.json").read_text())["points"]) == finished
    else:
        climb(tmp_path / "p")
    taken = []
    again = climb(tmp_path / "p", fit=lambda m, o, steps: (taken.append(steps), fit(m, o, steps)))
    assert len(taken) == 3 - finished
    for a, b in zip(whole.points, again.points, strict=True):
        assert (a.density, a.score, a.nonzero, a.steps) == (b.density, b.score, b.nonzero, b.steps)
        for p, q in zip(whole.load(a).parameters(), again.load(b).parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_half_written_rung_does_not_count(tmp_path):
    climb(tmp_path / "p", densities=(1.0, 0.5))
    (tmp_path / "p" / "rung-1").rename(tmp_path / "p" / "rung-1.part")
    record = json.loads((tmp_path / "p" / "path.json").read_text())
    record["points"].pop()
    (tmp_path / "p" / "path.json").write_text(json.dumps(record))
    assert len(climb(tmp_path / "p", densities=(1.0, 0.5)).points) == 2
    assert not (tmp_path / "p" / "rung-1.part").exists()


@pytest.mark.parametrize("rungs", [1, 2, 8])
def test_it_costs_what_was_said(rungs):
    lengths = _lengths(rungs, 1000, 2.5)
    assert lengths[0] == 1000 and sum(lengths) <= (2500 + rungs if rungs > 1 else 1000)
    assert lengths[1:] == sorted(lengths[1:])
    assert rungs == 1 or sum(lengths) >= 2490


def test_what_takes_little_away_gets_a_small_rate(tmp_path):
    rates = []

    def noted(model, optimizer, steps):
        rates.append(optimizer.param_groups[0]["lr"])
        fit(model, optimizer, steps)

    climb(tmp_path / "p", fit=noted)
    assert rates == pytest.approx([0.1, 0.1 * 0.5, 0.1 * 0.8])


@pytest.mark.parametrize(("where", "single"), [(Elements(), True), ({"0.weight": Elements()}, False), (winnow.Rows(), False)])
def test_single_weights_under_adam_get_a_large_rate_where_few_are_left(where, single, tmp_path):
    rates = []

    def noted(model, optimizer, steps):
        rates.append(optimizer.param_groups[0]["lr"])
        fit(model, optimizer, steps)

    winnow.path(network(), noted, score, optimizer=lambda m: torch.optim.AdamW(m.parameters(), 1e-3), how=Gating(depth=3),
                where=where, densities=(1.0, 0.5, 0.1), steps=60, example=X[:2], batches=(4,), out=tmp_path / "p")  # fmt: skip
    more = 0.85 if single else 0.0
    assert rates == pytest.approx([1e-3, 1e-3 * 0.5 / 0.5**more, 1e-3 * 0.9 / 0.1**more])


@pytest.mark.parametrize("example", [X[0], torch.randn(2, 7)])
def test_an_example_that_cannot_be_used_is_told_before_the_training(example, tmp_path):
    trained = []
    with pytest.raises((WinnowError, RuntimeError), match=r"batch axis|cannot be multiplied"):
        winnow.path(network(), lambda *_: trained.append(1), score, optimizer=sgd, how=Gating(depth=3), where=Elements(),
                    densities=DENSITIES, steps=60, example=example, batches=(4,), out=tmp_path / "p")  # fmt: skip
    assert not trained


def test_one_rate_for_all_rungs_is_not_changed(tmp_path):
    rate = torch.tensor(0.1)
    make = lambda model: torch.optim.SGD(model.parameters(), rate, momentum=0.9)  # noqa: E731
    winnow.path(network(), fit, score, optimizer=make, how=Gating(depth=3), where=Elements(), densities=DENSITIES,
                steps=60, example=X[:2], batches=(4,), out=tmp_path / "p")  # fmt: skip
    assert rate == pytest.approx(0.1)


def test_a_path_begun_with_other_lengths_is_refused(tmp_path):
    climb(tmp_path / "p")
    record = json.loads((tmp_path / "p" / "path.json").read_text())
    del record["lengths"]  # as an older version wrote it
    (tmp_path / "p" / "path.json").write_text(json.dumps(record))
    with pytest.raises(FileError, match="lengths: None there"):
        climb(tmp_path / "p")
    assert len(winnow.Path.read(tmp_path / "p", network()).points) == 3


def test_pick_keeps_the_limits(tmp_path):
    found = climb(tmp_path / "p")
    dense, half, fifth = found.points
    assert winnow.choose(found, max_drop=1.0) == fifth  # the smallest that is good enough
    assert winnow.choose(found, max_params=half.parameters, max_drop=1.0) == fifth
    assert winnow.choose(found, max_params=10**9).score == max(p.score for p in found.points)
    assert winnow.choose(found, max_macs=fifth.macs) in [p for p in found.points if p.macs <= fifth.macs]
    assert winnow.choose(found, max_latency=1e9, batch=4).score == max(p.score for p in found.points)
    model = winnow.pick(found, max_drop=1.0)
    assert score(model) == fifth.score and not model.training
    with pytest.raises(ScheduleError, match=r"no point keeps within .*'max_params': 3.*max_params=\d+"):
        winnow.choose(found, max_params=3)
    with pytest.raises(ScheduleError, match="a limit is needed"):
        winnow.choose(found)
    with pytest.raises(ScheduleError, match="no latency was measured at batch 7: choose from 4"):
        winnow.choose(found, max_latency=1.0, batch=7)
    assert dense.score - fifth.score <= 1.0 and str(found).count("\n") == 3


BAD = {
    "not from dense": ({"densities": (0.5, 0.2)}, "must begin with 1.0"),
    "rising": ({"densities": (1.0, 0.2, 0.5)}, "and fall"),
    "zero": ({"densities": (1.0, 0.0)}, "above 0"),
    "none": ({"densities": ()}, "must begin with 1.0"),
    "no steps": ({"steps": 0}, "steps must be >= 1"),
    "too cheap": ({"cost": 1.0}, "cost .* > 1"),
    "too few steps taken": ({"fit": lambda m, o, steps: fit(m, o, steps - 1)}, "took 59 optimizer steps where 60 were"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_numbers(case, tmp_path):
    changes, complaint = BAD[case]
    with pytest.raises(ScheduleError, match=complaint):
        climb(tmp_path / "p", **changes)
    assert not (tmp_path / "p" / "path.json").exists()


def test_a_rung_that_takes_other_steps_is_refused(tmp_path):
    with pytest.raises(ScheduleError, match="it must take exactly those"):
        climb(tmp_path / "p", fit=lambda m, o, steps: fit(m, o, 60))
    assert len(json.loads((tmp_path / "p" / "path.json").read_text())["points"]) == 1  # what was finished stays


def test_folders_that_hold_something_else(tmp_path):
    climb(tmp_path / "p", densities=(1.0, 0.5))
    with pytest.raises(FileError, match=r"holds another path \(densities"):
        climb(tmp_path / "p")
    with pytest.raises(FileError, match=r"holds another path \(how"):
        climb(tmp_path / "p", densities=(1.0, 0.5), how=Masking(1.0))
    with pytest.raises(FileError, match=r"holds another path \(where"):
        climb(tmp_path / "p", densities=(1.0, 0.5), where={"0.weight": winnow.Rows()})
    with pytest.raises(FileError, match=r"holds another path \(tag"):
        climb(tmp_path / "p", densities=(1.0, 0.5), tag="lr 0.3")
    record = tmp_path / "p" / "path.json"
    newer = json.loads(record.read_text()) | {"format": 99}
    record.write_text(json.dumps(newer))
    with pytest.raises(FileError, match="format 99, newer than this Winnow"):
        climb(tmp_path / "p", densities=(1.0, 0.5))
    for damaged in ("{", "[]", '{"points": 3}', '{"points": [{}]}'):
        record.write_text(damaged)
        with pytest.raises(FileError, match="damaged"):
            climb(tmp_path / "p", densities=(1.0, 0.5))
    shutil.rmtree(tmp_path / "p")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.tex").write_text("…")
    with pytest.raises(FileError, match="other files"):
        climb(tmp_path / "p")


def test_a_folder_read_again(tmp_path):
    """Points and models as they were; what is no path says so."""
    found = climb(tmp_path / "p", densities=(1.0, 0.5))
    again = winnow.Path.read(tmp_path / "p", network())
    assert again.points == found.points
    small, same = found.load(found.points[1]), again.load(again.points[1])
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), same.parameters(), strict=True))
    assert winnow.choose(again, max_drop=1.0) in again.points
    with pytest.raises(FileError, match="holds no path"):
        winnow.Path.read(tmp_path, network())
    (tmp_path / "p" / "path.json").write_text("{")
    with pytest.raises(FileError, match="is damaged"):
        winnow.Path.read(tmp_path / "p", network())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"score": lambda model: None}, "finite number, higher is better, got None"),
        ({"score": lambda model: float("nan")}, "finite number"),
        ({"optimizer": sgd(network())}, "a function that builds one.*got SGD"),
        ({"optimizer": lambda model: None}, "a function that builds one.*got NoneType"),
        ({"densities": 0.5}, "densities must begin with 1.0"),
        ({"densities": ("1", "0.5")}, "densities must begin with 1.0"),
    ],
)
def test_what_is_no_score_and_no_optimizer_is_told_before_the_training(change, complaint, tmp_path):
    def never(model, optimizer, steps):
        raise AssertionError("trained")

    options = {"score": score, "optimizer": sgd, "how": Gating(depth=3), "where": Elements(), "example": X[:2], "steps": 60}
    with pytest.raises(ScheduleError, match=complaint):
        winnow.path(network(), never, out=tmp_path / "p", **{**options, **change})


def test_a_score_may_be_a_tensor_and_the_smallest_batch_is_the_usual_one(tmp_path):
    torch.manual_seed(0)
    found = winnow.path(
        network(), fit, lambda m: (m(X).argmax(1) == Y).float().mean(), optimizer=sgd, how=Gating(depth=3), where=Elements(),
        example=X[:2], steps=40, out=tmp_path / "p", densities=(1.0, 0.5), batches=(8, 2),
    )  # fmt: skip
    assert all(type(point.score) is float for point in found.points)
    slowest = max(point.seconds["2"] for point in found.points)
    assert winnow.choose(found, max_latency=slowest) in found.points
    with pytest.raises(ScheduleError, match=f"max_latency={min(p.seconds['2'] for p in found.points):.6g}"):
        winnow.choose(found, max_latency=0.0)
    with pytest.raises(TypeError, match="pick"):
        winnow.pick(found, max_accuracy_drop=0.1)


def test_pick_needs_a_path():
    with pytest.raises(WinnowError, match=r"Path\.read"):
        winnow.pick("runs/path", max_drop=1.0)
