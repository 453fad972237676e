"""TASKS: real data, a model that two cores can train, and the rates found on its dense control; one entry each.

A task of your own is a file that defines `TASK = Task(…)`: `winnow train --task my_task.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from winnow.errors import WinnowError

from . import data as sets
from . import tables
from .data import Data
from .files import Say
from .models import GPTConfig, LeNet300100, NanoGPT, ResNet9, SentenceCNN


@dataclass(frozen=True)
class Task:
    """What `winnow train NAME` trains, by cross-entropy.

    `load(say)` returns the data (`winnow.jobs.data.Examples`, or anything with its methods); `model(data, width)` a fresh
    model whose output is logits, drawn from torch's global seed.  `lr` names a rate for each optimizer, "sgd" and "adamw"; the
    defaults are found on the dense control, never on a sparse run.  `width` is the model's default, None where it has one
    size; `by_loss` says that models are compared by their loss, not by their errors.
    """

    name: str
    about: str
    load: Callable[[Say], Data]
    model: Callable[[Any, int | None], nn.Module]
    epochs: int
    batch: int
    optimizer: str
    lr: Mapping[str, float]
    width: int | None = None
    by_loss: bool = False

    def __post_init__(self) -> None:
        """Raises `WinnowError` for fields of the wrong kind."""
        wrong = [f"{k} = {getattr(self, k)!r}" for k in ("epochs", "batch") if type(getattr(self, k)) is not int]
        if not isinstance(self.lr, Mapping) or self.optimizer not in self.lr:
            wrong.append(f"lr = {self.lr!r}, optimizer = {self.optimizer!r}")
        if wrong:
            raise WinnowError(
                f"task {self.name!r}: {'; '.join(wrong)}. epochs and batch are whole numbers, lr names a rate for each "
                'optimizer, as {"sgd": 0.1, "adamw": 1e-3}, that of the default optimizer at least'
            )


def _dense(first: int = 300, second: int = 100) -> Callable[[Any, int | None], nn.Module]:
    return lambda data, _width: LeNet300100(data.x.shape[1], data.classes, hidden=(first, second))


def _gpt(data: Any, width: int | None) -> nn.Module:
    return NanoGPT(GPTConfig(vocab=data.classes, block_size=data.block, n_embd=width or GPTConfig.n_embd))


def _named(name: str) -> Callable[[Say], Data]:
    return lambda say: sets.load(name, say=say)


IMAGES: dict[str, Any] = {"epochs": 20, "batch": 128, "optimizer": "sgd", "lr": {"sgd": 0.1, "adamw": 1e-3}}
SMALL: dict[str, Any] = {"batch": 32, "optimizer": "sgd", "lr": {"sgd": 0.1, "adamw": 3e-3}}

BUILT_IN = (
    Task("digits", "1,797 digits of 8×8 · 64-64-32-10", _named("digits"), _dense(64, 32), epochs=60, **SMALL),
    Task("mnist", "70,000 digits of 28×28 · LeNet-300-100", _named("mnist"), _dense(), **IMAGES),
    Task("fashion", "70,000 pieces of clothing of 28×28 · LeNet-300-100", _named("fashion"), _dense(), **IMAGES),
    Task(
        "cifar10",
        "60,000 colour images of 32×32 · ResNet-9",
        _named("cifar10"),
        lambda data, width: ResNet9(data.classes, width or 24),
        **IMAGES | {"epochs": 10, "lr": {"sgd": 0.05, "adamw": 1e-3}},
        width=24,
    ),
    Task(
        "shakespeare",
        "1.1 MB of text, by characters · nanoGPT, 0.8 M parameters",
        _named("shakespeare"),
        _gpt,
        epochs=4,
        batch=16,
        optimizer="adamw",
        lr={"sgd": 0.1, "adamw": 1e-3},
        width=128,
        by_loss=True,
    ),
    Task("isolet", "1,560 spoken letters, 617 features · 617-300-100-26", lambda _: tables.features("isolet"), _dense(),
         epochs=40, **SMALL | {"lr": {"sgd": 0.05, "adamw": 1e-3}}),
    Task("wine", "4,898 white wines, 11 features, 7 grades · 11-128-64-7", lambda _: tables.wine(), _dense(128, 64),
         epochs=40, **SMALL | {"lr": {"sgd": 0.05, "adamw": 2e-3}}),
    Task("adult", "48,842 people, 108 features, income above 50,000 · 108-128-64-2", lambda _: tables.adult(),
         _dense(128, 64), epochs=10, **SMALL | {"batch": 128, "lr": {"sgd": 0.05, "adamw": 1e-3}}),
    Task(
        "sentiment",
        "8,741 sentences of film reviews, kind or not · convolutions over words",
        lambda _: tables.sentiment(),
        lambda data, width: SentenceCNN(int(data.x.max()) + 1, data.classes, width or 64),
        epochs=10,
        batch=50,
        optimizer="adamw",
        lr={"sgd": 0.1, "adamw": 1e-3},
        width=64,
    ),
)  # fmt: skip
TASKS = {task.name: task for task in BUILT_IN}


def find(name: str, file: str | None = None) -> Task:
    """The task `name`, built in or defined by `file`.

    Raises `WinnowError` where there is none, or the file does not define one of that name.
    """
    if file is None:
        if name not in TASKS:
            raise WinnowError(f"no task {name!r}: choose from {', '.join(TASKS)}, or give a .py file that defines one")
        return TASKS[name]
    task = read(Path(file))
    if task.name != name:
        raise WinnowError(f"{file} defines the task {task.name!r}, not {name!r}")
    return task


LIBRARIES = re.compile(r"[/\\](torch|winnow|site-packages)[/\\]|<frozen")
"""Files that are not the user's: an error is told by the last line of theirs, where there is one."""


@contextmanager
def others_code(what: str) -> Iterator[None]:
    """Whatever a user's code raises inside becomes a `WinnowError` that says where, and keeps the cause."""
    try:
        yield
    except WinnowError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if not LIBRARIES.search(f.filename)), frames[-1])
        raise WinnowError(
            f"{what} broke: {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
        ) from error


def digest(file: Path) -> str:
    """What tells one state of a user's task file from another."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def read(path: Path) -> Task:
    """The task that a user's own file defines as `TASK`; its code is run."""
    spec = importlib.util.spec_from_file_location(f"winnow_task_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise WinnowError(
            f"{path}: no such Python file: a task of your own is one that defines TASK = winnow.jobs.tasks.Task(…)"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's code raises
        raise WinnowError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise WinnowError(f"{path} defines no TASK = winnow.jobs.tasks.Task(…), but {type(task).__name__}")
    return dataclasses.replace(task, load=_load_of(task, path), model=_model_of(task, path))


def _load_of(task: Task, path: Path) -> Callable[[Say], Data]:
    def load(say: Say) -> Data:
        data = task.load(say)
        if not hasattr(data, "batches"):
            raise WinnowError(f"{path}: load(say) must return the data, as Examples(…), got {type(data).__name__}")
        return data

    return load


def _model_of(task: Task, path: Path) -> Callable[[Any, int | None], nn.Module]:
    def model(data: Any, width: int | None) -> nn.Module:
        made = task.model(data, width)
        if not isinstance(made, nn.Module):
            raise WinnowError(f"{path}: model(data, width) must return a torch.nn.Module, got {type(made).__name__}")
        return made

    return model
