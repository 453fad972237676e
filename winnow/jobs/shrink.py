"""SHRINK: a finished run made physically smaller, proved, timed and shipped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import winnow
from winnow.errors import WinnowError

from .data import Data
from .options import Options

SMALL = "small"
"""The folder, inside the run's, that holds the smaller model."""
BATCHES = (1, 64)
INPUTS = 2
"""Rows of the example that a task's model is called with, over which MACs are counted."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run folder, opened again."""

    folder: Path
    options: Options
    data: Data
    model: nn.Module

    @property
    def example(self) -> torch.Tensor:
        return example_of(self.data)

    def make(self) -> nn.Module:
        """The model as it was built, weights untrained."""
        return make(self.options, self.data)


def make(options: Options, data: Data) -> nn.Module:
    """The run's model, freshly built."""
    return options.job.model(data, options.job.width if options.width is None else options.width)


def example_of(data: Data) -> torch.Tensor:
    """Some real inputs: what the model is called with."""
    return data.sample()[0][:INPUTS]


def reopen(folder: Path) -> Finished:
    """A run folder that `winnow train` wrote.

    Raises:
        WinnowError: it is none, or its files do not belong together.
    """
    options = _options(folder, "train")
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    data = options.job.load(lambda _line: None)
    model = make(options, data)
    try:
        load_model(model, str(folder / "model.safetensors"))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WinnowError(
            f"{folder / 'model.safetensors'} does not belong to {folder / 'run.json'}: {error}"
        ) from error
    return Finished(folder, options, data, model.eval())


def path_of(folder: Path) -> tuple[winnow.Path, torch.Tensor]:
    """A folder that `winnow path` wrote, and what its models are called with; raises as `reopen` does."""
    options = _options(folder, "path")
    data = options.job.load(lambda _line: None)
    return winnow.Path.read(folder, make(options, data)), example_of(data)


VERBS = {"train": "`winnow compact`, `measure` and `export`", "path": "`winnow pick`"}


def _options(folder: Path, kind: str) -> Options:
    """What a run was asked for, from its run.json."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        wrote = record.get("kind", "train")
        fields = {field.name for field in dataclasses.fields(Options)}
        options = Options(**{k: v for k, v in record["options"].items() if k in fields}) if wrote == kind else None
    except FileNotFoundError as error:
        raise WinnowError(
            f"{folder} is no run folder: it has no run.json; give what `winnow {kind}` printed last"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WinnowError(f"{folder / 'run.json'} is damaged ({error})") from error
    if options is None:
        takes = f", which {VERBS[wrote]} take" if wrote in VERBS else ""
        raise WinnowError(f"{folder} was written by `winnow {wrote}`{takes}; give the folder of a `winnow {kind}` here")
    return options


def shrink(model: nn.Module, example: torch.Tensor, folder: Path, seconds: float = 1.0) -> dict[str, Any]:
    """Compact, save below `folder`, time both; everything for the record."""
    small, proof = winnow.compact(model, example)
    winnow.save(small, folder / SMALL)
    timed = winnow.measure(model, small, example, batches=BATCHES, seconds=seconds)
    return {
        "proof": dataclasses.asdict(proof) | {"words": str(proof), "proved": proof.proved},
        "measured": dataclasses.asdict(timed) | {"words": str(timed), "speedup": list(timed.speedup)},
    }


def larger(smaller: dict[str, Any], options: Options, slack: float) -> bool:
    """Whether the smaller model has more than the share asked for, as where dead channels had to stay."""
    word, asked = options.target or ("keep", 1.0)
    counts = smaller["proof"].get({"keep_macs": "macs", "keep_params": "parameters"}.get(word, ""))
    return counts is not None and counts[1] > (asked + slack) * counts[0]


def reload(run: Finished) -> nn.Module:
    """The smaller model that `shrink` saved."""
    if not (run.folder / SMALL).exists():
        raise WinnowError(f"{run.folder} has no smaller model yet: run `winnow compact {run.folder}` first")
    return winnow.load(run.folder / SMALL, run.make)


def rows(smaller: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for the main job's table."""
    proof, timed = smaller["proof"], smaller["measured"]
    (p0, p1), (m0, m1) = proof["parameters"], proof["macs"]
    worst = max(proof["errors"].values())
    speeds = " · ".join(
        f"{ratio:.2f}× at {t['batch']}" for ratio, t in zip(timed["speedup"], timed["before"], strict=True)
    )
    return [
        ("outputs of the smaller model", f"equal, to {worst:.0e}" if proof["proved"] else f"DIFFER by {worst:.0e}"),
        ("parameters, smaller model", f"{p1:,} of {p0:,}"),
        ("MACs per input", f"{m1 // INPUTS:,} of {m0 // INPUTS:,}"),
        ("faster, batch size", speeds),
    ]
