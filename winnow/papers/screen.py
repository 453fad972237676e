"""SCREEN: what `winnow reproduce` shows: the list, a bar with its news, the verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from .base import Experiment, Outcome

STYLES = {Outcome.CONFIRMED.value: "green", Outcome.NOT_CONFIRMED.value: "red", Outcome.NOT_RUN.value: "yellow"}


class News:
    """A rich progress bar on `console`, one line above it for every finished cell."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        parts = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*parts, console=console)
        self.bar: Any = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def __call__(self, line: str, done: int, count: int) -> None:
        if self.bar is None:
            self.bar = self.bars.add_task("cells", total=count)
        self.bars.update(self.bar, completed=done)
        self.bars.console.print(f"[{done}/{count}] {line}", markup=False, highlight=False)


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
