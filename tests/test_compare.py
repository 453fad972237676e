"""The methods under one roof: each takes the same steps, reaches the density, and does what its paper says."""

import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import winnow
from winnow.cli import app
from winnow.compare import METHODS, STRUCTURED, Setting, Trial, cell, command, density, league, ours, storage, train
from winnow.compare import study as study_module
from winnow.compare.base import RATES, Made, Training, cubic, largest, weights_of
from winnow.compare.ours import toward
from winnow.compare.plan import Plan
from winnow.compare.rivals import RigL, erdos_renyi
from winnow.compare.storage import shown
from winnow.compare.structured import GroupLasso
from winnow.compare.study import begin, open_study, rows, work
from winnow.errors import WinnowError
from winnow.jobs.data import Examples, Text

pytestmark = pytest.mark.filterwarnings("ignore::winnow.errors.WinnowWarning")
X = torch.randn(640, 20, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long() + 2 * (X[:, 2] > 0).long()
DATA = Examples("signs", "drawn", X[:512], Y[:512], X[512:], Y[512:], classes=4)
SPARSE = [name for name in METHODS if name != "dense"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 4))


def as_bytes(model):
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def sgd(model, factor):
    return torch.optim.SGD(model.parameters(), 0.1 * factor, momentum=0.9)


def adamw(model, factor):
    return torch.optim.AdamW(model.parameters(), 3e-3 * factor, weight_decay=0.0)


def trained(name, keep=0.1, steps=300, optimizer=sgd, seed=0, trial=None):
    method, model = METHODS[name], network(seed)
    if name == "PAT":
        pytest.importorskip("torchao.prototype.pat")
    again, found = train(method, model, DATA, Setting(keep, steps, trial or method.trials[0], seed), 32, optimizer)
    assert again is model
    return model, found


def accuracy(model):
    return float((model(DATA.test_x).argmax(1) == DATA.test_y).float().mean())


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_reaches_the_density_in_the_steps_given(name, optimizer):
    model, found = trained(name, optimizer=optimizer)
    weights = weights_of(model)
    wanted = 1.0 if name == "dense" else 0.1
    assert found["steps"] == 300 and abs(found["density"] - wanted) < 0.003
    assert found["density"] == density(weights)
    named = {name: density([p]) for name, p in model.named_parameters() if p.dim() > 1}
    assert found["layers"] == named and all(share > 0 for share in named.values())
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (model, network())]
    assert shapes[0] == shapes[1]
    assert accuracy(model) > (0.4 if name == "random mask" else 0.55), accuracy(model)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_model(name):
    first, second = (trained(name, steps=60)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", SPARSE)
def test_the_number_that_is_tuned_matters(name):
    trials = METHODS[name].trials
    assert len({as_bytes(trained(name, steps=60, trial=trial)[0]) for trial in trials}) == len(trials) == 5


def test_every_method_has_the_same_tuning_budget():
    assert {len(method.trials) for method in METHODS.values()} == {5}


def test_what_lies():
    """A method that leaves more than it was asked to, and one that diverges, are refused."""
    lazy = Made("lazy", "does nothing", RATES, Training)
    with pytest.raises(WinnowError, match=r"lazy left 1\.0000 where 0\.1 was asked for"):
        train(lazy, network(), DATA, Setting(0.1, 10), 32, sgd)
    with pytest.raises(WinnowError, match=r"the loss is (nan|inf)"):
        train(METHODS["dense"], network(), DATA, Setting(1.0, 300, Trial(1e4)), 32, sgd)


def test_the_largest_over_all_weights_and_one_of_each():
    a, b = torch.tensor([[5.0, 1.0], [4.0, 3.0]]), torch.tensor([[0.1, 0.2]])
    masks = largest([a, b], 0.5)
    assert masks[0].tolist() == [[True, False], [True, False]] and masks[1].tolist() == [[False, True]]


def test_the_cubic_schedule():
    """Zhu and Gupta's: 1 at first, the target at the end, and (1 − s_f)·(1 − t)³ above it between."""
    assert cubic(0, 100, 500, 0.1) == cubic(100, 100, 500, 0.1) == 1
    assert cubic(500, 100, 500, 0.1) == cubic(900, 100, 500, 0.1) == pytest.approx(0.1)
    assert cubic(300, 100, 500, 0.1) == pytest.approx(0.1 + 0.9 / 8)


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 0.95])
def test_erdos_renyi(keep):
    """Densities ∝ (inputs + outputs)/(inputs·outputs), none above 1, the whole as asked."""
    shapes = [(300, 784), (100, 300), (10, 100)]
    sizes = [math.prod(shape) for shape in shapes]
    found = erdos_renyi(shapes, keep)
    assert sum(f * s for f, s in zip(found, sizes, strict=True)) == pytest.approx(keep * sum(sizes))
    assert max(found) <= 1
    free = [(f, sum(shape) / size) for f, shape, size in zip(found, shapes, sizes, strict=True) if f < 1]
    assert all(f / raw == pytest.approx(free[0][0] / free[0][1]) for f, raw in free)


