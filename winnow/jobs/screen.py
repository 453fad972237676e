"""SCREEN: what a run shows and hears while it trains: a bar per side, warnings above it, Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from winnow.errors import WinnowWarning

OFTEN = 0.1  # seconds between two looks at density and strength, which cost a pass over the weights


class Quiet:
    """Shows nothing; the default of `train.job`, and the interface of a screen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def into(self, folder: Path) -> None:
        """The run's folder is made; files go there."""

    def say(self, line: str) -> None:
        """One line of news, such as a warning."""

    def begin(self, name: str, steps: int) -> None:
        """A side starts training."""

    def step(self, loss: float, run: Any, keep: float | None) -> None:
        """One optimizer step is done; `run` is None for the dense control."""

    def look(self, row: dict[str, Any]) -> None:
        """A line of the history is there."""

    def end(self) -> None:
        """The side that began last has stopped."""


class Screen(Quiet):
    """A rich progress bar on `console`: loss, density against target, strength, phase."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self.bar: Any = None
        self.done, self.looked = 0, 0.0
        self.last: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, line: str) -> None:
        self.bars.console.print(line, style="yellow", markup=False, highlight=False)

    def begin(self, name: str, steps: int) -> None:
        self.bar = self.bars.add_task(f"{name:6}", total=steps, state="")
        self.done, self.looked, self.last = 0, 0.0, ()

    def step(self, loss: float, run: Any, keep: float | None) -> None:
        self.done += 1
        self.last = (loss, run, keep)
        if time.monotonic() - self.looked > OFTEN:
            self.end()
            self.looked = time.monotonic()

    def end(self) -> None:
        if self.last:
            self.bars.update(self.bar, completed=self.done, state=state(*self.last))


class Interrupt:
    """The first Ctrl-C only sets `asked`, which is looked at between steps; the second one kills."""

    asked = False

    def __enter__(self) -> Self:
        self.asked, self.before = False, None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.before or signal.default_int_handler)


@contextmanager
def heard(screen: Quiet) -> Iterator[list[str]]:
    """Winnow's warnings inside, shown on `screen` and collected; other warnings go their usual way."""
    said: list[str] = []
    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("default", WinnowWarning)

        def show(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if not issubclass(category, WinnowWarning):
                usual(message, category, *rest, **more)
                return
            if str(message) not in said:  # a path's rungs would all say the same
                said.append(str(message))
                screen.say(f"warning: {message}")

        warnings.showwarning = show
        yield said


def state(loss: float, run: Any, keep: float | None) -> str:
    """A step in words."""
    if run is None:
        return f"loss {loss:.3f}"
    target = "" if keep is None else f"→{keep:g}"
    return f"loss {loss:.3f} density {run.density():.3f}{target} λ {run.strength:.0e} {run.phase}"
