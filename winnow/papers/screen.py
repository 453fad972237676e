"""SCREEN: what `winnow reproduce` shows: the list and the verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .base import Experiment, Outcome

STYLES = {Outcome.CONFIRMED.value: "green", Outcome.NOT_CONFIRMED.value: "red", Outcome.NOT_RUN.value: "yellow"}


def listing(experiments: Iterable[Experiment]) -> Any:
    """All experiments as a table: name, paper, title, seeds, minutes on two cores."""
    from rich.table import Table

    shown = Table(title="winnow reproduce NAME", title_justify="left")
    for column in ("name", "what", "seeds", "minutes, full"):
        shown.add_column(column, justify="left" if column in ("name", "what") else "right")
    for one in experiments:
        shown.add_row(one.name, f"{one.title} ({one.paper.title.split(':')[0]})", str(one.seeds), f"{one.minutes:g}")
    return shown


def verdicts(record: dict[str, Any]) -> Any:
    """A record's claims, published and here, as a table."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=record["title"], title_justify="left", show_lines=True)
    for column in ("claim", "published", "here", "verdict"):
        shown.add_column(column)
    for verdict in record["verdicts"]:
        words = [Text(verdict[key]) for key in ("claim", "published", "ours")]
        shown.add_row(*words, Text(verdict["outcome"], style=STYLES[verdict["outcome"]]))
    return shown
