"""SHIP: `winnow compact`, `measure`, `export`: what a run folder is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import winnow
from winnow.jobs import shrink

from .words import Folder, app, said


@app.command("compact")
def compact_command(folder: Folder) -> None:
    """Make a run's model physically smaller, prove that its outputs are equal, save it in the run folder."""
    with said():
        run = shrink.reopen(folder)
        small, proof = winnow.compact(run.model, run.example)
        winnow.save(small, folder / shrink.SMALL)
    typer.echo(f"{proof}\nsmaller model: {folder / shrink.SMALL}")


@app.command("measure")
def measure_command(
    folder: Folder, seconds: Annotated[float, typer.Option(help="Per model and batch size.")] = 2.0
) -> None:
    """Time a run's model and its smaller one, by turns."""
    with said():
        run = shrink.reopen(folder)
        timed = winnow.measure(run.model, shrink.reload(run), run.example, batches=shrink.BATCHES, seconds=seconds)
    typer.echo(str(timed))


@app.command("export")
def export_command(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help=".onnx or .pt2.", show_default="RUN/small.onnx")] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="For every batch size.")] = False,
) -> None:
    """Write a run's smaller model as ONNX (checked in ONNX Runtime) or as torch.export's .pt2."""
    path = folder / "small.onnx" if out is None else out
    with said():
        run = shrink.reopen(folder)
        error = winnow.export(shrink.reload(run), path, run.example, dynamic_batch=dynamic_batch)
    typer.echo(f"{path}: read back, outputs equal to {error:.0e} of the largest")
