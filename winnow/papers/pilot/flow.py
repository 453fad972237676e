"""FLOW: the gap's law under three schedules, and the potential that slides from L2 to L1 (sections 3 and 4)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from winnow.routes import Masking
from winnow.schedules import Constant, Off, Ramp, Schedule
from winnow.starts import Gap

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim
from ..plots import curve, label, panels
from ..small import attached, descend
from ..texts import PILOT


def cells(settings: Settings, seeds: int) -> list[Cell]:
    loads = [{"kind": "gap", "load": load} for load in ("constant", "front", "back")]
    doses = [{"kind": "potential", "dose": dose, "seed": seed} for seed in range(seeds) for dose in settings["doses"]]
    return [*loads, {"kind": "shape"}, *doses]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    return {"gap": _gap, "shape": _shape, "potential": _potential}[cell["kind"]](cell, settings)


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Z (40, 100), Y, x* with five ±1, and a start; standard normal samples, no noise."""
    dice = torch.Generator().manual_seed(seed)
    Z = torch.randn(40, 100, generator=dice, dtype=torch.float64)
    truth = torch.zeros(100, dtype=torch.float64)
    chosen = torch.randperm(100, generator=dice)[:5]
    truth[chosen] = torch.randint(0, 2, (5,), generator=dice).double() * 2 - 1
    start = torch.randn(100, generator=dice, dtype=torch.float64) * 100**-0.25
    return Z, Z @ truth, truth, start


