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

from torch import Tensor

from winnow.errors import ScheduleError


@final
@dataclass(frozen=True)
class Clock:
    """Where training stands: `step` steps taken, `flow` τ, `dose` so far, and the schedule's own memory."""

    step: int = 0
    flow: float = 0.0
    dose: float = 0.0
    memory: Mapping[str, float] = field(default_factory=dict)


class Gauge(Protocol):
    """What a schedule may measure."""

    def norms(self) -> tuple[Tensor, Tensor]:
        """(norm, number of entries) of every group of every penalised weight, flat."""
        ...

    def rate(self) -> float:
        """Present flow rate lr/(1−μ)."""
        ...


class Schedule(ABC):
    """λ over time. `strength` is a pure function of the clock."""

    @abstractmethod
    def strength(self, clock: Clock) -> float:
        """λ for the coming step."""

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
        return self.value / (1 + clock.step / self.every) ** self.power


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
        return self.value * self.ratio ** (clock.step / self.every)


@final
@dataclass(frozen=True)
class Off(Schedule):
    """`inner` up to a fraction of `steps`, then zero: the dose stays, the penalty goes (arXiv 2504.12883)."""

    inner: Schedule
    steps: int
    fraction: float = 0.5

    def __post_init__(self) -> None:
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


@final
@dataclass(frozen=True)
class Toward(Schedule):
    density: float
    steps: int
    heal: float = 0.3
    lam: float = 1e-4
    begin: float = 0.1
    every: int = 100
    power: float = 3.0
    rho: float = 0.0
    gain: float = 0.5

    def strength(self, clock: Clock) -> float:
        if clock.step >= (1 - self.heal) * self.steps: return 0.0
        return clock.memory.get("lam", 0.0)

    def cap(self, step):
        x = (step / self.steps - self.begin) / (1 - self.heal - self.begin)
        if x <= 0: return 1.0
        return self.density + (1 - self.density) * (1 - min(x,1)) ** self.power

    def observe(self, clock, gauge):
        if clock.step % self.every or clock.step >= (1 - self.heal) * self.steps: return clock.memory
        m = dict(clock.memory)
        now = gauge.balance()
        m["unit"] = now if "unit" not in m else .9*m["unit"]+.1*now
        m["top"] = max(m.get("top",0.), gauge.rate())
        limit = self.lam / (m["top"] * self.steps * .5)
        m["lam"] = min(self.rho * m["unit"], limit)
        m["r"]=m["unit"]; m["rt"]=limit
        return m

    def freeze(self, clock: Clock) -> float | None:
        end = (1 - self.heal) * self.steps
        if clock.step == int(end): return self.density
        if clock.step > end or clock.step % self.every or self.power == 0: return None
        cap = self.cap(clock.step)
        return cap if cap < 1 else None

    @property
    def target(self) -> float | None:
        return self.density
