"""WORDS: the command itself, its errors, and the options that several of its verbs share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import winnow
from winnow.errors import WinnowError
from winnow.jobs import options as table
from winnow.jobs import report
from winnow.jobs.tasks import TASKS, read

BAD_USAGE = 2
app = typer.Typer(add_completion=False, help="Train any PyTorch model sparse.", pretty_exceptions_enable=False)


def one_of(words: object) -> str:
    """A choice, as help shows it."""
    return " | ".join(words)  # type: ignore[arg-type]


Data = Annotated[str | None, typer.Argument(help=one_of((*TASKS, "a .py file of yours")), show_default=False)]
TaskFile = Annotated[str | None, typer.Option(help="A file that defines a task of your own, TASK = Task(…).")]
How = Annotated[
    str,
    typer.Option(
        help=one_of(table.ROUTES)
        + ". auto: a gate of depth 2; train takes 3 x --lr for single weights under adamw (docs/rates.md)"
    ),
]
Where = Annotated[str, typer.Option(help=table.WHERE_HELP)]
Penalty = Annotated[str | None, typer.Option(help=one_of(table.PENALTIES), show_default="by route")]
P = Annotated[float | None, typer.Option(help="Exponent of --penalty lp.", show_default="0.5")]
Depth = Annotated[float | None, typer.Option(help="Gating: factors per weight.", show_default="3")]
Optimizer = Annotated[str | None, typer.Option(help="sgd | adamw", show_default="by task")]
Rate = Annotated[float | None, typer.Option(help="Peak rate; cosine to 0.", show_default="by task")]
WeightDecay = Annotated[float, typer.Option(help="The optimizer's own; AdamW's is off for penalised weights.")]
Batch = Annotated[int | None, typer.Option(help="Minibatch size.", show_default="by task")]
Seed = Annotated[int, typer.Option(help="Of the weights, the batches and everything drawn.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the data, dense.", show_default="by task")]
Width = Annotated[int | None, typer.Option(help="Of the models that come in several.", show_default="by task")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default="torch's choice")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard scalars into the run folder.")]
Folder = Annotated[Path, typer.Argument(help="A run folder of `winnow train`.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"winnow {report.version('torch-winnow', winnow)}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Train any PyTorch model sparse."""


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Errors as one line and exit code 2."""
    try:
        yield
    except WinnowError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_USAGE) from error


def name(data: str | None, task: str | None) -> tuple[str, str | None]:
    """What the task is called, and the file that defines it, which may stand in the name's place."""
    if data is not None and data.endswith(".py"):
        data, task = None, data
    if data is None and task is None:
        raise WinnowError(f"name a task ({', '.join(TASKS)}), or give --task a file that defines one")
    return data or read(Path(task or "")).name, task
