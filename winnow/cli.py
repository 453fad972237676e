"""CLI: `winnow train digits --keep 0.1`, a network made sparse while you watch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
except ImportError as missing:  # the extra is not installed
    raise ImportError('the winnow command needs its extra: pip install "torch-winnow[cli]"') from missing

import winnow
from winnow.errors import WinnowError

from .jobs import options as table
from .jobs import report, shrink, train, walk
from .jobs.screen import Screen
from .jobs.tasks import TASKS, read

app = typer.Typer(add_completion=False, help="Train any PyTorch model sparse.", pretty_exceptions_enable=False)
BAD_USAGE = 2


def _one_of(words: object) -> str:
    return " | ".join(words)  # type: ignore[arg-type]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"winnow {report.version('torch-winnow', winnow)}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Train any PyTorch model sparse."""


@app.command("train")
def train_command(
    data: Annotated[str | None, typer.Argument(help=_one_of(TASKS), show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="A file that defines a task of your own, TASK = Task(…).")] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the penalised weights to keep.", show_default="0.1")
    ] = None,
    keep_macs: Annotated[float | None, typer.Option(help="Share of the multiply-accumulates to keep.")] = None,
    keep_params: Annotated[float | None, typer.Option(help="Share of the parameters to keep.")] = None,
    strength: Annotated[float | None, typer.Option(help="A constant strength λ instead of --keep.")] = None,
    how: Annotated[str, typer.Option(help=_one_of(table.ROUTES))] = "gating",
    where: Annotated[str, typer.Option(help=table.WHERE_HELP)] = "elements",
    penalty: Annotated[str | None, typer.Option(help=_one_of(table.PENALTIES), show_default="by route")] = None,
    p: Annotated[float | None, typer.Option(help="Exponent of --penalty lp.", show_default="0.5")] = None,
    depth: Annotated[float | None, typer.Option(help="Gating: factors per weight.", show_default="3")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd | adamw", show_default="by data")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak rate; cosine to 0.", show_default="by data")] = None,
    batch: Annotated[int | None, typer.Option(help="Minibatch size.", show_default="by data")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the batches and everything drawn.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, each side.", show_default="by data")] = None,
    width: Annotated[
        int | None, typer.Option(help="Of the models that come in several.", show_default="by task")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="torch's choice")] = None,
    dense: Annotated[bool, typer.Option(help="Train the dense control too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="a fresh one in runs/")] = None,
) -> None:
    """Train a dense control and a sparse run with equal steps; print a table; write a run folder.

    Exit code: 0 done; 2 bad usage or broken training; 3 the share obtained misses the one asked for by more than 0.01 (and by
    more than one group);
    130 interrupted.
    --keep-macs and --keep-params are about the smaller model, so they need --where channels.
    """
    console = Console()
    words = {"task": task, "how": how, "where": where, "penalty": penalty, "optimizer": optimizer}
    shares = {"keep": keep, "keep_macs": keep_macs, "keep_params": keep_params}
    numbers = shares | {"strength": strength, "p": p, "depth": depth, "lr": lr}
    counts = {"batch": batch, "seed": seed, "epochs": epochs, "width": width, "threads": threads}
    with _said():
        options = table.Options(_name(data, task), **words, **numbers, **counts, dense=dense)  # type: ignore[arg-type]
        outcome = train.job(options, out, Screen(console))
    console.print(report.table(outcome.record))
    if outcome.code == train.INTERRUPTED:
        console.print("interrupted: the weights are as the last whole step left them", style="yellow")
    console.print(f"run folder: {outcome.folder}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(outcome.code)


def _name(data: str | None, task: str | None) -> str:
    """What the task is called."""
    if data is None and task is None:
        raise WinnowError(f"name a task ({', '.join(TASKS)}), or give --task a file that defines one")
    return data or read(Path(task or "")).name


@app.command("tasks")
def tasks_command() -> None:
    """List the built-in tasks: data, model, and where the data are looked for."""
    for task in TASKS.values():
        typer.echo(f"{task.name:12} {task.about}")
    typer.echo(
        "data: below $WINNOW_DATA; digits come with scikit-learn, mnist and fashion are fetched once if there is a network"
    )


@app.command("path")
def path_command(
    data: Annotated[str | None, typer.Argument(help=_one_of(TASKS), show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="A file that defines a task of your own, TASK = Task(…).")] = None,
    points: Annotated[int | None, typer.Option(help="How many of the usual densities.", show_default="8")] = None,
    densities: Annotated[
        str | None, typer.Option(help="From 1 (dense) down.", show_default="1,0.5,0.2,0.1,0.05,0.02,0.01,0.005")
    ] = None,
    of: Annotated[str, typer.Option(help="What the densities are shares of: keep | keep-macs | keep-params.")] = "keep",
    cost: Annotated[float, typer.Option(help="Of all points together, in dense trainings.")] = 2.5,
    how: Annotated[str, typer.Option(help=_one_of(table.ROUTES))] = "gating",
    where: Annotated[str, typer.Option(help=table.WHERE_HELP)] = "elements",
    penalty: Annotated[str | None, typer.Option(help=_one_of(table.PENALTIES), show_default="by route")] = None,
    depth: Annotated[float | None, typer.Option(help="Gating: factors per weight.", show_default="3")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd | adamw", show_default="by task")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak rate; cosine to 0.", show_default="by task")] = None,
    batch: Annotated[int | None, typer.Option(help="Minibatch size.", show_default="by task")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the batches and everything drawn.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Of the dense point.", show_default="by task")] = None,
    width: Annotated[
        int | None, typer.Option(help="Of the models that come in several.", show_default="by task")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="torch's choice")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder.", show_default="runs/path-<task>-<how>-<where>-seed<n>")
    ] = None,
) -> None:
    """The whole trade-off curve from one training: a settled, healed, smaller model at every density.

    An interrupted one goes on where it was when the same command is given again.
    Exit code: 0 done; 2 bad usage or broken training; 130 interrupted.
    """
    console = Console()
    words = {"task": task, "how": how, "where": where, "penalty": penalty, "optimizer": optimizer}
    numbers = {
        "depth": depth,
        "lr": lr,
        "batch": batch,
        "seed": seed,
        "epochs": epochs,
        "width": width,
        "threads": threads,
    }
    try:
        with _said():
            share = {_share(of): 1.0}
            options = table.Options(_name(data, task), **share, **words, **numbers)  # type: ignore[arg-type]
            record = walk.walk(options, walk.densities_of(densities, points), out, Screen(console), cost)
    except KeyboardInterrupt:
        console.print("interrupted: finished points are kept; the same command goes on from here", style="yellow")
        raise typer.Exit(train.INTERRUPTED) from None
    console.print(walk.table(record))
    console.print(f"path folder: {record['folder']}", markup=False, highlight=False, soft_wrap=True)


def _share(word: str) -> str:
    names = [name.replace("_", "-") for name in table.COUNTS]
    if word not in names:
        raise WinnowError(f"--of: choose from {', '.join(names)}, got {word!r}")
    return word.replace("-", "_")


Folder = Annotated[Path, typer.Argument(help="A run folder of `winnow train`.", show_default=False)]


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """Errors as one line and exit code 2."""
    try:
        yield
    except WinnowError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_USAGE) from error


