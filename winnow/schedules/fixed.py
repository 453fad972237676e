"""WHEN, said beforehand: constant, ramps, decays, and PILoT's controller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from winnow.errors import ScheduleError
from winnow.schedules.base import Clock, Gauge, Schedule, nonnegative, positive


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """λ, always."""

    value: float

    def __post_init__(self) -> None:
        nonnegative("strength", self.value)

    def strength(self, clock: Clock) -> float:
        return self.value

    def phase(self, clock: Clock) -> str:
        return "constant"


@final
@dataclass(frozen=True)
class Ramp(Schedule):
    """Linear from `start` to `value` over `steps`, then `value`."""

    value: float
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        nonnegative("strength", self.value)
        nonnegative("start", self.start)
        positive("steps", self.steps)

    def strength(self, clock: Clock) -> float:
        return self.start + (self.value - self.start) * min(1.0, clock.step / self.steps)


@final
@dataclass(frozen=True)
class Harmonic(Schedule):
    """value/k^power with k = 1 + step/every: power 1 is 1/k, power 2 is 1/k² (PILoT v1)."""

    value: float
    every: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        nonnegative("strength", self.value)
        positive("every", self.every)
        positive("power", self.power)

    def strength(self, clock: Clock) -> float:
        return float(self.value / (1 + clock.step / self.every) ** self.power)


def Quadratic(value: float, every: float = 1.0) -> Harmonic:
    """value/k²."""
    return Harmonic(value, every, 2.0)


@final
@dataclass(frozen=True)
class Geometric(Schedule):
    """value·ratio^(step/every), 0 < ratio ≤ 1."""

    value: float
    ratio: float = 0.95
    every: float = 1.0

    def __post_init__(self) -> None:
        nonnegative("strength", self.value)
        positive("every", self.every)
        if not 0 < self.ratio <= 1:
            raise ScheduleError(f"ratio must lie in (0, 1], got {self.ratio}; the paper's is 0.95")

    def strength(self, clock: Clock) -> float:
        return float(self.value * self.ratio ** (clock.step / self.every))


@final
@dataclass(frozen=True)
class Off(Schedule):
    """`inner` up to a fraction of `steps`, then zero: the dose stays, the penalty goes (arXiv 2504.12883)."""

    inner: Schedule
    steps: int
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Schedule):
            raise ScheduleError(f"Off takes a schedule, got {self.inner!r}; try Off(Constant(1e-4), steps)")
        positive("steps", self.steps)
        if not 0 <= self.fraction <= 1:
            raise ScheduleError(f"fraction must lie in [0, 1], got {self.fraction}")

    def strength(self, clock: Clock) -> float:
        return self.inner.strength(clock) if clock.step < self.fraction * self.steps else 0.0

    def observe(self, clock: Clock, gauge: Gauge) -> Mapping[str, float]:
        return self.inner.observe(clock, gauge)

    def feedback(self, clock: Clock, score: float, size: float) -> Mapping[str, float]:
        return self.inner.feedback(clock, score, size)


@final
@dataclass(frozen=True)
class Feedback(Schedule):
    """PILoT's controller (arXiv 2408.09966, Algorithm 1): λ·δ while the score does not fall, ‖w‖₁ ≥ K and the first half
    of `epochs` lasts, else λ/δ. Call `run.feedback(score)` at the end of every epoch, score the training accuracy (or the
    negative training loss). The paper's α is λ/2. δ, K and `initial` are ours; the paper leaves them open.
    """

    epochs: int
    initial: float = 2e-4
    delta: float = 1.02
    K: float = 0.0
    ceiling: float = 2e-2

    def __post_init__(self) -> None:
        positive("epochs", self.epochs)
        nonnegative("initial strength", self.initial)
        nonnegative("K", self.K)
        positive("ceiling", self.ceiling)
        if not (math.isfinite(self.delta) and self.delta >= 1):
            raise ScheduleError(f"delta must be a finite number >= 1, got {self.delta}; try 1.02")

    def strength(self, clock: Clock) -> float:
        return clock.memory.get("strength", min(self.initial, self.ceiling))

    def feedback(self, clock: Clock, score: float, size: float) -> Mapping[str, float]:
        epoch = int(clock.memory.get("epoch", 0)) + 1
        rise = score >= clock.memory.get("score", 0.0 if score >= 0 else -math.inf)
        rise = rise and size >= self.K and epoch <= self.epochs / 2
        factor = self.delta if rise else 1 / self.delta
        return {"strength": min(self.strength(clock) * factor, self.ceiling), "score": score, "epoch": epoch}

    def phase(self, clock: Clock) -> str:
        return f"epoch {int(clock.memory.get('epoch', 0)) + 1}"
