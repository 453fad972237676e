"""LEAGUE: who is first where, from a study's rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A method at a density of a task, over its seeds."""

    task: str
    method: str
    keep: float
    scores: Sequence[float]
    density: float
    failed: int

    @property
    def mean(self) -> float:
        return mean(self.scores) if self.scores else float("-inf")

    def __str__(self) -> str:
        """Accuracy in %, or the loss where the score is minus a loss."""
        digits = 4 if self.mean < 0 else 2
        return f"{abs(self.mean):.{digits}f}" + (f" ± {self.spread:.{digits}f}" if len(self.scores) > 1 else "")

    @property
    def spread(self) -> float:
        """Standard deviation with n − 1; 0 of a single seed."""
        return stdev(self.scores) if len(self.scores) > 1 else 0.0


def entries(rows: Sequence[Row]) -> list[Entry]:
    """The final trainings, seeds together, in the order they were asked for."""
    found: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        if row["phase"] == "final":
            found.setdefault((row["task"], row["keep"], row["method"]), []).append(row)
    out = []
    for (task, keep, method), these in found.items():
        good = [row for row in these if row["error"] is None]
        density = mean(row["density"] for row in good) if good else 0.0
        out.append(Entry(task, method, keep, [row["score"] for row in good], density, len(these) - len(good)))
    return out


def ranked(found: Sequence[Entry], task: str, keep: float) -> list[Entry]:
    """One cell's methods, the best first, those with failed seeds last; dense, and what failed altogether, do not compete."""
    here = (e for e in found if e.task == task and e.keep == keep and e.scores and e.method != "dense")
    return sorted(here, key=lambda e: (e.failed > 0, -e.mean))


def level(entry: Entry, best: Entry) -> bool:
    """Within one standard deviation, the first's own, of the first; not with seeds that failed."""
    return not entry.failed and entry.mean >= best.mean - best.spread


@dataclass(frozen=True)
class Standing:
    """How a group of methods did over all cells, its best one counting in each."""

    cells: int
    first: int
    level: int
    """First, or within one standard deviation of the first."""


def standing(found: Sequence[Entry], ours: Sequence[str], most: float = 1.0) -> Standing:
    """Of `ours` over all cells of a density up to `most`."""
    cells = sorted({(e.task, e.keep) for e in found if e.keep <= most and e.method != "dense" and e.scores})
    first = close = 0
    for task, keep in cells:
        order = ranked(found, task, keep)
        best = next((e for e in order if e.method in ours), None)
        first += order[0].method in ours
        close += best is not None and level(best, order[0])
    return Standing(len(cells), first, close)
