"""PLAN: what is compared, and the independent jobs that it comes to."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from winnow.errors import WinnowError

from . import ROSTERS
from .cell import task_of

TUNINGS = 2  # seeds of a trial
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is compared. `scale` multiplies every task's epochs, for all methods alike; so is `weight_decay`, the optimizer's.

    A task is a built-in one's name or the file of a user's own; `where` is "elements" or "channels": what vanishes.
    """

    tasks: Sequence[str]
    methods: Sequence[str]
    keeps: Sequence[float]
    seeds: int = 3
    scale: float = 1.0
    where: str = "elements"
    weight_decay: float = 0.0

    def check(self) -> Plan:
        """Itself; raises `WinnowError` for names that do not exist and numbers that make no sense."""
        if self.where not in ROSTERS:
            raise WinnowError(f"no where {self.where!r}: choose from {', '.join(ROSTERS)}")
        for name in self.tasks:
            task_of(name)
        for name in self.methods:
            if name not in ROSTERS[self.where]:
                raise WinnowError(_unknown(name, self.where))
        if not (self.tasks and self.methods and self.keeps):
            raise WinnowError("a comparison needs tasks, methods and densities")
        if self.seeds < 1 or not 0 < self.scale < math.inf:
            raise WinnowError(f"need seeds >= 1 and a finite scale > 0, got {self.seeds} and {self.scale:g}")
        if not 0 <= self.weight_decay < math.inf:
            raise WinnowError(f"the weight decay must be finite and >= 0, got {self.weight_decay}")
        if not all(0 < keep < 1 for keep in self.keeps):
            raise WinnowError(f"densities must lie in (0, 1), got {list(self.keeps)}; dense is a method")
        return self

    def cells(self) -> Iterator[Row]:
        """All jobs, a (task, method)'s tuning before its trainings."""
        for task in self.tasks:
            for name in self.methods:
                same = {"task": task, "where": self.where, "method": name}
                dense = name == "dense"
                for keep in (1.0,) if dense else self.tuned():
                    for trial in ROSTERS[self.where][name].trials:
                        for seed in range(TUNINGS):
                            yield {"phase": "tune", **same, "keep": keep, "seed": seed, **asdict(trial)}
                for keep in (1.0,) if dense else dict.fromkeys(self.keeps):
                    at = {"tuned": keep if dense else min(keep, self.tuned()[0])}
                    for seed in range(self.seeds):
                        yield {"phase": "final", **same, "keep": keep, **at, "seed": seed, "rate": None, "number": None}

    def tuned(self) -> list[float]:
        """The densities at which everything is tuned: the middle one and all below; larger ones take the middle one's."""
        keeps = sorted(set(self.keeps), reverse=True)
        return keeps[(len(keeps) - 1) // 2 :]


def _unknown(name: str, where: str) -> str:
    """A method that is not there, and what may have been meant."""
    plain = {other.lower().replace(" ", ""): other for other in ROSTERS[where]}
    meant = [plain[word] for word in difflib.get_close_matches(name.lower().replace(" ", ""), plain, 1)]
    elsewhere = [other for other, roster in ROSTERS.items() if name in roster]
    hint = f"; did you mean {meant[0]!r}?" if meant else f"; --where {elsewhere[0]} has it" if elsewhere else ""
    return f"no method {name!r} for {where}{hint}. Choose from: {'; '.join(ROSTERS[where])} (separated by ;)"
