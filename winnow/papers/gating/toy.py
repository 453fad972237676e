"""TOY: two weights and a norm with a kink: direct descent oscillates, gated descent converges (D-Gating, Fig. 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import winnow

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim
from ..plots import curve, label, panels
from ..small import attached, descend
from ..texts import GATING

METHODS = ("direct", "gated")


def cells(settings: Settings, seeds: int) -> list[Cell]:
    return [{"method": m, "depth": D} for D in settings["depths"] for m in METHODS]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    start, depth, c = torch.tensor(settings["start"], dtype=torch.float64), cell["depth"], settings["lambda_paper"]
    x = torch.tensor(settings["x"], dtype=torch.float64)

    def misfit(w: Tensor) -> Tensor:
        out: Tensor = (settings["y"] - x @ w).square()
        return out

    def whole(w: Tensor) -> Tensor:
        out: Tensor = misfit(w) + c * w.norm() ** (2 / depth)
        return out

    how, where = winnow.Gating(depth=depth), winnow.Axes()
    gated = cell["method"] == "gated"
    model, optimizer, _ = attached(start, settings["lr"], how, c * 2 / depth if gated else 0.0, where)
    if not gated:
        optimizer = torch.optim.SGD([model.w], settings["lr"])
    path = []
    for _ in range(settings["steps"]):
        descend(model, optimizer, misfit if gated else whole, 1)
        path.append([*model.w.tolist(), float(whole(model.w.detach()))])
    return {"path": path}


def norms(row: Row) -> Tensor:
    """‖w‖ after every step."""
    out: Tensor = torch.tensor(row["path"], dtype=torch.float64)[:, :2].norm(dim=1)
    return out


def _rises(row: Row) -> int:
    """Steps after which ‖w‖ has grown, in the second half of the way, rounding aside."""
    late = norms(row)[len(row["path"]) // 2 :]
    return int((late[1:] > late[:-1] + 1e-12).sum())


@claim("descent on the non-smooth objective itself oscillates about the minimiser 0", published="oscillates (Fig. 1)")
def direct_oscillates(rows: list[Row], settings: Settings) -> Found:
    direct, share = among(rows, method=METHODS[0]), settings["steps"] // 2
    late = [float(norms(row)[len(row["path"]) // 2 :].median()) for row in direct]
    said = "; ".join(
        f"D = {row['depth']}: ‖w‖ {x:.2g} in the middle of the second half, rising {100 * _rises(row) / share:.0f} % of it"
        for row, x in zip(direct, late, strict=True)
    )
    return said, min(late) > 1e-3 and all(_rises(row) > 0.1 * share for row in direct)


@claim("gated descent converges to it, without oscillation", published="smoothly (Fig. 1)")
def gates_converge(rows: list[Row], settings: Settings) -> Found:
    gated = among(rows, method=METHODS[1])
    ends = [float(norms(row)[-1]) for row in gated]
    said = "; ".join(
        f"D = {row['depth']}: ‖w‖ {x:.1e} at the end, rising after {_rises(row)} steps"
        for row, x in zip(gated, ends, strict=True)
    )
    return said, max(ends) < 1e-6 and not any(_rises(row) for row in gated)


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, axes = panels(len(settings["depths"]), "(y − x₁w₁ − x₂w₂)² + λ‖w‖^(2/D): distance to the minimiser")
    for ax, depth in zip(axes, settings["depths"], strict=True):
        for i, row in enumerate(among(rows, depth=depth)):
            values = norms(row).clamp_min(1e-12).tolist()
            curve(ax, i, range(1, len(values) + 1), values, row["method"], marked=False)
        ax.set_yscale("log")
        label(ax, f"D = {depth}", "step", "‖w‖")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [
        [row["method"], str(row["depth"]), f"{float(norms(row)[-1]):.2e}", f"{row['path'][-1][2]:.6f}"] for row in rows
    ]
    return Table(("descent", "D", "‖w‖ at the end", f"objective (at 0: {settings['y'] ** 2:g})"), lines)


FULL = {
    "depths": [2, 3, 4],
    "x": [1.0, 0.6],
    "y": 0.3,
    "start": [0.9, 0.7],
    "lambda_paper": 1.0,
    "lr": 0.02,
    "steps": 2000,
}
EXPERIMENT = Experiment(
    name="gating-toy",
    paper=GATING,
    title="Two weights and a kink",
    claims=(direct_oscillates, gates_converge),
    differs="The numbers are ours (x = (1, 0.6), y = 0.3, start (0.9, 0.7), λ_paper = 1, rate 0.02, float64): the paper "
    "shows curves alone.",
    full=FULL,
    quick=FULL,
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    minutes=0.2,
)
