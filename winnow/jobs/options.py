"""OPTIONS: what the main job can be asked for, its defaults, and words turned into the core's objects."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import winnow
from winnow.errors import WinnowError

from .tasks import Task, find

PENALTIES: dict[str, Callable[[Any], Any]] = {
    "lp": lambda p: winnow.Lp(0.5 if p is None else p),
    "logsum": lambda _p: winnow.LogSum(2.0),
    "mcp": lambda _p: winnow.MCP(1.0),
}

# one line per route: options -> the core's object
ROUTES: dict[str, Callable[[Any], Any]] = {
    "decay": lambda o: winnow.Decay(PENALTIES[o.penalty or "lp"](o.p)),
    "gating": lambda o: (
        winnow.Gating(PENALTIES[o.penalty](o.p))
        if o.penalty
        else winnow.Gating(depth=3 if o.depth is None else o.depth)
    ),
    "masking": lambda _options: winnow.Masking(beta=1.0),
    "dropout": lambda o: winnow.Dropout(PENALTIES[o.penalty or "logsum"](o.p)),
    "latent": lambda _options: winnow.Latent(),
    "auto": lambda _options: winnow.recipes.best(),
}

# one line per grouping: model, example, what counts -> what attach takes as `where`
GROUPINGS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "elements": lambda _model, _example, _count: winnow.Elements(),
    "rows": lambda model, _example, _count: dict.fromkeys(layer_weights(model, last=False), winnow.Rows()),
    "columns": lambda model, _example, _count: dict.fromkeys(layer_weights(model, last=True), winnow.Columns()),
    "blocks": lambda model, _example, _count: dict.fromkeys(layer_weights(model, last=False), winnow.Blocks((4, 4))),
    "2:4": lambda model, _example, _count: dict.fromkeys(fours(model), winnow.NM(2, 4)),
    "heads": lambda model, _example, _count: {
        name: winnow.Heads(heads_of(model), fused=3) for name in attention_weights(model)
    },
    "channels": lambda _model, example, count: winnow.Channels(example, count=count),
}

# one line per measure of size: the option that asks for a share of it -> its words and the core's object
COUNTS: dict[str, tuple[str, Any]] = {
    "keep": ("density", None),
    "keep_macs": ("MACs kept", winnow.MACs()),
    "keep_params": ("parameters kept", winnow.Parameters()),
}

WHERE_HELP = (
    "What vanishes together. elements: single weights of every tensor of two or more dims. "
    "rows: a unit with all it reads; the output layer and embeddings stay whole and uncounted. "
    "columns: an input of a layer, in every layer (an output layer tied to an embedding stays whole). "
    "blocks: 4x4, where rows are. 2:4: two of every four inputs, where rows are (--keep 0.5). "
    "heads: a head's queries, keys and values (fused ones, as shakespeare's model has); nothing else. "
    "channels: units with their slices of all weights; the job then ends with a smaller model, proved and timed."
)


@dataclass(frozen=True)
class Options:
    """One run of the main job; None means the default of the task `data`, filled in by `filled`.

    `task` is a file that defines a task of the user's own, whose name is `data`.
    """

    data: str
    task: str | None = None
    keep: float | None = None
    keep_macs: float | None = None
    keep_params: float | None = None
    strength: float | None = None
    how: str = "gating"
    where: str = "elements"
    penalty: str | None = None
    p: float | None = None
    depth: float | None = None
    optimizer: str | None = None
    lr: float | None = None
    weight_decay: float = 0.0
    batch: int | None = None
    seed: int = 0
    epochs: int | None = None
    width: int | None = None
    threads: int | None = None
    dense: bool = True

    def filled(self) -> Options:
        """Checked, with every default in place.

        Raises:
            WinnowError: options that contradict one another or make no sense; says what to change.
        """
        preset, given = self.job, any(getattr(self, word) is not None for word in (*COUNTS, "strength"))
        for word, table in (("how", ROUTES), ("where", GROUPINGS)):
            _choose(word, getattr(self, word), table)
        optimizer = self.optimizer or preset.optimizer
        _choose("optimizer", optimizer, preset.lr)
        self._check_pairs()
        filled = dataclasses.replace(
            self,
            task=self.task and str(Path(self.task).resolve()),
            keep=self.keep if given else 0.1,
            optimizer=optimizer,
            lr=preset.lr[optimizer] if self.lr is None else self.lr,
            batch=preset.batch if self.batch is None else self.batch,
            epochs=preset.epochs if self.epochs is None else self.epochs,
        )
        filled._check_numbers()
        return filled

    def command(self, verb: str = "train", without: Container[str] = ()) -> str:
        """The command line that repeats this run on any machine, defaults spelled out."""
        words = ["winnow", verb, self.data]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in without:
                continue
            if field.name == "dense":
                words += [] if value else ["--no-dense"]
            elif field.name != "data" and value is not None:
                words += [f"--{field.name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)

    @property
    def target(self) -> tuple[str, float] | None:
        """Which share was asked for, one of `COUNTS`, and how much; None for a fixed strength."""
        return next(((word, getattr(self, word)) for word in COUNTS if getattr(self, word) is not None), None)

    @property
    def factor(self) -> float:
        """Of the sparse side's learning rate: 1, unless `auto` knows better."""
        single, adaptive = self.where == "elements", self.optimizer != "sgd"
        return winnow.recipes.rate(single, adaptive) if self.how == "auto" else 1.0

    @property
    def asked(self) -> float | None:
        """The share asked for."""
        return self.target and self.target[1]

    @property
    def job(self) -> Task:
        """The task itself; raises `WinnowError` where there is none of that name."""
        return find(self.data, self.task)

    def _check_pairs(self) -> None:
        given = [word.replace("_", "-") for word in (*COUNTS, "strength") if getattr(self, word) is not None]
        if len(given) > 1:
            raise WinnowError(
                f"--{' and --'.join(given)}: --keep asks for a share of the weights, --keep-macs and --keep-params of the "
                "smaller model's, and --strength for a fixed penalty: give one of them"
            )
        if self.target and self.target[0] != "keep" and self.where != "channels":
            raise WinnowError(
                f"--{given[0]} is about the smaller model, which needs zeros that come out: add --where channels"
            )
        if self.how == "masking" and self.where not in ("elements", "2:4"):
            raise WinnowError("--how masking acts on single weights: use --where elements or 2:4, or --how gating")
        if self.width is not None and self.job.width is None:
            raise WinnowError(f"--width: the model of {self.data} has one size: leave it out")
        if self.depth is not None and self.how != "gating":
            raise WinnowError(f"--depth counts the factors of --how gating; --how {self.how} has none: leave it out")
        if self.depth is not None and self.penalty is not None:
            raise WinnowError("--depth D is --penalty lp with p = 2/D: give one of the two")
        if self.penalty is not None:
            if self.how in ("masking", "latent", "auto"):
                raise WinnowError(f"--how {self.how} has a penalty of its own: leave --penalty out")
            _choose("penalty", self.penalty, PENALTIES)
        if self.p is not None and (self.penalty or {"decay": "lp"}.get(self.how)) != "lp":
            raise WinnowError("--p is the exponent of --penalty lp: add that")

    def _check_numbers(self) -> None:
        for word in ("strength", "lr", "weight_decay", "batch", "epochs", "width", "threads"):
            value = getattr(self, word)
            low_ok = word in ("strength", "weight_decay") and value == 0
            if value is not None and not (low_ok or (value > 0 and math.isfinite(value))):
                raise WinnowError(f"--{word.replace('_', '-')} must be a positive number, got {value:g}")
        if self.target and not 0 < self.target[1] <= 1:
            word, value = self.target
            raise WinnowError(f"--{word.replace('_', '-')} is the share to keep, in (0, 1], got {value:g}")
        if not 0 <= self.seed < 2**32:
            raise WinnowError(f"--seed must be in [0, 2^32), got {self.seed}")


