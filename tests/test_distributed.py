"""HOW on two processes: DDP and FSDP2 over gloo, the batch split between the ranks, equal one process on all of it.

Everything runs once, in two spawned processes; the tests look at what they brought back.
"""

import copy
import traceback
import warnings

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from test_host import Trial, seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import winnow
from winnow import (
    L1,
    Balanced,
    Blocks,
    Columns,
    Decay,
    Dropout,
    Elements,
    Expected,
    Gating,
    Heads,
    Latent,
    LogSum,
    Lp,
    Masking,
    Rows,
)
from winnow.errors import WinnowWarning

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this torch has no gloo"
)
WORLD, STEPS = 2, 4
CASES = {
    "dense": None,
    "gating elements": (Gating(depth=3), Elements()),
    "gating rows": (Gating(depth=3), Rows()),
    "gating columns": (Gating(depth=2), Columns(weighted=True)),
    "gating columns, LogSum": (Gating(LogSum(1.0)), Columns()),
    "gating full-size": (Gating(depth=3, start=Balanced()), Elements()),
    "gating blocks": (Gating(depth=3), {"2.weight": Blocks((2, 5))}),
    "gating heads": (Gating(depth=3), {"2.weight": Heads(2)}),
    "decay": (Decay(Lp(0.5)), Elements()),
    "decay rows": (Decay(Lp(1.0)), Rows()),
    "decay columns, adaptive": (Decay(Lp(0.5), metric="adaptive"), Columns()),
    "masking": (Masking(), Elements()),
    "latent": (Latent(), Elements()),
    "latent columns": (Latent(L1), Columns()),
    "dropout expected": (Dropout(Lp(1.0), Expected()), Elements()),
    "dropout": (Dropout(Lp(1.0)), Rows()),
}
"""One line to join. Five rows on two ranks: shards need not be equal."""
WRAPS = ["ddp", "fsdp"]


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def wrapped(model, kind):
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in (model[0], model[2], model):
            fully_shard(layer)
    return model


def whole(x):
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()


class Share(Trial):
    """A trial on this rank's rows of every batch."""

    def __init__(self, case, kind, rank, world):
        seed(0)
        self.own = Net().double()
        self.model = wrapped(self.own, kind)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.1)
        self.dtype, self.taken, self.run = torch.float64, 0, None
        self.rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
        if CASES[case] is not None:
            how, where = CASES[case]
            ramp = winnow.Ramp(0.05, 8, 0.01)
            self.run = winnow.attach(self.model, self.optimizer, how=how, where=where, when=ramp, fused=False)

    def loss(self, step=None, rows=None):
        step = self.taken if step is None else step
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(8, n, generator=generator).double()[rows or self.rows] for n in (6, 4))
        seed(step)  # the same masks on all ranks, as one process would draw
        return (self.model(x) - y).square().mean()

    def weights(self):
        return [whole(theta) for theta in self.own.parameters()]

    def memory(self):
        """Adam's state of the factors, or of the weights."""
        tensors = []
        for theta in self.own.parameters():
            state = self.optimizer.state[theta]
            parts = [part["state"] for part in state.get("winnow", {}).values() if isinstance(part, dict)] or [state]
            tensors += [whole(part[key]) for part in parts for key in ("exp_avg", "exp_avg_sq")]
        return tensors


def live(case, kind, rank, world):
    """A short life: train, cut, train on, settle. What was seen on the way."""
    seen = {}
    trial = Share(case, kind, rank, world)
    seen["start"] = trial.weights()
    trial.steps(STEPS)
    seen["trained"], seen["memory"] = trial.weights(), trial.memory()
    if trial.run is None:
        return seen
    seen["names"] = [layer.name for layer in trial.run.layers()]
    seen["clock"] = trial.run.clock
    trial.run.cut(0.5)
    seen["density"], seen["layers"] = trial.run.density(), trial.run.layers()
    trial.steps(2)
    seen["healed"] = trial.weights()
    seen["certificate"] = trial.run.certificate().as_dict() if kind != "fsdp" else None
    trial.run.settle()
    seen["settled"], seen["density at last"] = trial.weights(), trial.run.density()
    seen["left over"] = "winnow" in repr(trial.optimizer.state_dict())
    trial.steps(1)
    seen["after"] = trial.weights()
    return seen


def poisoned(kind, rank, world):
    """One rank's gradient is not finite: all ranks refuse the step, and all go on."""
    trial = Share("gating rows", kind, rank, world)
    trial.steps(1)
    before = trial.weights()
    trial.optimizer.zero_grad()
    (trial.loss() * (float("nan") if rank == 1 else 1.0)).backward()
    try:
        trial.optimizer.step()
        message = "no error"
    except winnow.WinnowError as error:
        message = str(error)
    same = all(torch.equal(a, b) for a, b in zip(trial.weights(), before, strict=True))
    trial.steps(1)
    return {"message": message, "same": same, "finite": all(bool(w.isfinite().all()) for w in trial.weights())}


def scored(kind, rank, world):
    """The ranks' scores are averaged, so that all hold the same strength."""
    trial = Share("dense", kind, rank, world)
    schedule = winnow.Feedback(epochs=10, initial=0.01, delta=2.0)
    run = winnow.attach(trial.model, trial.optimizer, how=Gating(depth=2), where=Rows(), when=schedule)
    run.feedback(0.2 if rank == 0 else 0.6)
    return {"score": run.clock.memory["score"], "strength": run.strength}


