"""TRAINING: the loop of the experiments on networks: the user's own, with a checkpoint every few minutes."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.errors import GradientError

from .base import Bench, Diverged

EVERY = 120.0  # seconds between two checkpoints
Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""The minibatches of an epoch."""
Rates = torch.optim.lr_scheduler.LRScheduler


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean over all positions, in nats."""
    return F.cross_entropy(logits.flatten(0, -2), wanted.flatten())


@dataclass
class Training:
    """A model in training: `rates` is stepped after every optimizer step; `each(epoch, mean loss)` makes a line of history."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    epochs: int
    rates: Rates | None = None
    each: Callable[[int, float], dict[str, Any]] = lambda epoch, loss: {"epoch": epoch, "loss": loss}
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    extra: Callable[[], Tensor | float] | None = None
    """Added to the loss at every step: the penalty of a method that puts it there."""

    def fit(self, bench: Bench) -> list[dict[str, Any]]:
        """All epochs, from the last checkpoint of an interrupted run if there is one.

        Raises `Diverged` at a loss or a gradient that is not finite.
        """
        first, history = self._resumed(bench)
        saved = time.monotonic()
        for epoch in range(first, self.epochs):
            self.model.train()
            losses = []
            for x, y in self.batches(epoch):
                losses.append(self._step(x, y))
                if not math.isfinite(losses[-1]):
                    raise Diverged(f"loss {losses[-1]} in epoch {epoch + 1}")
            self.model.eval()
            history.append(self.each(epoch + 1, sum(losses) / len(losses)))
            if bench.scratch and time.monotonic() - saved > EVERY:
                self._keep(bench.scratch, epoch + 1, history)
                saved = time.monotonic()
        return history

    def _step(self, x: Tensor, y: Tensor) -> float:
        loss = self.loss(self.model(x), y) + (self.extra() if self.extra else 0.0)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        try:
            self.optimizer.step()
        except GradientError as error:
            raise Diverged(str(error)) from error
        if self.rates:
            self.rates.step()
        return loss.item()

    def _keep(self, scratch: Path, epoch: int, history: list[dict[str, Any]]) -> None:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        rates = self.rates.state_dict() if self.rates else None
        state = {**parts, "rates": rates, "epoch": epoch, "history": history, "dice": torch.get_rng_state()}
        scratch.mkdir(parents=True, exist_ok=True)
        torch.save(state, scratch / "state.part")
        os.replace(scratch / "state.part", scratch / "state.pt")

    def _resumed(self, bench: Bench) -> tuple[int, list[dict[str, Any]]]:
        path = bench.scratch and bench.scratch / "state.pt"
        if path is None or not path.exists():
            return 0, []
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rates:
            self.rates.load_state_dict(state["rates"])
        torch.set_rng_state(state["dice"])
        return state["epoch"], state["history"]


def cosine(optimizer: torch.optim.Optimizer, steps: int, floor: float = 0.0) -> Rates:
    """From the rate given to `floor` of it over `steps` optimizer steps."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, floor * float(optimizer.param_groups[0]["lr"]))


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor, at_once: int = 2000) -> float:
    """Share predicted wrong."""
    was = model.training
    model.eval()
    parts = zip(torch.split(x, at_once), torch.split(y, at_once), strict=True)
    right = sum(int((model(a).argmax(-1) == b).sum()) for a, b in parts)
    model.train(was)
    return 1 - right / len(y)


def shuffled(x: Tensor, y: Tensor, batch: int, seed: int) -> Batches:
    """Minibatches in an order fixed by `seed` and the epoch alone; the last, smaller one included."""

    def batches(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        dice = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for chosen in torch.split(torch.randperm(len(x), generator=dice), batch):
            yield x[chosen], y[chosen]

    return batches


@dataclass(frozen=True)
class Stream:
    """`steps` minibatches, epoch of the data after epoch, in `parts` pieces: what `Training` takes for its epochs.

    The pieces are there for the checkpoints between them.  `data` has the main job's `batches` and `steps`.
    """

    data: Any
    batch: int
    seed: int
    steps: int
    parts: int = 10

    def __call__(self, part: int) -> Iterator[tuple[Tensor, Tensor]]:
        first, last = (k * self.steps // self.parts for k in (part, part + 1))
        epoch, skipped = divmod(first, self.data.steps(self.batch))
        every = (pair for k in itertools.count(epoch) for pair in self.data.batches(self.batch, self.seed, k))
        return itertools.islice(every, skipped, skipped + last - first)


def count_steps(examples: int, batch: int, epochs: int) -> int:
    """Optimizer steps of a training over `shuffled` minibatches."""
    return -(-examples // batch) * epochs


def nonzero_share(weights: Sequence[Tensor]) -> float:
    """Share of all entries that are not exactly zero."""
    return sum(int(torch.count_nonzero(w)) for w in weights) / sum(w.numel() for w in weights)
