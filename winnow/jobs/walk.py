"""WALK: a task's whole trade-off curve from one training: `winnow path TASK`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path as Folder
from typing import Any

import torch
from torch import nn

import winnow
from winnow.errors import WinnowError
from winnow.ladder import COST, DENSITIES

from . import process, report, shrink
from .data import Data
from .options import COUNTS, GROUPINGS, ROUTES, Options
from .screen import Interrupt, Quiet, heard
from .tasks import digest, others_code
from .train import Side, evaluate, make_optimizer, one_step

LOOKS = 100  # lines of a rung in the history
PRICE = "MACs per input"
"""What the job's example costs."""
HISTORY, COLUMNS = "history.csv", ("side", "step", "loss", "lr")
EPOCHS = 10_000  # of minibatches that a rung may draw before it meets the next one's


def walk(
    options: Options,
    densities: Sequence[float] = DENSITIES,
    out: Folder | None = None,
    screen: Quiet | None = None,
    cost: float = COST,
) -> dict[str, Any]:
    """Walk the path of a task, or what is left of it; the content of its run.json.

    `options` says by its `keep`, `keep_macs` or `keep_params` what the densities are shares of; the value is not used.

    Raises:
        WinnowError: bad options or data, before anything is trained; a loss that is not finite; a folder that holds
            something else.
        KeyboardInterrupt: after the step under way; finished rungs are kept, and the same call goes on from there.
    """
    options, screen = options.filled(), screen or Quiet()
    if options.target is None:
        raise WinnowError("a path goes from density to density and has no --strength: leave it out")
    process.prepare(options.threads)
    with others_code(f"the task {options.data}"):
        data = options.job.load(screen.say)
    folder = out or Folder("runs") / f"path-{options.data}-{options.how}-{options.where}-seed{options.seed}"
    screen.into(folder)
    torch.manual_seed(options.seed)
    with others_code(f"the model of {options.data}"):
        model = shrink.make(options, data)
    where = GROUPINGS[options.where](model, shrink.example_of(data), COUNTS[options.target[0]][1])
    with heard(screen) as said, screen, Interrupt() as stop, others_code("the path"):
        loop = _Loop(options, data, screen, stop, folder)
        found = winnow.path(
            model,
            loop.fit,
            lambda small: score(small, data, options),
            optimizer=lambda m: make_optimizer(m, options),
            how=ROUTES[options.how](options),
            where=where,
            example=shrink.example_of(data),
            steps=(options.epochs or 0) * data.steps(options.batch or 0),
            densities=densities,
            cost=cost,
            tag=options.command("path", without={*COUNTS, "dense", "threads"})
            + f" --of {options.target[0]}"
            + (f", file {digest(Folder(options.task))}" if options.task else ""),
            out=folder,
            news=loop.begin,
        )
    loop.keep()
    record = _record(options, data, found, densities, cost) | {"warnings": said}
    report.write_json(folder / "run.json", record)
    return record | {"folder": folder}


def score(model: nn.Module, data: Data, options: Options) -> float:
    """Accuracy in %, or minus the loss: higher is better."""
    loss, accuracy = evaluate(model, data)
    return -loss if options.job.by_loss else 100 * accuracy


