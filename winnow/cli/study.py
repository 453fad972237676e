"""STUDY: `winnow compare`, `worker`, `report`, `reproduce`: many trainings, and pages about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from winnow.errors import WinnowError
from winnow.jobs.live import Tally
from winnow.jobs.train import INTERRUPTED

from .words import app, said


@app.command("compare")
def compare_command(
    tasks: Annotated[str, typer.Argument(help="Tasks, with commas between them; a task of your own is its .py file.")],
    methods: Annotated[str | None, typer.Option(help="Separated by ;", show_default="all")] = None,
    keep: Annotated[str, typer.Option(help="Densities.")] = "0.5,0.2,0.1,0.05,0.02",
    seeds: Annotated[int, typer.Option(help="Trainings of every cell.")] = 3,
    where: Annotated[
        str, typer.Option(help="elements: single weights. channels: whole units, densities are of the parameters.")
    ] = "elements",
    scale: Annotated[float, typer.Option(help="Times every task's epochs, for all methods alike.")] = 1.0,
    weight_decay: Annotated[float, typer.Option(help="The optimizers' own, for all methods alike.")] = 0.0,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 1,
    out: Annotated[str, typer.Option(help="Folder, or an Optuna storage's URL.")] = "runs/compare",
) -> None:
    """Every method with equal steps and an equal tuning budget, resumable; `winnow worker` joins from any machine.

    Exit code: 0 done; 2 bad usage; 130 interrupted.
    """
    from winnow.compare import ROSTERS, command
    from winnow.compare.plan import Plan

    console = Console()
    try:
        with said(), Tally(console) as news:
            names = (
                [name.strip() for name in methods.split(";")] if methods is not None else list(ROSTERS.get(where, ()))
            )
            plan = Plan(command.listed(tasks), names, command.listed(keep, float), seeds, scale, where, weight_decay)
            record = command.compare(plan, out, jobs, news)
    except KeyboardInterrupt:
        console.print("interrupted: finished jobs are kept; the same command goes on from here", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    console.print(command.table(record))
    if "://" not in out:
        console.print(f"comparison: {out}; winnow report {out} makes a page of it", markup=False, soft_wrap=True)


@app.command("worker")
def worker_command(study: Annotated[str, typer.Argument(help="Folder or URL of a comparison.")]) -> None:
    """Take jobs of a comparison that another process has begun, until none is left."""
    from winnow.compare import command

    with said(), Tally(Console()) as news:
        command.worker(study, news)


@app.command("report")
def report_command(
    folders: Annotated[
        list[str], typer.Argument(help="Folders of `winnow train`, `path` and `compare`; a comparison's storage URL.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file; .svg or .png draws the trade-off curves alone.")] = Path(
        "report.html"
    ),
    methods: Annotated[str | None, typer.Option(help="Only these, separated by ;", show_default="all")] = None,
) -> None:
    """One HTML file about some runs: curves, layers, training, weights, speed. It needs no network."""
    from winnow import page

    with said():
        if out.suffix not in (".html", ".htm", *page.KINDS):
            raise WinnowError(f"--out must end in .html, {' or '.join(page.KINDS)}, got {out.name}")
        runs = page.read_all(folders, lambda line: typer.echo(line, err=True))
        runs = page.only(runs, methods.split(";")) if methods else runs
        (page.draw if out.suffix in page.KINDS else page.write)(runs, out)
    typer.echo(f"report: {out}")


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
    from winnow import papers
    from winnow.papers import screen

    console = Console()
    if name is None:
        console.print(screen.listing(papers.EXPERIMENTS.values()))
        return
    try:
        with said(), Tally(console) as news:
            done = papers.perform(name, seeds, quick, jobs, out, news)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here", style="yellow")
        raise typer.Exit(INTERRUPTED) from None
    console.print(screen.verdicts(done.record))
    console.print(f"record: {done.folder}", markup=False, highlight=False, soft_wrap=True)
