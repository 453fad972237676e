"""EXPERIMENT: a published experiment as data, its claims, and four functions: cells, run, draw, table."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError

Settings = Mapping[str, Any]
Cell = dict[str, Any]
"""One independent piece of an experiment's work, in JSON's types: what to run."""
Row = dict[str, Any]
"""A cell and what came out of it, in one dict of JSON's types."""


class Missing(WinnowError):
    """A data set that is not on this machine: its cells are skipped, and the record says so."""


class Diverged(WinnowError):
    """A training whose loss or gradients are not finite any more: the record names the cell and leaves it out."""


class Outcome(enum.Enum):
    """What a full run said about a claim."""

    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"
    UNDECIDED = "not decided"
    NOT_RUN = "could not run here"

    @classmethod
    def of(cls, holds: bool | None) -> Outcome:
        """None: what was measured differs by less than its noise."""
        return cls.UNDECIDED if holds is None else cls.CONFIRMED if holds else cls.NOT_CONFIRMED


@dataclass(frozen=True)
class Verdict:
    """One claim, what was published for it, what came out here."""

    claim: str
    published: str
    ours: str
    outcome: Outcome


Found = tuple[str, bool | None]
"""What came out for a claim, in words, and whether that confirms it; None where the noise is larger than the effect."""


@dataclass(frozen=True)
class Claim:
    """A published statement and the number or curve published for it; `weigh(rows, settings)` holds ours against it."""

    words: str
    published: str
    weigh: Callable[[list[Row], Settings], Found | None]

    def judge(self, rows: list[Row], settings: Settings) -> Verdict:
        """The verdict; what these settings leave out could not run."""
        found = self.weigh(rows, settings)
        if found is None:
            return Verdict(self.words, self.published, "not among these settings", Outcome.NOT_RUN)
        return Verdict(self.words, self.published, found[0], Outcome.of(found[1]))


def claim(words: str, *, published: str) -> Callable[[Callable[[list[Row], Settings], Found | None]], Claim]:
    """A function that weighs rows becomes the claim it weighs."""
    return lambda weigh: Claim(words, published, weigh)


@dataclass(frozen=True)
class Table:
    """Cells of text under a header, as a record and a page show them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Paper:
    """A publication: `slug` names its page, `idea` says it in our words (Markdown)."""

    slug: str
    title: str
    cite: str
    idea: str


@dataclass(frozen=True)
class Bench:
    """Where a cell works: `scratch` is a folder of its own that survives an interruption."""

    scratch: Path | None

    @classmethod
    def nowhere(cls) -> Bench:
        """For a training of seconds, which keeps no checkpoint."""
        return cls(None)

    def part(self, name: str) -> Bench:
        """A place of its own for one of a cell's trainings."""
        return Bench(self.scratch and self.scratch / name)


@dataclass(frozen=True)
class Experiment:
    """A published experiment.

    `cells(settings, seeds)` cuts the work into independent pieces, `run(cell, settings, bench)` does one of them,
    `draw(rows, settings)` returns a matplotlib figure and `table(rows, settings)` the numbers beside the published ones.
    `full` and `quick` are the settings; `differs` says what was changed from the publication, and why;
    `failed` is the best explanation of what was not confirmed; `beyond` are published claims that cannot be run here;
    `minutes` is what the full version takes on two cores.
    """

    name: str
    paper: Paper
    title: str
    claims: Sequence[Claim]
    differs: str
    full: Settings
    quick: Settings
    cells: Callable[[Settings, int], list[Cell]]
    run: Callable[[Cell, Settings, Bench], dict[str, Any]]
    draw: Callable[[list[Row], Settings], Any]
    table: Callable[[list[Row], Settings], Table]
    failed: str = ""
    beyond: Sequence[Verdict] = ()
    seeds: int = 1
    minutes: float = 1.0


def among(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows whose entries equal all that is `wanted`."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


def spread(values: Sequence[float]) -> float:
    """Standard deviation with n − 1; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return float((sum((value - middle) ** 2 for value in values) / (len(values) - 1)) ** 0.5)
