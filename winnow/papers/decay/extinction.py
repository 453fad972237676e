"""EXTINCTION: when a weight dies, and which ones survive: times, thresholds and basins against their formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from winnow.penalties import Lp
from winnow.routes import Decay

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim
from ..plots import curve, label, panels
from ..small import attached, descend
from ..texts import DECAY

TINY = 1e-13  # the authors' threshold for a zero


def cells(settings: Settings, seeds: int) -> list[Cell]:
    dying = [{"kind": "extinction", "p": p} for p in settings["extinction_p"]]
    surviving = [{"kind": "survival", "p": p, "h": h} for p in settings["survival_p"] for h in (1.0, 2.0)]
    driven = [{"kind": "drive", "p": p} for p in settings["drive_p"]]
    return dying + surviving + driven


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    return {"extinction": _extinction, "survival": _survival, "drive": _drive}[cell["kind"]](cell, settings)


def _extinction(cell: Cell, settings: Settings) -> dict[str, Any]:
    p, start, lr = cell["p"], settings["start"], settings["lr"]
    strength = p * settings["lambda_c"]
    model, optimizer, _ = attached(torch.tensor([start], dtype=torch.float64), lr, Decay(Lp(p)), strength)
    steps, path = 0, [start]
    predicted = start ** (2 - p) / ((2 - p) * strength) / lr
    while abs(model.w.item()) > TINY and steps < 3 * predicted:
        descend(model, optimizer, lambda w: 0 * w.sum(), 1)
        steps += 1
        if steps % max(1, round(predicted / 100)) == 0:
            path.append(model.w.item())
    return {"steps": steps, "predicted": predicted, "path": path}


def _survival(cell: Cell, settings: Settings) -> dict[str, Any]:
    p, h, strength = cell["p"], cell["h"], settings["strength"]
    smallest = ((1 - p) * strength / h) ** (1 / (2 - p))
    critical = (2 - p) / (1 - p) * smallest
    b = critical * torch.linspace(0.9, 1.1, settings["points"], dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        out: Tensor = 0.5 * h * (w - b).square().sum()
        return out

    model, optimizer, _ = attached(b, settings["survival_lr"], Decay(Lp(p)), strength)
    descend(model, optimizer, loss, settings["survival_steps"])
    w = model.w.detach().abs()
    alive = w > TINY
    return {
        "critical": critical,
        "smallest": smallest,
        "step": float(b[1] - b[0]),
        "largest_dead": float(b[~alive].max()),
        "smallest_alive": float(b[alive].min()),
        "smallest_survivor": float(w[alive].min()),
        "b": b[::4].tolist(),
        "w": w[::4].tolist(),
    }


def _drive(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Many starts (p < 1) or many drives (p ≥ 1), one weight each."""
    p, strength, lr = cell["p"], settings["strength"], settings["survival_lr"]
    near = torch.linspace(0.9, 1.1, settings["points"], dtype=torch.float64)
    if p < 1:
        radius, u = strength ** (1 / (1 - p)), torch.ones_like(near)
        start = radius * near
    else:
        radius, u, start = strength, strength * near, torch.full_like(near, 0.5)
    model, optimizer, _ = attached(start, lr, Decay(Lp(p)), strength)
    descend(model, optimizer, lambda w: -(u * w).sum(), settings["survival_steps"])
    dead = model.w.detach().abs() < TINY
    axis = start if p < 1 else u
    return {
        "radius": radius,
        "dead": int(dead.sum()),
        "step": float(axis[1] - axis[0]),
        "largest_dead": float(axis[dead].max()) if bool(dead.any()) else None,
        "smallest_alive": float(axis[~dead].min()) if bool((~dead).any()) else None,
    }


@claim("without a gradient a weight is gone after Σlr = |w₀|^(2−p)/((2−p)λ)", published="exact in the flow")
def gone_in_time(rows: list[Row], settings: Settings) -> Found:
    off = max(abs(row["steps"] / row["predicted"] - 1) for row in among(rows, kind="extinction"))
    return f"step counts within {100 * off:.2f} %", off < 0.01


@claim(
    "on ½h(w−b)² with p < 1 a weight started at b survives iff |b| ≥ b_c = (2−p)/(1−p)·((1−p)λ/h)^(1/(2−p))",
    published="exact",
)
def survives_above(rows: list[Row], settings: Settings) -> Found:
    surviving = among(rows, kind="survival")
    bracketed = all(_brackets(row, row["critical"]) for row in surviving)
    width = max(row["step"] / row["critical"] for row in surviving)
    lies = "lies" if bracketed else "does not lie"
    return f"b_c {lies} between the last to die and the first to live ({100 * width:.2f} %)", bracketed