class _Loop:
    """The main job's loop, a rung at a time; `rows` is its history."""

    def __init__(self, options: Options, data: Data, screen: Quiet, stop: Interrupt, folder: Folder) -> None:
        self.options, self.data, self.screen, self.stop, self.folder = options, data, screen, stop, folder
        self.rung, self.name = 0, ""
        self.rows: list[dict[str, Any]] = _earlier(folder / HISTORY)

    def begin(self, name: str, density: float, rung: int, rungs: int) -> None:
        self.rung, self.name = rung, name
        if rung:
            self.keep()

    def fit(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Cosine from the rung's rate to 0; every rung draws epochs of its own."""
        side = Side(self.name, model, optimizer)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self.screen.begin(self.name, steps)
        epoch, losses, first = self.rung * EPOCHS, [], self.rows[-1]["step"] if self.rows else 0
        every = max(1, steps // LOOKS)
        while side.step < steps:
            for x, y in self.data.batches(self.options.batch or 0, self.options.seed, epoch):
                if self.stop.asked:
                    raise KeyboardInterrupt
                loss = one_step(side, x, y)
                rates.step()
                losses.append(loss)
                self.screen.step(loss, None, None)
                if side.step % every == 0 or side.step == steps:
                    values = (self.name, first + side.step, sum(losses) / len(losses), rates.get_last_lr()[0])
                    self.rows.append(dict(zip(COLUMNS, values, strict=True)))
                    self.screen.look(self.rows[-1])
                    losses.clear()
                if side.step == steps:
                    break
            epoch += 1
        self.screen.end()

    def keep(self) -> None:
        """Write the history of the rungs that are finished."""
        report.write_csv(self.folder / HISTORY, self.rows, COLUMNS)


def _earlier(file: Folder) -> list[dict[str, Any]]:
    """What an interrupted path has written of its history."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [{**row, "step": int(row["step"])} for row in rows]


def _record(
    options: Options, data: Data, found: winnow.Path, densities: Sequence[float], cost: float
) -> dict[str, Any]:
    asked = options.command("path", without={*COUNTS, "dense"})
    of = (options.target or ("keep", 1.0))[0].replace("_", "-")
    listed = ",".join(f"{d:g}" for d in densities)
    return {
        "format": 1,
        "kind": "path",
        "command": f"{asked} --of {of} --densities {listed} --cost {cost:g}",
        "seed": options.seed,
        "options": report.plain(options),
        "environment": report.environment(),
        "data": data.describe(),
        "by_loss": options.job.by_loss,
        "points": [report.plain(point) for point in found.points],
    }


def table(record: dict[str, Any]) -> Any:
    """The curve as a `rich.table.Table`, from the record alone."""
    from rich import box
    from rich.table import Table

    options, points = record["options"], record["points"]
    words = f"{options['data']} · {options['how']} · {options['where']} · seed {options['seed']}"
    shown = Table(title=words, box=box.SIMPLE, padding=(0, 1, 0, 0))
    by_loss = record["by_loss"]
    batches = list(points[0]["speedup"])
    for column in ("asked", "kept", "loss" if by_loss else "acc. %", "params", "nonzero", PRICE, "bytes"):
        shown.add_column(column, justify="right")
    for batch in batches:
        shown.add_column(f"faster at {batch}", justify="right")
    for p in points:
        judged = f"{-p['score']:.4f}" if by_loss else f"{p['score']:.2f}"
        macs = p["macs"] // shrink.INPUTS
        sizes = [_brief(x) for x in (p["parameters"], p["nonzero"], macs, p["bytes"])]
        shown.add_row(
            f"{p['asked']:g}", f"{p['density']:.4g}", judged, *sizes, *(f"{p['speedup'][b]:.2f}×" for b in batches)
        )
    return shown


def _brief(x: int) -> str:
    """Four digits, so that a curve fits a terminal of 80 columns; the record has them all."""
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= 10 * unit:
            return f"{x / unit:,.1f}{word}"
    return f"{x:,}"


def densities_of(words: str | None, points: int | None) -> tuple[float, ...]:
    """What the command line asks for: a list, or so many of the usual ones."""
    if words is not None and points is not None:
        raise WinnowError("--densities lists them and --points counts them: give one of the two")
    if words is None:
        if points is not None and not 1 <= points <= len(DENSITIES):
            raise WinnowError(f"--points must be 1 to {len(DENSITIES)}, got {points}; or list --densities")
        return DENSITIES[: points or len(DENSITIES)]
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError as error:
        raise WinnowError(f"--densities takes numbers with commas between them, as 1,0.5,0.1, got {words!r}") from error