def test_rigl_moves_connections_to_the_largest_gradients():
    """By hand, one move: the smallest of the live go, the dead of largest gradient come, at zero, without momentum."""
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    rigl = RigL(model, optimizer, Setting(0.5, 100))
    rigl.masks = [torch.tensor([[True, True, False, False]])]
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 2.0, 0.0, 7.0]]))
    optimizer.state[model.weight]["momentum_buffer"] = torch.full((1, 4), 5.0)
    new = rigl._move(model.weight, torch.tensor([[9.0, 9.0, 1.0, -3.0]]), rigl.masks[0], 0.5)
    assert new.tolist() == [[False, True, False, True]]
    assert float(model.weight[0, 3]) == 0 and float(model.weight[0, 1]) == 2
    assert optimizer.state[model.weight]["momentum_buffer"].tolist() == [[5.0, 5.0, 5.0, 0.0]]


@pytest.mark.parametrize("name", ["random mask", "RigL"])
def test_random_masks_know_nothing_of_the_initial_weights(name):
    """Both are drawn from the cell's seed: of 196 weights left about half are positive (all of them, were they one stream)."""
    model = network(seed=3)
    before = [w.detach().clone() for w in weights_of(model)]
    masks = METHODS[name].begin(model, sgd(model, 1.0), Setting(0.1, 100, seed=3)).masks
    signs = torch.cat([w[mask] > 0 for w, mask in zip(before, masks, strict=True)]).float()
    assert abs(float(signs.mean()) - 0.5) < 4 * 0.5 / len(signs) ** 0.5


def test_rigl_explores_more_than_it_keeps():
    """Over a run more connections have lived than live at any time, and the density never leaves the budget."""
    seen, model = [], network()
    method = Made("spy", "RigL", RATES, lambda m, o, s: Spy(m, o, s, seen))
    train(method, model, DATA, Setting(0.1, 200), 32, sgd)
    ever = [torch.stack([step[k] for step in seen]).any(0) for k in range(3)]
    assert density([e.float() for e in ever]) > 0.15
    budgets = [sum(int(m.sum()) for m in step) for step in seen]
    assert max(budgets) - min(budgets) <= 3


class Spy(RigL):
    def __init__(self, model, optimizer, setting, seen):
        super().__init__(model, optimizer, setting)
        self.seen = seen

    def after(self, step):
        super().after(step)
        self.seen.append([mask.clone() for mask in self.masks])
        assert all(not bool(w[~mask].any()) for w, mask in zip(self.weights, self.masks, strict=True))


# ---- whole units -------------------------------------------------------------------------------------------------


def cut(name, keep=0.3, steps=300, optimizer=sgd, seed=0, trial=None, model=None):
    method = STRUCTURED[name]
    if name == "group norm":
        pytest.importorskip("torch_pruning")
    model = network(seed) if model is None else model
    setting = Setting(keep, steps, trial or method.trials[0], seed, DATA.x[:2])
    return train(method, model, DATA, setting, 32, optimizer)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("name", STRUCTURED)
def test_every_structured_method_gets_as_small_as_asked(name, optimizer):
    small, found = cut(name, optimizer=optimizer)
    whole, left = parameters(network()), parameters(small)
    assert found["steps"] == 300
    if name == "dense":
        assert left == whole
        return
    assert found["density"] == left / whole
    grain = 48 + 24 + 1  # of the largest unit of all: one of the middle layer, with its bias and what reads and makes it
    assert left <= 0.3 * whole + grain and left > 0.3 * whole - grain
    assert all(bool(p.any()) for p in small.parameters())
    assert found["layers"] == {n: p.numel() / network().get_parameter(n).numel() for n, p in small.named_parameters()}
    assert accuracy(small) > (0.4 if name == "smaller from scratch" else 0.6), accuracy(small)