def resumed(kind, rank, world):
    """In memory: torch.save of sharded tensors is `torch.distributed.checkpoint`'s business."""
    trial = Share("gating columns", kind, rank, world).steps(2)
    weights, state = copy.deepcopy(trial.model.state_dict()), copy.deepcopy(trial.optimizer.state_dict())
    trial.steps(2)
    again = Share("gating columns", kind, rank, world)
    again.model.load_state_dict(weights)
    again.optimizer.load_state_dict(state)
    again.taken = 2
    again.steps(2)
    return {"same": all(torch.equal(a, b) for a, b in zip(again.weights(), trial.weights(), strict=True))}


def crossing(kind, *_):
    """Groups that lie on two ranks in part."""
    seed(0)
    model = wrapped(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [whole(theta) for theta in model.parameters()]
    try:
        winnow.attach(model, optimizer, how=Gating(depth=2), where={"0.weight": Blocks((2, 2))}, when=0.1)
        message = "no error"
    except winnow.WinnowError as error:
        message = str(error)
    same = all(torch.equal(a, whole(b)) for a, b in zip(before, model.parameters(), strict=True))
    return {"message": message, "same": same and "winnow" not in repr(optimizer.state_dict())}


def alone(kind, *_):
    """Variational dropout's deviations are averaged by no wrapper."""
    seed(0)
    model = wrapped(Net().double(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        winnow.attach(model, optimizer, how=winnow.Variational(), where=Elements(), when=0.1)
        return {"message": "no error"}
    except winnow.WinnowError as error:
        return {"message": str(error)}


def attempt(call, *args):
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = call(*args)
        result["said"] = [str(w.message) for w in said if issubclass(w.category, WinnowWarning)]
        return result
    except Exception:
        return {"failed": traceback.format_exc()}


EXTRAS = {"poisoned": poisoned, "scored": scored, "resumed": resumed, "crossing": crossing, "alone": alone}


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    seen = {}
    for kind in WRAPS:
        for case in CASES:
            seen[kind, case] = attempt(live, case, kind, rank, WORLD)
        for name, extra in EXTRAS.items():
            seen[kind, name] = attempt(extra, kind, rank, WORLD)
    torch.save(seen, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def one():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WinnowWarning)
        return {case: live(case, "one", 0, 1) for case in CASES}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", WRAPS)
def test_two_processes_equal_one(ranks, one, kind, case):
    for rank in ranks:
        seen, alone = rank[kind, case], one[case]
        assert "failed" not in seen, seen["failed"]
        for moment in ("start", "trained", "memory"):
            close(seen[moment], alone[moment])
        assert any(bool((a != b).any()) for a, b in zip(seen["start"], seen["trained"], strict=True))
        if case == "dense":
            continue
        assert any(bool((a != b).any()) for a, b in zip(seen["trained"], one["dense"]["trained"], strict=True))
        for key in ("names", "clock"):
            assert seen[key] == alone[key]
        assert seen["clock"].step == STEPS


@pytest.mark.parametrize("case", [case for case in CASES if case != "dense"])
@pytest.mark.parametrize("kind", WRAPS)
def test_cut_density_and_settle(ranks, one, kind, case):
    for rank in ranks:
        seen, alone = rank[kind, case], one[case]
        for moment in ("healed", "settled", "after"):
            close(seen[moment], alone[moment])
        for key in ("density", "density at last", "layers"):
            assert seen[key] == alone[key]
        assert 0 < seen["density"] <= 0.5
        assert not seen["left over"]
        size = sum(layer.size for layer in seen["layers"])
        cut = [w for w in seen["settled"] if w.ndim == 2 and w.numel() in {layer.size for layer in seen["layers"]}]
        assert sum(int((w != 0).sum()) for w in cut) <= 0.5 * size


@pytest.mark.parametrize("case", [case for case in CASES if case != "dense"])
def test_all_ranks_hold_the_same(ranks, case):
    for kind in WRAPS:
        for moment in ("trained", "settled", "after"):
            for a, b in zip(ranks[0][kind, case][moment], ranks[1][kind, case][moment], strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("kind", WRAPS)
def test_a_gradient_that_is_not_finite_on_one_rank(ranks, kind):
    for rank in ranks:
        seen = rank[kind, "poisoned"]
        assert "failed" not in seen, seen["failed"]
        assert "'0.weight' is not finite at step 1" in seen["message"]
        assert seen["same"]
        assert seen["finite"]


@pytest.mark.parametrize("kind", WRAPS)
def test_scores_are_averaged(ranks, kind):
    for rank in ranks:
        assert rank[kind, "scored"].get("score") == pytest.approx(0.4), rank[kind, "scored"]
        assert rank[kind, "scored"]["strength"] == 0.02


@pytest.mark.parametrize("kind", WRAPS)
def test_resume(ranks, kind):
    for rank in ranks:
        seen = rank[kind, "resumed"]
        assert "failed" not in seen, seen["failed"]
        assert seen["same"]
        assert not [text for text in seen["said"] if "changed" in text]


def test_groups_across_shards_are_refused_before_anything_is_changed(ranks):
    for rank in ranks:
        assert rank["ddp", "crossing"]["message"] == "no error"
        seen = rank["fsdp", "crossing"]
        assert "failed" not in seen, seen["failed"]
        for needle in ("'0.weight'", "Blocks", "Shard(dim=0)", "multiple of the ranks"):
            assert needle in seen["message"], seen["message"]
        assert seen["same"]


@pytest.mark.parametrize("kind", WRAPS)
def test_variational_dropout_is_refused_on_several_ranks(ranks, kind):
    for rank in ranks:
        message = rank[kind, "alone"].get("message", rank[kind, "alone"])
        assert "over ranks; train in one process, or use how=Dropout" in message
