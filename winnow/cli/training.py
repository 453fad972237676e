"""TRAINING: `winnow train`, `path`, `tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from winnow.errors import WinnowError
from winnow.jobs import live, report, train, walk
from winnow.jobs import options as table
from winnow.jobs.tasks import TASKS

from . import words
from .words import app, said


@app.command("train")
def train_command(
    data: words.Data = None,
    task: words.TaskFile = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the penalised weights to keep.", show_default="0.1")
    ] = None,
    keep_macs: Annotated[float | None, typer.Option(help="Share of the multiply-accumulates to keep.")] = None,
    keep_params: Annotated[float | None, typer.Option(help="Share of the parameters to keep.")] = None,
    strength: Annotated[float | None, typer.Option(help="A constant strength λ instead of --keep.")] = None,
    how: words.How = "gating",
    where: words.Where = "elements",
    penalty: words.Penalty = None,
    p: words.P = None,
    depth: words.Depth = None,
    optimizer: words.Optimizer = None,
    lr: words.Rate = None,
    weight_decay: words.WeightDecay = 0.0,
    batch: words.Batch = None,
    seed: words.Seed = 0,
    epochs: words.Epochs = None,
    width: words.Width = None,
    threads: words.Threads = None,
    dense: Annotated[bool, typer.Option(help="Train the dense control too.")] = True,
    tensorboard: words.Board = False,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="a fresh one in runs/")] = None,
) -> None:
    """Train a dense control and a sparse run with equal steps; print a table; write a run folder.

    Exit code: 0 done; 2 bad usage or broken training; 3 the share obtained misses the one asked for by more than 0.01 (and by
    more than one group);
    130 interrupted.
    --keep-macs and --keep-params are about the smaller model, so they need --where channels.
    """
    console = Console()
    shares = {"keep": keep, "keep_macs": keep_macs, "keep_params": keep_params}
    with said():
        name, file = words.name(data, task)
        options = table.Options(
            name, task=file, how=how, where=where, penalty=penalty, p=p, depth=depth,
            optimizer=optimizer, lr=lr, weight_decay=weight_decay, batch=batch, seed=seed, epochs=epochs, width=width,
            threads=threads, dense=dense, strength=strength, **shares,
        )  # fmt: skip
        outcome = train.job(options, out, live.screen(console, tensorboard))
    console.print(report.table(outcome.record))
    if outcome.code == train.INTERRUPTED:
        console.print("interrupted: the weights are as the last whole step left them", style="yellow")
    console.print(f"run folder: {outcome.folder}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(outcome.code)


@app.command("path")
def path_command(
    data: words.Data = None,
    task: words.TaskFile = None,
    points: Annotated[int | None, typer.Option(help="How many of the usual densities.", show_default="8")] = None,
    densities: Annotated[
        str | None, typer.Option(help="From 1 (dense) down.", show_default="1,0.5,0.2,0.1,0.05,0.02,0.01,0.005")
    ] = None,
    of: Annotated[str, typer.Option(help="What the densities are shares of: keep | keep-macs | keep-params.")] = "keep",
    cost: Annotated[float, typer.Option(help="Of all points together, in dense trainings.")] = 2.5,
    how: words.How = "gating",
    where: words.Where = "elements",
    penalty: words.Penalty = None,
    p: words.P = None,
    depth: words.Depth = None,
    optimizer: words.Optimizer = None,
    lr: words.Rate = None,
    weight_decay: words.WeightDecay = 0.0,
    batch: words.Batch = None,
    seed: words.Seed = 0,
    epochs: words.Epochs = None,
    width: words.Width = None,
    threads: words.Threads = None,
    tensorboard: words.Board = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder.", show_default="runs/path-<task>-<how>-<where>-seed<n>")
    ] = None,
) -> None:
    """The whole trade-off curve from one training: a settled, healed, smaller model at every density.

    An interrupted one goes on where it was when the same command is given again.
    Exit code: 0 done; 2 bad usage or broken training; 130 interrupted.
    """
    console = Console()
    try:
        with said():
            name, file = words.name(data, task)
            options = table.Options(
                name, task=file, how=how, where=where, penalty=penalty, p=p, depth=depth,
                optimizer=optimizer, lr=lr, weight_decay=weight_decay, batch=batch, seed=seed, epochs=epochs,
                width=width, threads=threads, **{_share(of): 1.0},  # type: ignore[arg-type]
            )  # fmt: skip
            shown = live.screen(console, tensorboard)
            record = walk.walk(options, walk.densities_of(densities, points), out, shown, cost)
    except KeyboardInterrupt:
        console.print("interrupted: finished points are kept; the same command goes on from here", style="yellow")
        raise typer.Exit(train.INTERRUPTED) from None
    console.print(walk.table(record))
    console.print(f"path folder: {record['folder']}", markup=False, highlight=False, soft_wrap=True)


@app.command("tasks")
def tasks_command() -> None:
    """List the built-in tasks: data, model, and where the data are looked for."""
    for task in TASKS.values():
        typer.echo(f"{task.name:12} {task.about}")
    typer.echo(
        "data: below $WINNOW_DATA; digits come with scikit-learn, mnist and fashion are fetched once if there is a network"
    )


def _share(word: str) -> str:
    names = [name.replace("_", "-") for name in table.COUNTS]
    if word not in names:
        raise WinnowError(f"--of: choose from {', '.join(names)}, got {word!r}")
    return word.replace("-", "_")