@pytest.mark.parametrize("name", STRUCTURED)
def test_the_same_seed_gives_the_same_smaller_model(name):
    first, second = (cut(name, steps=60)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", STRUCTURED)
def test_the_number_that_is_tuned_matters_for_units(name):
    trials = STRUCTURED[name].trials
    assert len({as_bytes(cut(name, steps=60, trial=trial)[0]) for trial in trials}) == len(trials) == 5


def test_what_a_route_tunes_is_its_pull_around_the_librarys_own():
    assert toward(Setting(0.1, 100, ours.PULLS[0])).pace == winnow.Toward(0.1, 100).pace
    assert {toward(Setting(0.1, 100, trial)).pull for trial in ours.PULLS} == {0.3, 1.0, 3.0}
    assert toward(Setting(0.1, 100)) == winnow.Toward(0.1, 100)


def test_units_need_an_example():
    with pytest.raises(WinnowError, match="Setting"):
        train(STRUCTURED["group lasso"], network(), DATA, Setting(0.3, 10, Trial(number=1e-4)), 32, sgd)


def test_the_group_lasso_step_is_the_proximal_operator():
    """By hand: every unit, weight row and bias together, times 1 − lr·λ·√size/‖unit‖, at least 0."""
    model = network()
    at_work = GroupLasso(model, torch.optim.SGD(model.parameters(), 0.5), Setting(0.3, 100, Trial(number=0.02), 0, DATA.x[:2]))
    rows = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().clone()
    at_work.after(1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    wanted = rows * (1 - 0.5 * 0.02 * 21**0.5 / norm).clamp_min(0)
    found = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach()
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(wanted, rows)


def test_torch_pruning_sees_convolutions_too():
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    data = Examples("images", "drawn", X[:256].view(256, 1, 4, 5), Y[:256], X[:64].view(64, 1, 4, 5), Y[:64], classes=4)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
                          nn.ReLU(), nn.Flatten(), nn.Linear(320, 4))  # fmt: skip
    whole = parameters(model)
    small, found = train(STRUCTURED["group norm"], model, data, Setting(0.4, 40, Trial(number=5e-4), 0, data.x[:2]), 32, sgd)
    assert parameters(small) <= 0.4 * whole and found["density"] == parameters(small) / whole
    assert small(data.x).shape == (256, 4)


# ---- the study ---------------------------------------------------------------------------------------------------

PLAN = {"tasks": ["digits"], "methods": ["gradual magnitude", "gating, D = 3"], "keeps": [0.2, 0.1], "seeds": 2, "scale": 0.05}
CELLS = 2 * (5 * 2 * 2 + 2 * 2)  # five trials, each twice, at both densities


def fake(cell, scale, alive=lambda: None):
    """A score by which the third trial is best on the mean, the last for one seed, and gating always wins."""
    at = METHODS[cell["method"]].trials.index(Trial(cell["rate"], cell["number"]))
    score = 90.0 + 5 * cell["method"].startswith("gating") + (at == 2) + 1.5 * (at == 4 and cell["seed"] == 0)
    found = {"score": score + 0.1 * cell["seed"], "density": cell["keep"], "layers": {"fc.weight": cell["keep"]}}
    return found | {"rate": cell["rate"], "number": cell["number"]}


def best_of_fake(row):
    return Trial(row["rate"], row["number"]) == METHODS[row["method"]].trials[2]


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


def test_a_study_runs_tunes_and_ranks(optuna, tmp_path):
    lines = []
    begin(str(tmp_path), Plan(**PLAN))
    work(str(tmp_path), fake, lambda *line: lines.append(line))
    found = rows(open_study(str(tmp_path)))
    assert len(found) == CELLS == len(lines) and lines[-1][1:] == (CELLS, CELLS)
    assert all(best_of_fake(row) for row in found if row["phase"] == "final")
    entries = league.entries(found)
    assert [len(e.scores) for e in entries] == [2] * 4
    order = league.ranked(entries, "digits", 0.1)
    assert [e.method for e in order] == ["gating, D = 3", "gradual magnitude"]
    assert order[0].mean == pytest.approx(96.05) and order[0].spread == pytest.approx(0.1 / 2**0.5)
    assert league.standing(entries, ["gating, D = 3"]) == league.Standing(2, 2, 2)
    assert league.standing(entries, ["gradual magnitude"]) == league.Standing(2, 0, 0)
    assert league.standing(entries, ["gating, D = 3"], most=0.05) == league.Standing(0, 0, 0)


def test_small_densities_are_tuned_each(optuna, tmp_path):
    """The middle one too, for all that are larger; a score by which another trial is best at the smallest."""
    plan = Plan(["digits"], ["dense", "gating, D = 3"], [0.5, 0.2, 0.1, 0.05, 0.02], seeds=1)
    assert plan.tuned() == [0.1, 0.05, 0.02]
    assert Plan(["digits"], ["gating, D = 3"], [0.2]).tuned() == [0.2]
    trials = METHODS["gating, D = 3"].trials

    def scored(cell, scale, alive):
        at = METHODS[cell["method"]].trials.index(Trial(cell["rate"], cell["number"]))
        return fake(cell, scale) | {"score": 90.0 + (at == (4 if cell["keep"] == 0.02 else 3))}

    begin(str(tmp_path), plan)
    work(str(tmp_path), scored)
    found = rows(open_study(str(tmp_path)))
    tuned = [(row["method"], row["keep"]) for row in found if row["phase"] == "tune"]
    assert {cell: tuned.count(cell) for cell in tuned} == {
        ("dense", 1.0): 10, **{("gating, D = 3", keep): 10 for keep in plan.tuned()}
    }  # fmt: skip
    finals = {row["keep"]: Trial(row["rate"], row["number"]) for row in found if row["phase"] == "final"}
    assert [finals[keep] for keep in (0.5, 0.2, 0.1, 0.05, 0.02)] == [trials[3]] * 4 + [trials[4]]
    assert finals[1.0] == METHODS["dense"].trials[3]


def test_level_is_within_one_standard_deviation():
    """The first's own: a method is not level for being noisy, nor with seeds that failed."""
    a, b = league.Entry("t", "a", 0.1, [90.0, 92.0], 0.1, 0), league.Entry("t", "b", 0.1, [89.7, 89.9], 0.1, 0)
    assert league.level(b, a) and not league.level(league.Entry("t", "c", 0.1, [88.0, 90.2], 0.1, 0), a)
    assert not league.level(league.Entry("t", "d", 0.1, [90.9], 0.1, 1), a)


def test_a_loss_is_shown_as_one():
    assert str(league.Entry("t", "a", 0.1, [-1.5, -1.6], 0.1, 0)) == "1.5500 ± 0.0707"
    assert str(league.Entry("t", "a", 0.1, [90.0], 0.1, 0)) == "90.00"


def test_messages_name_a_database_without_its_password(optuna, tmp_path):
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert shown(str(tmp_path)) == str(tmp_path)


def test_a_storage_that_cannot_be_opened_is_told_without_its_password(optuna):
    with pytest.raises(WinnowError, match="storage cannot be opened") as told:
        open_study("nosuchdatabase://user:secret@nowhere/study")
    assert "secret" not in str(told.value)


def test_what_failed_wins_nothing():
    good, part, none = (league.Entry("t", name, 0.1, scores, 0.1, failed) for name, scores, failed in
                        (("good", [90.0, 91.0, 92.0], 0), ("part", [95.0], 2), ("none", [], 3)))  # fmt: skip
    assert [e.method for e in league.ranked([part, none, good], "t", 0.1)] == ["good", "part"]
    assert league.standing([part, none, good], ["part", "none"]) == league.Standing(1, 0, 0)
    assert league.standing([none], ["none"]) == league.Standing(0, 0, 0)


def test_what_is_done_is_not_done_again_and_what_failed_is_told(optuna, tmp_path):
    seen = []

    def sometimes(cell, scale, alive):
        seen.append(cell)
        if cell["seed"] == 1:
            raise WinnowError("no luck")
        if len(seen) == 9:
            raise KeyboardInterrupt
        return fake(cell, scale)

    begin(str(tmp_path), Plan(**PLAN))
    with pytest.raises(KeyboardInterrupt):
        work(str(tmp_path), sometimes)
    study = begin(str(tmp_path), Plan(**PLAN))  # this process lives: its job is not taken from it
    assert sum(t.state.name == "RUNNING" for t in study.trials) == 1
    running = next(t for t in study.trials if t.state.name == "RUNNING")
    study._storage.set_trial_user_attr(running._trial_id, "worker", f"{socket.gethostname()} 999999999")
    study = begin(str(tmp_path), Plan(**PLAN))
    assert not any(t.state.name == "RUNNING" for t in study.trials)
    work(str(tmp_path), fake)
    found = rows(study)
    assert len(found) == CELLS and not any(row["error"] for row in found)  # what had failed was tried again
    assert all(best_of_fake(row) for row in found if row["phase"] == "final")
    done = len([t for t in study.trials if t.state.name == "COMPLETE"])
    work(str(tmp_path), fake)
    assert len([t for t in study.get_trials() if t.state.name == "COMPLETE"]) == done == CELLS


def test_a_failed_job_does_not_stop_the_rest(optuna, tmp_path):
    def broken(cell, scale, alive):
        if cell["method"].startswith("gradual"):
            raise RuntimeError("shapes cannot be multiplied")  # what a model of the user's own may raise
        return fake(cell, scale)

    begin(str(tmp_path), Plan(**PLAN))
    work(str(tmp_path), broken)
    found = rows(open_study(str(tmp_path)))
    failed = [row for row in found if row["error"]]
    assert len(found) == CELLS and len(failed) == CELLS // 2
    assert {row["error"] for row in failed} == {
        "RuntimeError: shapes cannot be multiplied",
        "no trial of its tuning could be trained",
    }
    assert [e.failed for e in league.entries(found)] == [2, 2, 0, 0]


def _take(folder, out, together):
    together.wait(120)
    work(folder, lambda cell, scale, alive: {**fake(cell, scale), "pid": os.getpid()}, lambda *line: out.put(line))


def test_two_workers_never_take_the_same_job(optuna, tmp_path):
    begin(str(tmp_path), Plan(**{**PLAN, "seeds": 6}))
    spawn = multiprocessing.get_context("spawn")
    told, together = spawn.Queue(), spawn.Barrier(3)
    crew = [spawn.Process(target=_take, args=(str(tmp_path), told, together)) for _ in range(3)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(120)
    study = open_study(str(tmp_path))
    found = rows(study)
    cells = [json.dumps(t.user_attrs["cell"], sort_keys=True) for t in study.trials if t.state.name == "COMPLETE"]
    assert len(cells) == len(set(cells)) == len(found) == 2 * (5 * 2 * 2 + 2 * 6)
    assert len({row["pid"] for row in found}) > 1


def test_jobs_of_other_workers_are_waited_for(optuna, tmp_path, monkeypatch):
    """The last one is theirs: without it the record would rank a method on fewer seeds."""
    study = begin(str(tmp_path), Plan(**PLAN))
    *done, theirs = (study.ask() for _ in range(CELLS))
    for trial in done:
        trial.set_user_attr("result", {"score": 1.0})
        study.tell(trial, 1.0)
    theirs.set_user_attr("worker", "elsewhere 1")
    said, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            theirs.set_user_attr("result", {"score": 1.0})
            study.tell(theirs, 1.0)

    monkeypatch.setattr(study_module.time, "sleep", sleep)
    work(str(tmp_path), fake, lambda *line: said.append(line))
    assert len(rows(study)) == CELLS and len(slept) == 3
    assert said == [("waiting for 1 jobs of other workers", CELLS - 1, CELLS)]


@pytest.mark.parametrize("file", ["run.json", "path.json"])
def test_a_folder_of_another_command_is_left_alone(file, optuna, tmp_path):
    (tmp_path / file).write_text("{}")
    with pytest.raises(WinnowError, match="holds a run already"):
        begin(str(tmp_path), Plan(**PLAN))
    assert (tmp_path / file).read_text() == "{}" and len(list(tmp_path.iterdir())) == 1


def test_further_methods_join_a_comparison(optuna, tmp_path):
    first, both = (Plan(**{**PLAN, "methods": names}) for names in (["dense", "RigL"], ["dense", "gating, D = 2", "RigL"]))
    begin(str(tmp_path), first)
    work(str(tmp_path), fake)
    before = rows(begin(str(tmp_path), first))
    begin(str(tmp_path), both)
    work(str(tmp_path), fake)
    found = rows(open_study(str(tmp_path)))
    assert {row["method"] for row in found} == {"dense", "RigL", "gating, D = 2"}
    assert [row for row in found if row["method"] != "gating, D = 2"] == before
    assert "gating, D = 2" in command.record_of(str(tmp_path))["methods"]
    with pytest.raises(WinnowError, match="methods: dense, gating, D = 2, RigL there, dense, RigL here"):
        begin(str(tmp_path), first)


def test_a_task_file_that_has_changed_is_told(optuna, tmp_path):
    file, folder = tmp_path / "mine.py", str(tmp_path / "study")
    file.write_text(TASK)
    plan = Plan(**{**PLAN, "tasks": [str(file)]})
    begin(folder, plan)
    begin(folder, plan)
    file.write_text(TASK + "# other data\n")
    with pytest.raises(WinnowError, match=r"mine\.py has changed since"):
        begin(folder, plan)
    assert "files" not in command.record_of(folder)["plan"]


def test_a_silent_worker_on_another_machine_is_dead(optuna, tmp_path, monkeypatch):
    """Its job is queued again; one that gave a sign of life a moment ago is left alone."""
    seen = []

    def slow(cell, scale, alive):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 2 * storage.BEAT)
        alive()
        seen.append(study._storage.get_trial(running()._trial_id).user_attrs["beat"] - now)
        monkeypatch.undo()
        raise KeyboardInterrupt

    def running():
        return next(t for t in study.get_trials() if t.state.name == "RUNNING")

    study = begin(str(tmp_path), Plan(**PLAN))
    with pytest.raises(KeyboardInterrupt):
        work(str(tmp_path), slow)
    assert seen == [pytest.approx(2 * storage.BEAT, abs=5)]
    study._storage.set_trial_user_attr(running()._trial_id, "worker", "elsewhere 1")
    assert any(t.state.name == "RUNNING" for t in begin(str(tmp_path), Plan(**PLAN)).get_trials())
    study._storage.set_trial_user_attr(running()._trial_id, "beat", time.time() - storage.SILENT - 1)
    again = begin(str(tmp_path), Plan(**PLAN))
    assert not any(t.state.name == "RUNNING" for t in again.get_trials())
    work(str(tmp_path), fake)
    assert len(rows(again)) == CELLS


def test_a_comparison_of_an_older_version(optuna, tmp_path):
    """Without `where`: it can be read, but not gone on with."""
    study = begin(str(tmp_path), Plan(**PLAN))
    work(str(tmp_path), fake)
    study.set_user_attr("plan", {**{k: v for k, v in study.user_attrs["plan"].items() if k != "where"}, "format": 1})
    assert len(command.record_of(str(tmp_path))["rows"]) == CELLS
    with pytest.raises(WinnowError, match="holds a comparison of format 1"):
        begin(str(tmp_path), Plan(**PLAN))
    study.set_user_attr("plan", {**study.user_attrs["plan"], "format": 99})
    with pytest.raises(WinnowError, match="newer than this Winnow reads"):
        begin(str(tmp_path), Plan(**PLAN))


BAD = {
    "task": ({"tasks": ["cifar"]}, "no task 'cifar'"),
    "file": ({"tasks": ["nowhere.py"]}, "no such Python file"),
    "where": ({"where": "rows"}, "choose from elements, channels"),
    "unit": ({"where": "channels", "methods": ["RigL"]}, "no method 'RigL' for channels; --where elements has it"),
    "misspelt": ({"methods": ["gradual magnitud"]}, "did you mean 'gradual magnitude'"),
    "method": ({"methods": ["prayer"]}, "no method 'prayer'"),
    "keep": ({"keeps": [0.0]}, r"in \(0, 1\)"),
    "dense": ({"keeps": [1.0]}, "dense is a method"),
    "seeds": ({"seeds": 0}, "need seeds >= 1"),
    "nothing": ({"keeps": []}, "needs tasks"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_plan(case, tmp_path, optuna):
    changes, complaint = BAD[case]
    with pytest.raises(WinnowError, match=complaint):
        begin(str(tmp_path / "s"), Plan(**{**PLAN, **changes}))
    assert not (tmp_path / "s").exists()


def test_another_comparison_in_the_folder(optuna, tmp_path):
    begin(str(tmp_path), Plan(**PLAN))
    with pytest.raises(WinnowError, match="holds another comparison"):
        begin(str(tmp_path), Plan(**{**PLAN, "seeds": 5}))
    with pytest.raises(WinnowError, match="holds no comparison"):
        open_study(str(tmp_path / "nothing"))


def test_from_the_command_line_on_real_data(optuna, tmp_path):
    words = ["compare", "digits", "--methods", "one-shot magnitude; gating, D = 3", "--keep", "0.2", "--seeds", "1"]
    words += ["--scale", "0.05", "--out", str(tmp_path / "c")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "c" / "run.json").read_text())
    assert len(record["rows"]) == 22 and all(row["density"] <= 0.201 for row in record["rows"])
    assert all(0 < row["accuracy"] <= 100 for row in record["rows"])
    assert all(len({row["steps"] for row in record["rows"] if row["phase"] == phase}) == 1 for phase in ("tune", "final"))
    assert "Winnow's best: first in" in done.output.replace("\n", " ")
    assert CliRunner().invoke(app, ["worker", str(tmp_path / "c")]).exit_code == 0
    assert CliRunner().invoke(app, ["worker", str(tmp_path / "nowhere")]).exit_code == 2


@pytest.mark.parametrize("method", METHODS)
def test_weight_decay_reaches_every_method(method):
    """The same optimizer for all: on digits (SGD) a strong decay changes what each of them leaves."""
    job = {"task": "digits", "where": "elements", "method": method, "phase": "final", "seed": 0}
    job |= {"keep": 0.2, **vars(METHODS[method].trials[0])}
    losses = {cell.run(job, {"scale": 0.05, "weight_decay": decay})["loss"] for decay in (0.0, 0.0, 1e-2)}
    assert len(losses) == 2


def test_a_plan_from_before_there_was_weight_decay(optuna, tmp_path):
    study = begin(str(tmp_path), Plan(**PLAN))
    old = {word: value for word, value in study.user_attrs["plan"].items() if word != "weight_decay"}
    study.set_user_attr("plan", old)
    assert "weight-decay" not in command.record_of(str(tmp_path))["command"]
    begin(str(tmp_path), Plan(**PLAN))
    with pytest.raises(WinnowError, match="holds another comparison"):
        begin(str(tmp_path), Plan(**PLAN, weight_decay=1e-4))
    with pytest.raises(WinnowError, match="weight decay must be"):
        Plan(**PLAN, weight_decay=-1.0).check()


def test_a_task_of_ones_own(optuna, tmp_path):
    """Given by its file, called by its name."""
    (tmp_path / "mine.py").write_text(TASK)
    words = ["compare", str(tmp_path / "mine.py"), "--methods", "one-shot magnitude; gating, D = 2", "--keep", "0.3"]
    words += ["--seeds", "1", "--where", "channels", "--out", str(tmp_path / "c")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "c" / "run.json").read_text())
    assert {row["task"] for row in record["rows"]} == {"signs"} == set(record["plan"]["tasks"])
    assert not any(row["error"] for row in record["rows"]) and all(row["density"] < 0.35 for row in record["rows"])
    assert "tuning at rate × 0.3" in done.output and "signs" in done.output


TASK = """
import torch
from torch import nn
from winnow.jobs.data import Examples
from winnow.jobs.tasks import Task

def load(say):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > x[:, 1]).long()
    return Examples("signs", "drawn", x[:200], y[:200], x[200:], y[200:], classes=2)

def model(data, width):
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 2))

TASK = Task("signs", "which is larger?", load, model, epochs=4, batch=20, optimizer="sgd", lr={"sgd": 0.1, "adamw": 3e-3})
"""


def test_tuning_never_sees_the_test_part():
    held = DATA.fold(0)
    assert len(held.x) + len(held.test_x) == len(DATA.x)
    rows = {tuple(x.tolist()) for x in DATA.test_x}
    assert not any(tuple(x.tolist()) in rows for x in (*held.x, *held.test_x))
    text = Text("t", "drawn", torch.arange(1000) % 7, torch.full((100,), 9), "abcdefghij", 8)
    for seed in range(6):
        held = text.fold(seed)
        assert len(held.train) == 800 and len(held.test) == 200 and not bool((held.test == 9).any())
    assert not torch.equal(DATA.fold(0).test_x, DATA.fold(1).test_x)


def test_what_was_queued_twice_is_done_once(optuna, tmp_path):
    """Two who begin at the same time both find nothing there."""
    study = begin(str(tmp_path), Plan(**PLAN))
    for again in Plan(**PLAN).cells():
        study.enqueue_trial({}, user_attrs={"cell": again})
    seen = []
    work(str(tmp_path), lambda job, *rest: seen.append(job) or fake(job, *rest))
    assert len(seen) == CELLS == len(rows(study)) and not [t for t in study.get_trials() if t.state.name == "WAITING"]
    assert len(list(Plan(**{**PLAN, "keeps": [0.2, 0.2]}).cells())) == 2 * (5 * 2 + 2)


def test_a_tuning_that_was_lost_is_made_good_before_the_trainings(optuna, tmp_path):
    """Its worker died: the training that waits for it queues it again, and takes the best of all trials."""
    study = begin(str(tmp_path), Plan(**PLAN))
    best = [t for t in study.get_trials() if t.user_attrs["cell"].get("rate") == METHODS["gradual magnitude"].trials[2].rate]
    for trial in best[:2]:
        study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.RUNNING)
        study._storage.set_trial_user_attr(trial._trial_id, "worker", f"{socket.gethostname()} 999999999")
    work(str(tmp_path), fake)
    found = rows(study)
    assert len(found) == CELLS and all(best_of_fake(row) for row in found if row["phase"] == "final")


