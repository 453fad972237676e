"""Toward against the best constant strength found by hand, with equal steps.

    python bench/toward.py mnist --keep 0.02 --optimizer sgd --seeds 2 --out records/toward-mnist

"By hand" is the classic way: a grid of constant strengths, the smallest groups cut by norm to the same density, the rest
healed without penalty; every grid point costs a whole training.  Both sides share weights, batches, steps and rates.
Writes one JSON file per call, after every training, so that nothing is lost when it is stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import winnow
from winnow.jobs import options, process, report, screen, tasks, train
from winnow.schedules import Clock, Schedule

GRID = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


@dataclass(frozen=True)
class Cut(Schedule):
    """A constant strength until the zeros are cut by norm, then none."""

    value: float
    density: float
    last: int

    def strength(self, clock: Clock) -> float:
        return self.value if clock.step < self.last else 0.0

    def freeze(self, clock: Clock) -> float | None:
        return self.density if clock.step == self.last else None

    @property
    def target(self) -> float | None:
        return self.density


def one(asked: options.Options, data: Any, strength: float | None, heal: float) -> dict[str, Any]:
    """One training; `strength` None is Toward."""
    asked = asked.filled()
    (side,) = train.prepare(asked, data)
    steps = asked.epochs * data.steps(asked.batch)
    if strength is not None:
        side.run.release()
        model = side.model
        when = Cut(strength, asked.keep, round((1 - heal) * steps))
        how, where = options.ROUTES[asked.how](asked), options.GROUPINGS[asked.where](model, None)
        side.optimizer = train.make_optimizer(model, asked)
        side.run = winnow.attach(model, side.optimizer, how=how, where=where, when=when)
    started = time.perf_counter()
    with warnings.catch_warnings(), screen.Interrupt() as stop:
        warnings.simplefilter("ignore", winnow.WinnowWarning)
        train.fit(side, data, asked, stop, screen.Quiet())
    if stop.asked:
        raise KeyboardInterrupt
    result = side.result
    return {
        "strength": strength,
        "heal": heal,
        "seed": asked.seed,
        "test_loss": result["loss"],
        "error": None if asked.job.by_loss else 100 * result["error"],
        "density": side.run.density(),
        "seconds": round(time.perf_counter() - started, 1),
    }


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds: Toward, and the best grid point."""
    key = "test_loss" if rows[0]["error"] is None else "error"
    sides: dict[tuple[float | None, float], list[float]] = {}
    for row in rows:
        sides.setdefault((row["strength"], row["heal"]), []).append(row[key])
    means = {side: statistics.mean(values) for side, values in sides.items()}
    grid = {side: mean for side, mean in means.items() if side[0] is not None}
    ours = [mean for side, mean in means.items() if side[0] is None]
    best = min(grid, key=lambda side: grid[side]) if grid else None
    return {
        "measure": key,
        "toward": ours[0] if ours else None,
        "best_constant": None if best is None else grid[best],
        "best_strength": None if best is None else best[0],
        "toward_minus_best": ours[0] - grid[best] if ours and best else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=list(tasks.TASKS))
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--how", default="gating")
    parser.add_argument("--where", default="elements")
    parser.add_argument("--optimizer", default=None)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--heal", type=float, default=0.4, help="of the constant strengths; Toward has its own default")
    parser.add_argument("--grid", type=float, nargs="*", default=GRID)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    process.prepare(args.threads)
    words = {k: getattr(args, k) for k in ("data", "keep", "how", "where", "optimizer", "lr", "epochs", "threads")}
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        asked = options.Options(**words, seed=seed, dense=False).filled()
        data = asked.job.load(lambda _: None)
        for strength in (None, *args.grid):
            rows.append(one(asked, data, strength, args.heal))
            print(rows[-1], flush=True)
            record = {"command": "python " + " ".join(sys.argv), "options": dataclasses.asdict(asked)}
            record |= {"summary": judge(rows), "runs": rows, "environment": report.environment()}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(judge(rows))


if __name__ == "__main__":
    main()
