"""WHEN, by its end: a density instead of a strength."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import final

from winnow.errors import ScheduleError, warn
from winnow.schedules.base import Clock, Gauge, Pace, Schedule, nonnegative, positive

FEW = 10  # steps in which nothing can be told apart


@final
@dataclass(frozen=True)
class Toward(Schedule):
    """A density instead of a strength: reached exactly (to one group), on every route and optimizer, then healed.

    Three things happen in `steps` optimizer steps, which must be the number really taken:

    - A cap on the density falls from 1 to `density` (as the `power` of the time left, from `begin` to 1 − `heal` of the run);
      every `every` steps the groups of smallest norm beyond the cap are set to zero, for good but on `Latent`, where they
      may come back until the end.
    - Meanwhile the penalty prepares what is cut next.  Its strength is gentle by two measures that need no tuning:
      its pull on the median live group is at most `pull` of the last gradients', and its dose λ·Σlr/(1−μ) over the
      whole run stays below `dose`.  It halves whenever groups die ahead of the cap and recovers slowly: the density
      is corrected from above only, as zeros do not come back.
    - At 1 − `heal` the zeros are frozen, the penalty is off, and the rest heals.

    `begin`, `power` and `pull` are the route's own (`Route.pace`) where they are None: 0.1, 3 and 0.3 but on `Latent`.

    Raises `ScheduleError` for a density outside (0, 1] or phases that do not fit into the run.
    """

    density: float
    steps: int
    heal: float = 0.4
    begin: float | None = None
    pull: float | None = None
    dose: float = 10.0
    every: int = 0
    power: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.density, (int, float)) and 0 < self.density <= 1):
            raise ScheduleError(f"density must lie in (0, 1], got {self.density!r}; 0.1 keeps a tenth of the weights")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ScheduleError(
                f"steps must be the number of optimizer steps of the run, an integer >= 1, got {self.steps!r}"
            )
        pace = self.pace
        if not (0 <= pace.begin and 0 <= self.heal and pace.begin + self.heal < 1):
            raise ScheduleError(f"need begin >= 0, heal >= 0 and begin + heal < 1, got {pace.begin} and {self.heal}")
        if self.every < 0:
            raise ScheduleError(f"every must be a number of steps >= 0 (0: a hundredth of the run), got {self.every}")
        if self.last - pace.begin * self.steps < FEW:
            warn(
                f"only {self.last - round(pace.begin * self.steps)} of {self.steps} optimizer steps are there to choose what "
                "stays: train longer; steps= of Toward is the number of optimizer steps of the whole training, not of epochs"
            )
        nonnegative("pull", pace.pull)
        nonnegative("dose", self.dose)
        positive("power", pace.power)

    @property
    def pace(self) -> Pace:
        """What was asked for, and the usual where nothing was."""
        return self._filled(Pace())

    def suit(self, pace: Pace) -> Toward:
        return replace(self, **asdict(self._filled(pace)))

    def _filled(self, pace: Pace) -> Pace:
        own = {name: getattr(self, name) for name in asdict(pace)}
        return replace(pace, **{name: value for name, value in own.items() if value is not None})

    @property
    def last(self) -> int:
        """The step at which the zeros are frozen."""
        return max(1, round((1 - self.heal) * self.steps))

    @property
    def stride(self) -> int:
        return self.every or max(1, self.steps // 100)

    def cap(self, step: int) -> float:
        """Largest density allowed after `step` steps."""
        start = self.pace.begin * self.steps
        left = (self.last - step) / max(self.last - start, 1)
        return self.density + (1 - self.density) * float(min(1.0, max(0.0, left)) ** self.pace.power)

    def strength(self, clock: Clock) -> float:
        return clock.memory.get("strength", 0.0) if clock.step < self.last else 0.0

    def observe(self, clock: Clock, gauge: Gauge) -> Mapping[str, float]:
        if clock.step % self.stride or clock.step >= self.last:
            return clock.memory
        now, before = gauge.balance(), clock.memory.get("unit")
        unit = now if before is None else 0.9 * before + 0.1 * now
        rate = max(gauge.rate(), clock.memory.get("rate", 0.0))  # the peak: warm-up and decay must not inflate λ
        ceiling = self.dose / (rate * self.last) if rate > 0 else 0.0
        alive, share = gauge.density(), clock.memory.get("share", 1.0)
        share = 0.5 * share if alive < 0.95 * self.cap(clock.step) else min(1.0, 1.15 * share)
        strength = min(self.pace.pull * unit, ceiling) * share if alive > 1.02 * self.density else 0.0
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