def test_a_worker_given_up_as_dead_does_not_stumble(optuna, tmp_path):
    """Another process took its job to be lost while it was at it: that one's result counts, and the worker goes on."""
    study = begin(str(tmp_path), Plan(**PLAN))
    given_up = []

    def slow(job, *rest):
        if not given_up:
            given_up.append(next(t for t in study.get_trials() if t.state.name == "RUNNING"))
            study.tell(given_up[0].number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial({}, user_attrs={"cell": job})
        return fake(job, *rest)

    work(str(tmp_path), slow)
    assert len(rows(study)) == CELLS and not any(row["error"] for row in rows(study))


def test_a_killed_worker_hangs_nobody(optuna, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_crew", _killed)
    with pytest.raises(WinnowError, match=r"2 of 2 workers died \(exit codes -9, -9\).*same command goes on"):
        command.compare(Plan(**PLAN), str(tmp_path / "c"), 2, lambda *_: None)
    assert json.loads((tmp_path / "c" / "run.json").read_text())["rows"] == []


def test_workers_end_with_the_process_that_began_them(tmp_path):
    """Killed without a word, as by the system when memory runs out."""
    script = tmp_path / "begin.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from winnow.compare import command\n"
        "def crew():\n"
        "    command.worker = lambda *_: time.sleep(600)\n"
        "    command._crew('nowhere', 1, None)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=crew)\n"
        "    process.start()\n"
        "    print(process.pid, flush=True)\n"
        "    process.join()\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    os.kill(child, 0)  # alive
    parent.kill()
    parent.wait()
    until = time.time() + 120  # it has to import torch first
    while time.time() < until:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the worker lives on")


def _killed(where, threads, told):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_lacks_something_takes_no_job(optuna, tmp_path, monkeypatch):
    study = begin(str(tmp_path), Plan(**PLAN))
    monkeypatch.setattr(command, "loaded", lambda task: object())
    with pytest.raises(WinnowError, match=r"digits: its data cannot be tuned on.*fold"):
        command.worker(str(tmp_path))
    monkeypatch.undo()
    monkeypatch.setitem(METHODS, "gating, D = 3", Made("lacking", "", RATES, Training, needs="no_such_module"))
    with pytest.raises(WinnowError, match="lacking needs no_such_module: pip install"):
        command.worker(str(tmp_path))
    assert all(t.state.name == "WAITING" for t in study.get_trials())


def test_the_league_page_is_what_the_records_say():
    script = Path(__file__).parents[1] / "scripts" / "league.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
