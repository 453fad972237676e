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
    """A density instead of a strength: reached exactly (to one group), on every route and optimizer, then healed.

    Three things happen in `steps` optimizer steps, which must be the number really taken:

    - A cap on the density falls from 1 to `density` (cubically, from `begin` to 1 − `heal` of the run); every `every`
      steps the groups of smallest norm beyond the cap are set to zero for good.
    - Meanwhile the penalty prepares what is cut next.  Its strength is gentle by two measures that need no tuning:
      its pull on the median live group is at most `pull` of the last gradients', and its dose λ·Σlr/(1−μ) over the
      whole run stays below `dose`.  It rises slowly to that, and halves whenever groups die ahead of the cap: the
      density is corrected from above only, as zeros do not come back.
    - At 1 − `heal` the zeros are frozen, the penalty is off, and the rest heals.

    Raises `ScheduleError` for a density outside (0, 1] or phases that do not fit into the run.
    """

    density: float
    steps: int
    heal: float = 0.4
    begin: float = 0.1
    pull: float = 0.3
    dose: float = 1.0
    every: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.density, (int, float)) and 0 < self.density <= 1):
            raise ScheduleError(f"density must lie in (0, 1], got {self.density!r}; 0.1 keeps a tenth of the weights")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ScheduleError(f"steps must be the number of optimizer steps of the run, an integer >= 1, got {self.steps!r}")
        if not (0 <= self.begin and 0 <= self.heal and self.begin + self.heal < 1):
            raise ScheduleError(f"need begin >= 0, heal >= 0 and begin + heal < 1, got {self.begin} and {self.heal}")
        if self.every < 0:
            raise ScheduleError(f"every must be a number of steps >= 0 (0: a hundredth of the run), got {self.every}")
        nonnegative("pull", self.pull)
        nonnegative("dose", self.dose)

    @property
    def last(self) -> int:
        """The step at which the zeros are frozen."""
        return max(1, round((1 - self.heal) * self.steps))

    @property
    def stride(self) -> int:
        return self.every or max(1, self.steps // 100)

    def cap(self, step: int) -> float:
        """Largest density allowed after `step` steps."""
        start = self.begin * self.steps
        left = (self.last - step) / max(self.last - start, 1)
        return self.density + (1 - self.density) * min(1.0, max(0.0, left)) ** 3

    def strength(self, clock: Clock) -> float:
        return clock.memory.get("strength", 0.0) if clock.step < self.last else 0.0

    def observe(self, clock: Clock, gauge: Gauge) -> Mapping[str, float]:
        if clock.step % self.stride or clock.step >= self.last:
            return clock.memory
        now, before = gauge.balance(), clock.memory.get("unit")
        unit = now if before is None else 0.9 * before + 0.1 * now
        rate = max(gauge.rate(), clock.memory.get("rate", 0.0))  # the peak: warm-up and decay must not inflate λ
        ceiling = self.dose / (rate * self.last) if rate > 0 else 0.0
        alive, share = gauge.density(), clock.memory.get("share", 0.02)
        share = 0.5 * share if alive < 0.95 * self.cap(clock.step) else min(1.0, 1.15 * share)
        strength = min(self.pull * unit, ceiling) * share if alive > 1.02 * self.density else 0.0
        return {"unit": unit, "rate": rate, "share": share, "strength": strength}

    def freeze(self, clock: Clock) -> float | None:
        if clock.step == self.last:
            return self.density
        cap = self.cap(clock.step)
        return cap if clock.step < self.last and clock.step % self.stride == 0 and cap < 1 else None

    def phase(self, clock: Clock) -> str:
        return "sparsify" if clock.step < self.last else "heal"

    @property
    def target(self) -> float | None:
        return self.density
