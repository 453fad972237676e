"""PAPERS: the published experiments, each one command: `winnow reproduce NAME`."""

from __future__ import annotations

import importlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError

from . import plots
from .base import Experiment, Missing, Outcome, Paper, Table, Verdict
from .study import News, open_study, read, reproduce
from .texts import PAPERS

MODULES = (
    "pilot.flow",
    "pilot.diagonal",
    "pilot.oneshot",
    "pilot.iterative",
    "pilot.signin",
    "dropout.penalties",
    "dropout.regression",
    "dropout.mnist",
    "decay.toy",
    "decay.lasso",
    "decay.extinction",
    "decay.lenet",
    "decay.shakespeare",
    "gating.toy",
    "gating.convergence",
    "gating.regression",
    "gating.features",
    "gating.trees",
    "gating.additive",
    "gating.fusion",
    "gating.heads",
    "gating.filters",
    "gating.overhead",
    "dictionary.routes",
    "dictionary.gates",
)


def _collect() -> dict[str, Experiment]:
    found = [importlib.import_module(f"{__name__}.{module}").EXPERIMENT for module in MODULES]
    return {experiment.name: experiment for experiment in found}


EXPERIMENTS = _collect()


@dataclass(frozen=True)
class Done:
    """A finished experiment: its folder, and the content of its record.json."""

    folder: Path
    record: dict[str, Any]


def perform(name: str, seeds: int | None, quick: bool, jobs: int, out: Path | None, news: Any) -> Done:
    """One experiment from its name to its record; `news` is a context manager that is called with what is new.

    Raises `WinnowError` for an unknown name, bad numbers, or a folder that holds something else.
    """
    if name not in EXPERIMENTS:
        raise WinnowError(f"no experiment {name!r}: choose from {', '.join(EXPERIMENTS)}")
    if (seeds is not None and seeds < 1) or jobs < 1:
        raise WinnowError(f"seeds and jobs must be at least 1, got {seeds} and {jobs}")
    words = ["winnow", "reproduce", name]
    words += ["--seeds", str(seeds)] if seeds else []
    words += ["--quick"] if quick else []
    words += ["--jobs", str(jobs)] if jobs > 1 else []
    plots.panels(1)  # what a figure needs is missed now rather than after the last cell
    root = Path("runs") if quick else Path("records")
    study = open_study(EXPERIMENTS[name], seeds, quick, out, root)
    with news:
        return Done(study.folder, reproduce(study, jobs, shlex.join(words), news))


__all__ = [
    "EXPERIMENTS",
    "PAPERS",
    "Done",
    "Experiment",
    "Missing",
    "News",
    "Outcome",
    "Paper",
    "Table",
    "Verdict",
    "open_study",
    "perform",
    "plots",
    "read",
    "reproduce",
]
