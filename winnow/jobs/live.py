"""LIVE: what to watch a training with: bars in a terminal, plain lines elsewhere, TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from winnow.errors import WinnowError

from .screen import Quiet, Screen, state

TENTHS = 10
TAGS = {
    "train_loss": "loss/train",
    "loss": "loss/train",
    "test_loss": "loss/test",
    "test_accuracy": "accuracy/test",
    "density": "density",
    "strength": "strength",
    "lr": "lr",
}
"""A column of the history to the tag it has in TensorBoard."""


def screen(console: Any, tensorboard: bool = False) -> Quiet:
    """What `winnow train` and `path` show: bars on a terminal, lines on anything else; TensorBoard beside it.

    Raises `WinnowError` where TensorBoard is asked for and not installed.
    """
    shown: Quiet = Screen(console) if console.is_terminal else Lines(console)
    return Both([shown, Board()]) if tensorboard else shown


class Lines(Quiet):
    """A line of text for every tenth of a training."""

    def __init__(self, console: Any) -> None:
        self.console = console
        self.name, self.steps, self.done = "", 0, 0

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, name: str, steps: int) -> None:
        self.name, self.steps, self.done = name, steps, 0

    def step(self, loss: float, run: Any, keep: float | None) -> None:
        self.done += 1
        if self.done * TENTHS // self.steps > (self.done - 1) * TENTHS // self.steps:
            self.say(f"{self.name} {self.done}/{self.steps} {state(loss, run, keep)}")


class Board(Quiet):
    """TensorBoard's scalars, a run for each side, below tensorboard/ in the run folder."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as missing:
            raise WinnowError('--tensorboard needs its extra: pip install "torch-winnow[tensorboard]"') from missing
        self._make: Any = SummaryWriter
        self._writers: dict[str, Any] = {}
        self._folder = Path("tensorboard")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def into(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"

    def look(self, row: dict[str, Any]) -> None:
        side = str(row["side"])
        if side not in self._writers:
            self._writers[side] = self._make(str(self._folder / side.strip().replace(" ", "-")))
        for column, tag in TAGS.items():
            if column in row:
                self._writers[side].add_scalar(tag, float(row[column]), int(row["step"]))


class Both(Quiet):
    """Several at once."""

    def __init__(self, screens: Sequence[Quiet]) -> None:
        self.screens = screens

    def __enter__(self) -> Self:
        for each in self.screens:
            each.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in self.screens:
            each.__exit__(kind, error, at)

    def into(self, folder: Path) -> None:
        for each in self.screens:
            each.into(folder)

    def say(self, line: str) -> None:
        for each in self.screens:
            each.say(line)

    def begin(self, name: str, steps: int) -> None:
        for each in self.screens:
            each.begin(name, steps)

    def step(self, loss: float, run: Any, keep: float | None) -> None:
        for each in self.screens:
            each.step(loss, run, keep)

    def look(self, row: dict[str, Any]) -> None:
        for each in self.screens:
            each.look(row)

    def end(self) -> None:
        for each in self.screens:
            each.end()


class Tally:
    """Many trainings: a bar on `console`, and a line above it for every one that is finished."""

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
            self.bar = self.bars.add_task("done", total=count)
        self.bars.update(self.bar, completed=done)
        self.bars.console.print(f"[{done}/{count}] {line}", markup=False, highlight=False, soft_wrap=True)