@app.command("compare")
def compare_command(
    tasks: Annotated[str, typer.Argument(help="Tasks, with commas between them.")],
    methods: Annotated[str | None, typer.Option(help="Separated by ;", show_default="all")] = None,
    keep: Annotated[str, typer.Option(help="Densities.")] = "0.5,0.2,0.1,0.05,0.02",
    seeds: Annotated[int, typer.Option(help="Trainings of every cell.")] = 3,
    scale: Annotated[float, typer.Option(help="Times every task's epochs, for all methods alike.")] = 1.0,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 1,
    out: Annotated[str, typer.Option(help="Folder, or an Optuna storage's URL.")] = "runs/compare",
) -> None:
    """Every method with equal steps and an equal tuning budget, resumable; `winnow worker` joins from any machine.

    Exit code: 0 done; 2 bad usage; 130 interrupted.
    """
    from .compare import METHODS, command
    from .compare.study import Plan

    console = Console()
    try:
        with _said():
            names = [name.strip() for name in methods.split(";")] if methods else list(METHODS)
            plan = Plan(command.listed(tasks), names, command.listed(keep, float), seeds, scale)
            record = command.compare(
                plan, out, jobs, lambda line, done, of: console.print(f"[{done}/{of}] {line}", markup=False)
            )
    except KeyboardInterrupt:
        console.print("interrupted: finished jobs are kept; the same command goes on from here", style="yellow")
        raise typer.Exit(train.INTERRUPTED) from None
    console.print(command.table(record))


