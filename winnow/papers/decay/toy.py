"""TOY: p-norm decay on a two-dimensional landscape with a circle of minima (the authors' blog)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from winnow.penalties import Lp
from winnow.routes import Decay

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, claim
from ..plots import curve, label, panels
from ..small import attached, descend
from ..texts import DECAY


def cells(settings: Settings, seeds: int) -> list[Cell]:
    return [{"p": p} for p in settings["p"]]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    start = torch.tensor(settings["start"], dtype=torch.float64)
    p = cell["p"]
    how, strength = Decay(Lp(p or 1.0)), (p or 0.0) * settings["lambda_c"]
    model, optimizer, _ = attached(start, settings["lr"], how, strength)
    path = [start.tolist()]
    for _ in range(settings["steps"]):
        descend(model, optimizer, circle, 1)
        path.append(model.w.tolist())
    return {"end": path[-1], "path": path[:: max(1, len(path) // 200)]}


def circle(w: Tensor) -> Tensor:
    """L = ¼(w₁² + w₂² − 1)²."""
    return 0.25 * (w.square().sum() - 1) ** 2


def _ends(rows: list[Row]) -> dict[float | None, list[float]]:
    """The end point of each p."""
    return {row["p"]: row["end"] for row in rows}


@claim(
    "with p = 1/2 and p = 1 the small coordinate becomes exactly zero, the large one ends a little below 1",
    published="the same, p = 0.5 and 1",
)
def small_one_gone(rows: list[Row], settings: Settings) -> Found:
    sparse = [_ends(rows)[0.5], _ends(rows)[1.0]]
    return "; ".join(_point(x) for x in sparse), all(x[1] == 0 and 0.5 < x[0] < 1 for x in sparse)


@claim("without decay it ends on the unit circle, without zeros", published="on the circle")
def on_the_circle(rows: list[Row], settings: Settings) -> Found:
    end = _ends(rows)[None]
    radius = sum(x * x for x in end) ** 0.5
    return f"{_point(end)}, radius {radius:.6f}", abs(radius - 1) < 1e-6 and min(end) > 0.1


@claim("p = 2 shrinks both and zeroes neither", published="no sparsity from L2")
def no_zeros_from_l2(rows: list[Row], settings: Settings) -> Found:
    end = _ends(rows)[2.0]
    return _point(end), min(end) > 0.1


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (ax,) = panels(1, width=5.2, height=4.6)
    grid = torch.linspace(-0.15, 1.15, 200)
    x, y = torch.meshgrid(grid, grid, indexing="xy")
    ax.contour(grid, grid, 0.25 * (x.square() + y.square() - 1) ** 2, levels=14, colors="0.8", linewidths=0.6)
    for i, row in enumerate(rows):
        name = "no decay" if row["p"] is None else f"p = {row['p']:g}"
        curve(ax, i, [point[0] for point in row["path"]], [point[1] for point in row["path"]], name)
    label(ax, "paths from (0.2, 0.18)", "w₁", "w₂")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    return Table(("p", "end"), [["none" if row["p"] is None else f"{row['p']:g}", _point(row["end"])] for row in rows])


def _point(x: list[float]) -> str:
    return f"({x[0]:.6g}, {x[1]:.6g})"


EXPERIMENT = Experiment(
    name="decay-toy",
    paper=DECAY,
    title="A two-dimensional landscape",
    claims=(small_one_gone, on_the_circle, no_zeros_from_l2),
    differs="As published (start (0.2, 0.18), rate 0.7, the authors' λ_c = 0.1, λ = p·λ_c), in float64; p = 2 is ours.",
    full={"p": [None, 0.5, 1.0, 2.0], "start": [0.2, 0.18], "lr": 0.7, "lambda_c": 0.1, "steps": 1000},
    quick={"p": [None, 0.5, 1.0, 2.0], "start": [0.2, 0.18], "lr": 0.7, "lambda_c": 0.1, "steps": 200},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    minutes=0.1,
)
