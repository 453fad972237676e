"""TRAIN: the main job: a dense control and a sparse run, the same weights, batches, steps and rates."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import winnow
from winnow.errors import WinnowError

from . import process, report, shrink
from .data import Data
from .options import COUNTS, GROUPINGS, ROUTES, Options
from .screen import Interrupt, Quiet, heard
from .tasks import others_code

DONE, MISSED, INTERRUPTED = 0, 3, 130  # exit codes; 2 is bad usage
COLUMNS = (
    "side",
    "epoch",
    "step",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "density",
    "strength",
    "phase",
    "lr",
)
LOOK = 250  # steps between two looks at the test part, or an epoch if shorter


@dataclass
class Side:
    """One of the two trainings; `run` is Winnow's handle, None for the dense control."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Any = None
    step: int = 0
    seconds: float = 0.0  # in training steps, looks at the test part not counted
    history: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What `job` hands back: the process's exit code, the run folder, the content of its run.json."""

    code: int
    folder: Path
    record: dict[str, Any]


def job(options: Options, out: Path | None = None, screen: Quiet | None = None) -> Outcome:
    """Train both sides, judge them, write the run folder.

    Args:
        options: what to train; missing values are filled in.
        out: the run folder; None picks a fresh one below runs/.
        screen: where progress is shown; None shows nothing.

    Raises:
        WinnowError: bad options or data, before anything is trained or written; or training broke (loss or
            gradients not finite), after the folder has recorded how far it came, with status "failed".
    """
    options, screen = options.filled(), screen or Quiet()
    process.prepare(options.threads)
    with others_code(f"the task {options.data}"):
        data = options.job.load(screen.say)
    with heard(screen) as said:
        with others_code(f"the model of {options.data}"):
            sides = prepare(options, data)
        folder = report.new_folder(out, f"{options.data}-{options.how}-{options.where}-seed{options.seed}")
        screen.into(folder)
        status, problem = _train(sides, data, options, screen)
        record = _record(options, data, sides, status) | {"warnings": said, "error": problem and str(problem)}
    if status == "done" and options.where == "channels":
        sparse = next(side for side in sides if side.name == "sparse")
        record["smaller"] = shrink.shrink(sparse.model.eval(), shrink.example_of(data), folder)
        if record["sparse"]["missed"] is False:
            record["sparse"]["missed"] = shrink.larger(
                record["smaller"], options, record["sparse"]["grain"] + report.MISS
            )
    _write(folder, sides, record)
    if problem is not None:
        raise WinnowError(f"{problem} (what there is: {folder})") from problem
    missed = record["sparse"] is not None and record["sparse"]["missed"]
    return Outcome(INTERRUPTED if status == "interrupted" else MISSED if missed else DONE, folder, record)


def prepare(options: Options, data: Data) -> list[Side]:
    """Both sides from the same initial weights; all that `attach` may refuse, it refuses here."""
    steps = (options.epochs or 0) * data.steps(options.batch or 0)
    torch.manual_seed(options.seed)
    model = shrink.make(options, data)
    dense = copy.deepcopy(model)
    sparse = Side("sparse", model, make_optimizer(model, options, options.factor))
    when: Any = options.strength if options.target is None else winnow.Toward(density=options.target[1], steps=steps)
    count = options.target and COUNTS[options.target[0]][1]
    how, where = ROUTES[options.how](options), GROUPINGS[options.where](model, shrink.example_of(data), count)
    sparse.run = winnow.attach(model, sparse.optimizer, how=how, where=where, when=when)
    return [Side("dense", dense, make_optimizer(dense, options)), sparse] if options.dense else [sparse]


def _train(sides: list[Side], data: Data, options: Options, screen: Quiet) -> tuple[str, WinnowError | None]:
    """One side after the other; how it ended, and what broke it."""
    with screen, Interrupt() as stop:
        try:
            with others_code("training"):
                for side in sides:
                    fit(side, data, options, stop, screen)
                    if stop.asked:
                        return "interrupted", None
        except WinnowError as error:
            return "failed", error
    return "done", None


def make_optimizer(model: nn.Module, options: Options, factor: float = 1.0) -> torch.optim.Optimizer:
    """The user's optimizer, the same on either side but for `factor`: SGD with momentum 0.9, or AdamW."""
    same: Any = {"lr": factor * (options.lr or 0.0), "weight_decay": options.weight_decay}
    if options.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=0.9, **same)
    return torch.optim.AdamW(model.parameters(), fused=True, **same)


