"""What the defaults stand on: routes, learning rates and pulls on small real tasks, under SGD with momentum and AdamW.

    python bench/tuning.py digits,isolet,wine --routes "gating, D = 3" --pulls 0.1,0.3,1,3,0 --out records/tuning-pull.json
    python bench/tuning.py digits,isolet,wine --optimizers sgd,adamw --rates 0.5,1,2 --out records/tuning-rate.json

A rate is a factor of the task's own for that optimizer; a pull of 0 is 0.3, `Toward`'s default.  Every split draws its own test
part, initial weights and minibatches.  The record is written as it grows, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch

import winnow
from winnow.compare import METHODS, Setting, Trial, train
from winnow.compare.ours import Ours
from winnow.jobs import process
from winnow.jobs.data import Examples
from winnow.jobs.report import environment, write_json
from winnow.jobs.tasks import TASKS
from winnow.jobs.train import evaluate

Row = dict[str, Any]
AXES = ("task", "keep", "optimizer", "route", "rate", "pull")


def split(data: Examples, seed: int) -> Examples:
    """The same examples, a test part of the same size drawn anew."""
    x, y = torch.cat([data.x, data.test_x]), torch.cat([data.y, data.test_y])
    order, n = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)), len(data.test_x)
    return dataclasses.replace(data, x=x[order[n:]], y=y[order[n:]], test_x=x[order[:n]], test_y=y[order[:n]])


def accuracy(cell: Row, seed: int, scale: float) -> float:
    """In %, of one training; −1 where it diverged."""
    task, method = TASKS[cell["task"]], METHODS[cell["route"]]
    data: Any = split(task.load(lambda _line: None), seed)
    torch.manual_seed(seed)
    model, rate = task.model(data, task.width), cell["rate"] * task.lr[cell["optimizer"]]
    steps = max(1, round(scale * task.epochs * data.steps(task.batch)))

    trial = Trial(number=cell["pull"] or None)

    def made(model: Any, _factor: float) -> torch.optim.Optimizer:
        if cell["optimizer"] == "sgd":
            return torch.optim.SGD(model.parameters(), rate, momentum=0.9)
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)

    try:
        model, _ = train(method, model, data, Setting(cell["keep"], steps, trial, seed), task.batch, made)
    except winnow.WinnowError:
        return -1.0
    return 100 * evaluate(model, data)[1]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("tasks")
    asked.add_argument("--keep", default="0.1,0.02")
    asked.add_argument("--routes", default="; ".join(n for n, m in METHODS.items() if isinstance(m, Ours)))
    asked.add_argument("--optimizers", default="sgd")
    asked.add_argument("--rates", default="1")
    asked.add_argument("--pulls", default="0")
    asked.add_argument("--seeds", type=int, default=4)
    asked.add_argument("--scale", type=float, default=0.5)
    asked.add_argument("--out", type=Path, required=True)
    given = asked.parse_args()
    process.prepare(threads=1)
    words = {key: str(value) for key, value in vars(given).items() if key != "out"}
    record: Row = {"asked": words, "environment": environment(), "rows": []}
    if given.out.exists():
        record = json.loads(given.out.read_text(encoding="utf-8"))
        if record["asked"] != words:
            raise SystemExit(f"{given.out} holds another sweep ({record['asked']}): choose another --out")
    numbers = [[float(x) for x in text.split(",")] for text in (given.keep, given.rates, given.pulls)]
    names = [given.tasks.split(","), given.optimizers.split(","), [r.strip() for r in given.routes.split(";")]]
    done = [tuple(row[axis] for axis in AXES) for row in record["rows"]]
    for point in itertools.product(names[0], numbers[0], names[1], names[2], numbers[1], numbers[2]):
        if point in done:
            continue
        cell = dict(zip(AXES, point, strict=True))
        found = [accuracy(cell, seed, given.scale) for seed in range(given.seeds)]
        record["rows"].append({**cell, "accuracy": found})
        write_json(given.out, record)
        at = torch.tensor(found)
        print(*(f"{value:g}" if isinstance(value, float) else f"{value:14}" for value in point), end="  ")
        print(f"{at.mean():.2f} ± {at.std():.2f}", flush=True)


if __name__ == "__main__":
    main()