def _gap(cell: Cell, settings: Settings) -> dict[str, Any]:
    Z, Y, _, start = problem(0)
    steps, lr, dose = settings["gap_steps"], settings["lr"], settings["gap_dose"]
    mean = dose / (steps * lr)
    when: dict[str, Schedule] = {
        "constant": Constant(mean),
        "front": Off(Constant(2 * mean), steps, 0.5),
        "back": Ramp(2 * mean, steps),
    }
    model, optimizer, run = attached(start, lr, Masking(beta=1.0), when[cell["load"]])
    path = []
    for _ in range(50):
        descend(model, optimizer, lambda w: 0.5 * (Z @ w - Y).square().sum(), steps // 50)
        path.append([run.clock.flow, run.dose, run.certificate().imbalance])
    return {"path": path, "gap": path[-1][2], "dose": run.dose, "predicted": math.exp(-2 * run.dose)}


def potential(x: Tensor, a: float) -> Tensor:
    """R_a without its centre, per entry: ½(x·arcsinh(x/a) − √(x² + a²) + a)."""
    return 0.5 * (x * torch.arcsinh(x / a) - (x.square() + a * a).sqrt() + a)


def _shape(cell: Cell, settings: Settings) -> dict[str, Any]:
    x = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    scales = [10.0**k for k in (3, 2, 1, 0, -1, -2, -4, -8, -16, -32)]
    l2 = [float(potential(x, a).sum() * 4 * a / x.square().sum()) for a in scales]
    l1 = [float(potential(x, a).sum() / (0.5 * math.log(1 / a) * x.abs().sum())) if a < 1 else None for a in scales]
    grid = torch.linspace(-2, 2, 81, dtype=torch.float64)
    shown = {f"{a:g}": (potential(grid, a) / potential(grid[-1:], a)).tolist() for a in (10.0, 0.1, 1e-3, 1e-9)}
    return {"scales": scales, "l2": l2, "l1": l1, "grid": grid.tolist(), "curves": shown}


def _potential(cell: Cell, settings: Settings) -> dict[str, Any]:
    Z, Y, truth, start = problem(cell["seed"])
    steps, lr, dose = settings["steps"], settings["lr"], cell["dose"]
    when = Off(Constant(dose / (0.2 * steps * lr)), steps, 0.2)
    model, optimizer, run = attached(start, lr, Masking(beta=1.0), when)
    descend(model, optimizer, lambda w: 0.5 * (Z @ w - Y).square().sum(), steps)
    x, exact = model.w.detach(), least(Z, Y, start, run.dose)
    return {
        "difference": float((x - exact).norm() / exact.norm()),
        "l1": float(x.abs().sum()),
        "to_truth": float((x - truth).norm()),
        "smallest_l1": _smallest_l1(Z, Y),
        "loss": float((Z @ x - Y).square().sum()),
    }


def least(Z: Tensor, Y: Tensor, start: Tensor, dose: float) -> Tensor:
    """argmin R_a(x) subject to Zx = Y by Newton's method on the dual, x = a·sinh(Zᵀν + log(U/V))."""
    m, v = Gap(1.0)(start, 2)
    a, centre = 0.5 * math.exp(-2 * dose), torch.log((m + v) / (m - v))
    nu = torch.zeros(len(Y), dtype=Z.dtype)
    for scale in torch.linspace(0, 1, 40, dtype=Z.dtype)[1:]:  # from the centre's own right-hand side to Y
        goal = (1 - scale) * Z @ (a * torch.sinh(centre)) + scale * Y
        for _ in range(60):
            x = a * torch.sinh(Z.T @ nu + centre)
            off = Z @ x - goal
            step = torch.linalg.solve((Z * (x.square() + a * a).sqrt()) @ Z.T, off)
            nu = nu - step / max(1.0, float((Z.T @ step).abs().max()))
            if float(off.norm()) < 1e-12 * float(goal.norm()):
                break
    return a * torch.sinh(Z.T @ nu + centre)


def _smallest_l1(Z: Tensor, Y: Tensor) -> float:
    """min ‖x‖₁ subject to Zx = Y, as a linear programme."""
    from scipy.optimize import linprog

    A = torch.cat([Z, -Z], 1).numpy()
    return float(linprog([1.0] * A.shape[1], A_eq=A, b_eq=Y.numpy()).fun)


@claim(
    "m² − v² = β·e^(−2Λ): constant, front- and back-loaded strengths of equal dose end in the same gap",
    published="exact in the flow",
)
def gap_is_the_dose(rows: list[Row], settings: Settings) -> Found:
    off = max(abs(row["gap"] / row["predicted"] - 1) for row in among(rows, kind="gap"))
    return f"off by at most {off:.0e}, relative, at lr {settings['lr']:g}", off < 0.1


@claim("R_a behaves like ‖x‖²/4a for a ≫ |x| and like ½ log(1/a)·‖x‖₁ for a ≪ |x|", published="yes")
def potential_shape(rows: list[Row], settings: Settings) -> Found:
    shape = among(rows, kind="shape")[0]
    l2, l1 = shape["l2"][0], shape["l1"][-1]
    said = f"ratio to L2 {l2:.4f} at a = 1e3; to L1 {l1:.3f} at a = 1e-32"
    return said, abs(l2 - 1) < 1e-3 and abs(l1 - 1) < 0.05


@claim(
    "underdetermined regression: the flow ends in argmin R_a(x) subject to Zx = Y, a = ½β·e^(−2Λ)",
    published="exact in the flow",
)
def minimises_the_potential(rows: list[Row], settings: Settings) -> Found:
    worst = max(row["difference"] for row in among(rows, kind="potential"))
    return f"relative difference at most {worst:.1e}", worst < 0.01


@claim("its L1 norm falls with the dose towards the smallest that fits", published="yes")
def norm_falls(rows: list[Row], settings: Settings) -> Found:
    ends = among(rows, kind="potential")
    norms = [[row["l1"] for row in among(ends, seed=seed)] for seed in sorted({row["seed"] for row in ends})]
    falls = all(a >= b - 1e-6 for path in norms for a, b in itertools.pairwise(path))
    over = max(row["l1"] / row["smallest_l1"] - 1 for row in among(ends, dose=max(settings["doses"])))
    said = f"{'falls' if falls else 'does not fall'}; {100 * over:.2f} % above the smallest at the largest dose"
    return said, falls and over < 0.05


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (shapes, gaps, ends) = panels(3)
    shape = among(rows, kind="shape")[0]
    for i, (a, values) in enumerate(shape["curves"].items()):
        curve(shapes, i, shape["grid"], values, f"a = {a}", marked=False)
    label(shapes, "the potential, scaled", "x", "R_a(x) / R_a(2)")
    for i, row in enumerate(among(rows, kind="gap")):
        curve(gaps, i, [p[0] for p in row["path"]], [p[2] for p in row["path"]], row["load"], marked=False)
        gaps.plot([p[0] for p in row["path"]], [math.exp(-2 * p[1]) for p in row["path"]], "k:", lw=0.8)
    gaps.set_yscale("log")
    label(gaps, "equal doses, equal gaps (dotted: e^(−2Λ))", "flow time", "m² − v²")
    for i, key in enumerate(("l1", "to_truth", "difference")):
        names = {"l1": "‖x‖₁", "to_truth": "‖x − x*‖", "difference": "relative distance to argmin R_a"}
        found = among(rows, kind="potential", seed=0)
        curve(ends, i, [row["dose"] for row in found], [row[key] for row in found], names[key])
    ends.set_yscale("log")
    label(ends, "where the flow ends", "dose Λ", "")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [
        [
            f"{row['dose']:g}",
            str(row["seed"]),
            f"{row['l1']:.4f}",
            f"{row['smallest_l1']:.4f}",
            f"{row['to_truth']:.4f}",
            f"{row['difference']:.1e}",
        ]
        for row in among(rows, kind="potential")
    ]
    return Table(("dose Λ", "seed", "‖x‖₁", "smallest ‖x‖₁", "‖x − x*‖", "distance to argmin R_a"), lines)


FULL = {"lr": 1e-4, "gap_steps": 20_000, "gap_dose": 2.0, "doses": [0.0, 1.0, 2.0, 4.0, 8.0], "steps": 200_000}
EXPERIMENT = Experiment(
    name="pilot-flow",
    paper=PILOT,
    title="The gap, the potential, and where the flow ends",
    claims=(gap_is_the_dose, potential_shape, minimises_the_potential, norm_falls),
    differs="Checks of the theorems rather than a published figure: n = 100, 40 samples, 5 true entries of ±1, loss ½‖Zx "
    "− Y‖², gradient descent with rate 1e-4 in float64. The constants are those derived anew (those of the preprint's "
    "first version miss factors of two; later versions were not compared).",
    full=FULL,
    quick=FULL | {"lr": 4e-4, "gap_steps": 2000, "doses": [0.0, 1.0], "steps": 8000},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    seeds=2,
    minutes=6.0,
)
