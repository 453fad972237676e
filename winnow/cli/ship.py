"""SHIP: `winnow compact`, `measure`, `export`, `pick`: what a run folder is good for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import winnow
from winnow.errors import ScheduleError, WinnowError
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


@app.command("pick")
def pick_command(
    folder: Annotated[Path, typer.Argument(help="A folder of `winnow path`.", show_default=False)],
    max_drop: Annotated[
        float | None, typer.Option(help="From the dense score: points of accuracy in %, or nats of loss.")
    ] = None,
    max_latency: Annotated[float | None, typer.Option(help="Milliseconds per call at batch 1.")] = None,
    max_params: Annotated[int | None, typer.Option(help="Parameters.")] = None,
    max_macs: Annotated[int | None, typer.Option(help="Multiply-adds per input.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for winnow.load, or .onnx or .pt2.", show_default="FOLDER/picked")
    ] = None,
) -> None:
    """The model to ship from a path: with --max-drop the smallest file within it, else the best score within the limits."""
    place, limits = folder / "picked" if out is None else out, (max_drop, max_latency, max_params, max_macs)
    with said():
        if all(limit is None for limit in limits):
            raise WinnowError("a limit is needed: --max-drop, --max-latency, --max-params or --max-macs")
        found, example = shrink.path_of(folder)
        try:
            point = winnow.choose(
                found,
                max_drop=max_drop,
                max_latency=None if max_latency is None else max_latency / 1000,
                max_params=max_params,
                max_macs=None if max_macs is None else max_macs * shrink.INPUTS,
            )
        except ScheduleError as error:
            raise WinnowError(f"no point keeps within the limits; the least on the path: {_least(found)}") from error
        small = found.load(point)
        if place.suffix in (".onnx", ".pt2"):
            winnow.export(small, place, example)
        else:
            winnow.save(small, place, compress=True)
    dense = found.points[0]
    typer.echo(
        f"{place}: density {point.density:.4g}, score {point.score:.4f} (dense {dense.score:.4f}), "
        f"{point.parameters:,} parameters, {point.macs // shrink.INPUTS:,} MACs per input, {point.bytes:,} bytes"
    )


def _least(found: winnow.Path) -> str:
    """The smallest of everything that can be limited, in the command line's units."""
    points, dense = found.points, found.points[0]
    drop = min(dense.score - p.score for p in points)
    latency = min(1000 * p.seconds[min(p.seconds, key=int)] for p in points)
    macs = min(p.macs for p in points) // shrink.INPUTS
    return (
        f"--max-drop {drop:.4g}, --max-latency {latency:.4g} (ms), --max-params {min(p.parameters for p in points)}, "
        f"--max-macs {macs} (per input)"
    )