@app.command("worker")
def worker_command(study: Annotated[str, typer.Argument(help="Folder or URL of a comparison.")]) -> None:
    """Take jobs of a comparison that another process has begun, until none is left."""
    from .compare import command

    console = Console()
    with _said():
        command.worker(study, lambda line, done, of: console.print(f"[{done}/{of}] {line}", markup=False))


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `winnow train`, `path` and `compare`.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """One HTML file about some runs: curves, layers, training, weights, speed. It needs no network."""
    from . import page

    with _said():
        page.write([run for folder in folders for run in page.read(folder)], out)
    typer.echo(f"report: {out}")


@app.command("compact")
def compact_command(folder: Folder) -> None:
    """Make a run's model physically smaller, prove that its outputs are equal, save it in the run folder."""
    with _said():
        run = shrink.reopen(folder)
        small, proof = winnow.compact(run.model, run.example)
        winnow.save(small, folder / shrink.SMALL)
    typer.echo(f"{proof}\nsmaller model: {folder / shrink.SMALL}")


@app.command("measure")
def measure_command(
    folder: Folder, seconds: Annotated[float, typer.Option(help="Per model and batch size.")] = 2.0
) -> None:
    """Time a run's model and its smaller one, by turns."""
    with _said():
        run = shrink.reopen(folder)
        timed = winnow.measure(run.model, shrink.reload(run), run.example, batches=shrink.BATCHES, seconds=seconds)
    typer.echo(str(timed))


@app.command("export")
def export_command(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help=".onnx or .pt2.", show_default="RUN/small.onnx")] = None,
) -> None:
    """Write a run's smaller model as ONNX (checked in ONNX Runtime) or as torch.export's .pt2."""
    path = folder / "small.onnx" if out is None else out
    with _said():
        run = shrink.reopen(folder)
        error = winnow.export(shrink.reload(run), path, run.example)
    typer.echo(f"{path}: read back, outputs equal to {error:.0e} of the largest")


@app.command("reproduce")
def reproduce_command(
    name: Annotated[str | None, typer.Argument(help="Experiment; none lists them all.", show_default=False)] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions.", show_default="by experiment")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A reduced version: seconds, into runs/.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes side by side, the CPU threads shared among them.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Record folder.", show_default="records/<date>_<name>, or an unfinished one")
    ] = None,
) -> None:
    """Run a published experiment; write its record: settings, numbers, figure, verdict on every claim.

    An interrupted one goes on where it was when the same command is given again.
    Exit code: 0 done; 2 bad usage or data; 130 interrupted.
    """
    from . import papers
    from .papers import screen

    console = Console()
    if name is None:
        console.print(screen.listing(papers.EXPERIMENTS.values()))
        return
    try:
        with _said():
            done = papers.perform(name, seeds, quick, jobs, out, screen.News(console))
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here", style="yellow")
        raise typer.Exit(train.INTERRUPTED) from None
    console.print(screen.verdicts(done.record))
    console.print(f"record: {done.folder}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