@claim("no survivor is smaller than w_c = ((1−p)λ/h)^(1/(2−p))", published="exact")
def survivors_are_large(rows: list[Row], settings: Settings) -> Found:
    least = min(row["smallest_survivor"] / row["smallest"] for row in among(rows, kind="survival"))
    return f"smallest survivor {least:.4f} w_c", least >= 1


@claim("against a constant drive u, zero attracts from |w| < (λ/u)^(1/(1−p)) for p < 1", published="exact as lr → 0")
def basin_of_zero(rows: list[Row], settings: Settings) -> Found:
    inside = [_brackets(row, row["radius"]) for row in among(rows, kind="drive") if row["p"] < 1]
    said = f"at lr {settings['survival_lr']:g}, the edge lies within the grid's step of it for "
    return f"{said}{sum(inside)} of {len(inside)} p", all(inside)


@claim("p = 1 zeroes iff u < λ, p > 1 never does", published="exact")
def edge_of_the_lasso(rows: list[Row], settings: Settings) -> Found:
    driven = among(rows, kind="drive")
    one, above = next(r for r in driven if r["p"] == 1), next(r for r in driven if r["p"] > 1)
    said = (
        f"p = 1: dead up to u = {one['largest_dead'] / one['radius']:.4f} λ; p = {above['p']:g}: {above['dead']} dead"
    )
    return said, _brackets(one, one["radius"], 0.05) and above["dead"] == 0


def _brackets(row: Row, value: float, slack: float = 0.0) -> bool:
    """Whether the edge between the dead and the living lies at `value`, to one step of the grid and `slack`."""
    room = row["step"] + slack * value
    return bool(row["largest_dead"] - room <= value <= row["smallest_alive"] + room)


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (times, survivors) = panels(2)
    for i, row in enumerate(among(rows, kind="extinction")):
        share = [k / (len(row["path"]) - 1) * row["steps"] / row["predicted"] for k in range(len(row["path"]))]
        curve(times, i, share, row["path"], f"p = {row['p']:g}", marked=False)
    times.axvline(1, color="0.6", linestyle=":")
    label(times, "without gradient", "Σlr / predicted extinction time", "|w|")
    for i, row in enumerate(among(rows, kind="survival", h=1.0)):
        b = [x / row["critical"] for x in row["b"]]
        curve(survivors, i, b, [x / row["smallest"] for x in row["w"]], f"p = {row['p']:g}", marked=False)
    survivors.axvline(1, color="0.6", linestyle=":")
    survivors.axhline(1, color="0.6", linestyle=":")
    label(survivors, "½(w−b)² from w = b", "b / b_c", "end |w| / w_c")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [
        [f"steps to extinction, p = {row['p']:g}", f"{row['predicted']:.0f}", f"{row['steps']}"]
        for row in among(rows, kind="extinction")
    ]
    lines += [
        [
            f"b_c, p = {row['p']:g}, h = {row['h']:g}",
            f"{row['critical']:.5f}",
            f"{row['largest_dead']:.5f} … {row['smallest_alive']:.5f}",
        ]
        for row in among(rows, kind="survival")
    ]
    return Table(("quantity", "formula", "measured"), lines)


EXPERIMENT = Experiment(
    name="decay-extinction",
    paper=DECAY,
    title="Extinction times, survival thresholds, basins",
    claims=(gone_in_time, survives_above, survivors_are_large, basin_of_zero, edge_of_the_lasso),
    differs="The formulas are derived from the published step; no experiment was published for them. Plain SGD, float64.",
    full={
        "extinction_p": [0.5, 0.8, 1.0, 1.5],
        "start": 0.01,
        "lr": 1e-3,
        "lambda_c": 1e-3,
        "strength": 0.1,
        "survival_p": [0.3, 0.5, 0.8],
        "drive_p": [0.3, 0.5, 1.0, 1.5],
        "points": 401,
        "survival_lr": 0.01,
        "survival_steps": 60_000,
    },
    quick={
        "extinction_p": [0.5, 0.8],
        "start": 0.01,
        "lr": 1e-3,
        "lambda_c": 1e-3,
        "strength": 0.1,
        "survival_p": [0.5],
        "drive_p": [0.5, 1.0, 1.5],
        "points": 41,
        "survival_lr": 0.05,
        "survival_steps": 4000,
    },
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    minutes=2.0,
)