def layer_weights(model: nn.Module, last: bool) -> list[str]:
    """Names of the weights of linear and convolution layers, embeddings (and what is tied to them) left out.

    `last`: with the output layer's too, which is the last such layer.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    layers = [
        (f"{name}.weight", module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    return [name for name, weight in (layers if last else layers[:-1]) if id(weight) not in embedded]


def fours(model: nn.Module) -> list[str]:
    """Those whose inputs come in fours, the output layer left out."""
    return [name for name in layer_weights(model, last=False) if model.get_parameter(name).shape[1] % 4 == 0]


def attention_weights(model: nn.Module) -> list[str]:
    """Names of the fused query-key-value weights, (3 * width, width); raises `WinnowError` where there are none."""
    names = [name for name, _ in model.named_parameters() if name.endswith("c_attn.weight")]
    if not names:
        raise WinnowError(
            f"--where heads needs a model with attention, {type(model).__name__} has none: train shakespeare"
        )
    return names


def heads_of(model: nn.Module) -> int:
    """Attention heads per layer."""
    return int(model.config.n_head)  # type: ignore[union-attr, arg-type]


def _choose(word: str, value: str, table: Any) -> None:
    if value not in table:
        raise WinnowError(f"no {word} {value!r}: choose from {', '.join(table)}")
