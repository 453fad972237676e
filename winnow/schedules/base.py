"""WHEN: the strength λ as a function of the step, and what happens at the end.

Time is counted three ways: optimizer steps, flow time τ = Σ lr/(1−μ), and dose = Σ λ·lr/(1−μ), which is what decides how
far weights have shrunk, whatever the learning rate.  Schedules are frozen; what they must remember between steps they
return as plain numbers, which ride in the optimizer's `state_dict`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

from winnow.errors import ScheduleError


@final
@dataclass(frozen=True)
class Clock:
    """Where training stands: `step` steps taken, `flow` τ, `dose` so far, and the schedule's own memory."""

    step: int = 0
    flow: float = 0.0
    dose: float = 0.0
    memory: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Pace:
    """How a target is approached: the share of the run before it begins, the exponent of the cap's fall, the penalty's pull."""

    begin: float = 0.1
    power: float = 3.0
    pull: float = 0.3


class Gauge(Protocol):
    """What a schedule may measure."""

    def balance(self) -> float:
        """λ at which the penalty's pull on the median live group equals the last gradients': the natural unit of λ."""
        ...

    def density(self) -> float:
        """Share of the penalised entries that lie in live groups."""
        ...

    def rate(self) -> float:
        """Present flow rate lr/(1−μ)."""
        ...


class Schedule(ABC):
    """λ over time. `strength` is a pure function of the clock."""

    @abstractmethod
    def strength(self, clock: Clock) -> float:
        """λ for the coming step."""

    def suit(self, pace: Pace) -> Schedule:
        """What is left open, filled in for the route that is taken."""
        return self

    def observe(self, clock: Clock, gauge: Gauge) -> Mapping[str, float]:
        """Called after every step; what to remember."""
        return clock.memory

    def feedback(self, clock: Clock, score: float, size: float) -> Mapping[str, float]:
        """Called by `run.feedback(score)` once per epoch, `size` the L1 norm of all penalised weights."""
        return clock.memory

    def freeze(self, clock: Clock) -> float | None:
        """The density to cut to right now, by norm, for good; None for "not now"."""
        return None

    def phase(self, clock: Clock) -> str:
        """One word for progress bars."""
        return "sparsify"

    @property
    def target(self) -> float | None:
        """The density asked for, if any."""
        return None


def nonnegative(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise ScheduleError(f"{name} must be a finite number >= 0, got {value!r}; 0 means no penalty, try 1e-4")


def positive(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise ScheduleError(f"{name} must be a finite number > 0, got {value!r}")