def fit(side: Side, data: Data, options: Options, stop: Interrupt, screen: Quiet) -> None:
    """All of one side's steps, then its result; returns early, between two steps, when `stop.asked`."""
    epochs, batch = options.epochs or 0, options.batch or 0
    total, every = epochs * data.steps(batch), min(LOOK, data.steps(batch))
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(side.optimizer, total)
    torch.manual_seed(options.seed)
    screen.begin(side.name, total)
    losses: list[float] = []
    for epoch in range(epochs):
        for x, y in data.batches(batch, options.seed, epoch):
            if stop.asked:
                break
            losses.append(one_step(side, x, y))
            rates.step()
            screen.step(losses[-1], side.run, options.asked)
            if side.step % every == 0 or side.step == total:
                screen.look(_note(side, data, epoch + 1, sum(losses) / len(losses)))
                losses.clear()
    screen.end()
    finished = side.step == total
    if finished and side.run is not None:
        side.run.settle()
    if side.step:
        side.result = judge(side, data, options, finished)


def one_step(side: Side, x: Tensor, y: Tensor) -> float:
    """The inside of the loop a user writes, and nothing more; the minibatch's loss."""
    start = time.perf_counter()
    loss = F.cross_entropy(side.model(x).flatten(0, -2), y.flatten())
    value = loss.item()
    if not math.isfinite(value):
        raise WinnowError(f"the {side.name} side's loss is {value} at step {side.step + 1}: try a smaller --lr")
    side.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    side.optimizer.step()
    side.step += 1
    side.seconds += time.perf_counter() - start
    return value


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> tuple[float, float]:
    """Mean cross-entropy in nats and share predicted right, over the whole test part."""
    was, count, loss, right = model.training, 0, 0.0, 0
    model.eval()
    for x, y in data.held_out():
        logits, wanted = model(x).flatten(0, -2), y.flatten()
        loss += F.cross_entropy(logits, wanted, reduction="sum").item()
        right += int((logits.argmax(-1) == wanted).sum())
        count += len(wanted)
    model.train(was)
    return loss / count, right / count


def certify(side: Side, data: Data) -> Any:
    """The run's certificate, its gradients taken on `data.sample()` and not on one noisy minibatch."""
    x, y = data.sample()
    side.model.eval()
    return side.run.certificate(lambda: F.cross_entropy(side.model(x).flatten(0, -2), y.flatten()))


def judge(side: Side, data: Data, options: Options, finished: bool) -> dict[str, Any]:
    """A side's numbers for the record; density, layers and certificate for the sparse one only."""
    loss, accuracy = evaluate(side.model, data)
    weights = list(side.model.parameters())
    result: dict[str, Any] = {"loss": loss, "accuracy": accuracy, "error": 1 - accuracy}
    result |= {"seconds": side.seconds, "steps": side.step}
    result["parameters"] = sum(weight.numel() for weight in weights)
    result["nonzero"] = sum(int(torch.count_nonzero(weight)) for weight in weights)
    if side.run is not None:
        density, certificate = side.run.density(), certify(side, data) if finished else None
        layers = [report.plain(layer) for layer in side.run.layers()]
        result |= {"density": density, "penalised": sum(layer["size"] for layer in layers), "layers": layers}
        asked = options.asked if finished else None
        result["grain"] = side.run.grain
        result["missed"] = asked is not None and abs(density - asked) > max(report.MISS, side.run.grain) + 1e-9
        words = certificate and {"words": str(certificate)} | certificate.as_dict()
        result["certificate"] = report.plain(words)
    return result


def _note(side: Side, data: Data, epoch: int, train_loss: float) -> dict[str, Any]:
    """The next line of the side's history."""
    loss, accuracy = evaluate(side.model, data)
    run = side.run
    state = (1.0, 0.0, "dense") if run is None else (run.density(), run.strength, run.phase)
    values = (
        side.name,
        epoch,
        side.step,
        train_loss,
        loss,
        accuracy,
        *state,
        side.optimizer.param_groups[0]["lr"],
    )
    side.history.append(dict(zip(COLUMNS, values, strict=True)))
    return side.history[-1]


def _record(options: Options, data: Data, sides: list[Side], status: str) -> dict[str, Any]:
    results = {side.name: side.result for side in sides}
    return {
        "format": 1,
        "status": status,
        "command": options.command(),
        "seed": options.seed,
        "options": report.plain(options),
        "environment": report.environment(),
        "data": data.describe(),
        "by_loss": options.job.by_loss,
        "route": repr(ROUTES[options.how](options)),
        "rate_factor": options.factor,
        "steps": (options.epochs or 0) * data.steps(options.batch or 0),
        "dense": results.get("dense"),
        "sparse": results["sparse"],
    }


def _write(folder: Path, sides: list[Side], record: dict[str, Any]) -> None:
    """The record last: a folder with a run.json is complete."""
    report.write_csv(folder / "history.csv", [row for side in sides for row in side.history], COLUMNS)
    for side in sides:
        if side.step:
            name = "dense.safetensors" if side.name == "dense" else "model.safetensors"
            report.write_model(folder / name, side.model)
    report.write_json(folder / "run.json", record)
