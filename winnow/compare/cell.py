"""CELL: one job of a comparison: a task, a method, a density, a seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.errors import WinnowError
from winnow.jobs import process
from winnow.jobs.data import Data
from winnow.jobs.screen import Quiet, heard
from winnow.jobs.tasks import TASKS, Task, others_code, read
from winnow.jobs.train import evaluate

from . import ROSTERS, Setting, Trial, train

Row = dict[str, Any]


def run(cell: Row, plan: Row, alive: Callable[[], None] = lambda: None) -> Row:
    """Train and judge, by the plan's `scale` and `weight_decay`; `alive` is called every step.

    `score` is higher where better: accuracy in %, or minus the loss.
    """
    task = task_of(cell["task"])
    data = loaded(cell["task"])
    data = data.fold(cell["seed"]) if cell["phase"] == "tune" else data
    steps = max(1, round(plan["scale"] * task.epochs * data.steps(task.batch)))
    process.prepare()
    torch.manual_seed(cell["seed"])
    with others_code(f"the model of {task.name}"):
        model = task.model(data, task.width)

    def optimizer(model: nn.Module, factor: float) -> torch.optim.Optimizer:
        rate, decay = factor * task.lr[task.optimizer], plan["weight_decay"]
        if task.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay)
        return torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)

    trial = Trial(cell["rate"], cell["number"])
    setting = Setting(cell["keep"], steps, trial, cell["seed"], data.sample()[0][:2])
    method = ROSTERS[cell["where"]][cell["method"]]
    with heard(Quiet()) as said, others_code("the training"):
        model, found = train(method, model, data, setting, task.batch, optimizer, lambda _loss: alive())
    loss, accuracy = evaluate(model, data)
    judged = {"loss": loss, "accuracy": 100 * accuracy, "score": -loss if task.by_loss else 100 * accuracy}
    return {**found, **judged, **dataclasses.asdict(trial), "dead_units": dead_units(model), "warnings": said}


def task_of(word: str) -> Task:
    """A built-in task by its name, or a user's own by its file. Raises `WinnowError` where there is none."""
    if word.endswith(".py"):
        return read(Path(word))
    if word not in TASKS:
        raise WinnowError(f"no task {word!r}: choose from {', '.join(TASKS)}, or give the .py file that defines yours")
    return TASKS[word]


@functools.lru_cache(maxsize=1)
def loaded(task: str) -> Data:
    """The task's data, once per process."""
    return task_of(task).load(lambda line: None)


@torch.no_grad()
def dead_units(model: nn.Module) -> int:
    """Outputs of linear and convolution layers of which no weight is left."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return sum(int((~(layer.weight != 0).flatten(1).any(1)).sum()) for layer in layers)
