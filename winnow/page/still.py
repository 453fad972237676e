"""STILL: the trade-off curves alone, as an SVG or PNG file for papers and READMEs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError

from . import charts
from .runs import Run

KINDS = (".svg", ".png")
WIDTH, HEIGHT, SCALE = 420, 300, 2.0


def draw(runs: Sequence[Run], out: Path) -> Path:
    """A panel per task, side by side. Raises `WinnowError`: no runs; the extra is not installed; another ending."""
    if not runs:
        raise WinnowError("a figure needs at least one run folder")
    if out.suffix not in KINDS:
        raise WinnowError(f"a figure ends in {' or '.join(KINDS)}, got {out.name}")
    try:
        import vl_convert
    except ImportError as error:
        raise WinnowError('figures need their extra: pip install "torch-winnow[report]"') from error
    panels = [_panel(task, [run for run in runs if run.task == task]) for task in dict.fromkeys(r.task for r in runs)]
    spec = {"hconcat": panels, "background": "white", "resolve": {"legend": {"color": "shared"}}}
    made: str | bytes = (
        vl_convert.vegalite_to_svg(spec) if out.suffix == ".svg" else vl_convert.vegalite_to_png(spec, scale=SCALE)
    )
    half = out.with_name(out.name + ".part")
    try:
        half.write_bytes(made.encode("utf-8") if isinstance(made, str) else made)
        os.replace(half, out)
    except OSError as error:
        raise WinnowError(f"cannot write {out} ({error}): choose another --out") from error
    return out


def _panel(task: str, runs: Sequence[Run]) -> dict[str, Any]:
    if len({run.by_loss for run in runs}) > 1:
        raise WinnowError(f"{task}: some runs are judged by their loss, some by their errors: draw them apart")
    spec = charts.tradeoff(runs)
    for layer in spec["layer"]:
        layer["encoding"]["color"] = {**layer["encoding"]["color"], "legend": {"orient": "right", "symbolOpacity": 1}}
    said = [
        "lines: means, points: trainings"
        if len(spec["layer"]) == 2
        else "lines and bands: means and standard deviations"
    ]
    said += [f"{hidden} worse points are left out"] if (hidden := charts.out_of_view(runs)) else []
    title = {"text": task, "subtitle": "; ".join(said)}
    return {**spec, "title": title, "width": WIDTH, "height": HEIGHT}
