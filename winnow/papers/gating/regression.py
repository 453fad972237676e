"""REGRESSION: group-sparse regression against FISTA, direct subgradient descent and the oracle (D-Gating, Fig. 4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from winnow.groups import Blocks
from winnow.routes import Gating

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim, mean
from ..plots import curve, label, panels
from ..small import attached, descend
from ..texts import GATING

GROUPS, SIZE, TRUE = 40, 5, 7
ALIGNED = 1e-4  # of ΣΩ; F(w) − F* ≤ λM, so the weights may then be off by about √(M/Ω) = 1 %
ZERO = 1e-6  # the paper's threshold on a group's norm


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """X, y of 200 training samples, of 2000 test samples, and the true w (200,); all N(0, 1), 7 of 40 groups of 5."""
    dice = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=dice, dtype=torch.float64)

    w = torch.zeros(GROUPS, SIZE, dtype=torch.float64)
    w[torch.randperm(GROUPS, generator=dice)[:TRUE]] = normal(TRUE, SIZE)
    w = w.flatten()
    X, test_X = normal(200, GROUPS * SIZE), normal(2000, GROUPS * SIZE)
    return X, X @ w + normal(200), test_X, test_X @ w + normal(2000), w


def cells(settings: Settings, seeds: int) -> list[Cell]:
    methods = ["D=2", "D=3", "D=4", "FISTA", "subgradient"]
    return [{"seed": seed, "method": m} for seed in range(seeds) for m in methods]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    X, y, test_X, test_y, truth = problem(cell["seed"])
    dice = torch.Generator().manual_seed(100 + cell["seed"])
    start = torch.randn(GROUPS * SIZE, generator=dice, dtype=torch.float64) * (2 / 200) ** 0.5
    true = truth.view(GROUPS, SIZE).norm(dim=1) > 0
    low, high, count = settings["grid"]
    points = []
    for k in range(count):
        paper = low * (high / low) ** (k / (count - 1))
        w, misalignment = _solve(cell["method"], X, y, start, paper, settings)
        active = w.view(GROUPS, SIZE).norm(dim=1) > ZERO
        points.append(
            {
                "lambda_paper": paper,
                "rmse": float((test_y - test_X @ w).square().mean().sqrt()),
                "active": int(active.sum()),
                "true": int((active & true).sum()),
                "misalignment": misalignment,
                "w": [float(f"{x:.6g}") for x in w] if cell["method"] in ("D=2", "FISTA") else None,
            }
        )
    columns = true.repeat_interleave(SIZE)
    oracle = torch.linalg.lstsq(X[:, columns], y).solution
    return {"points": points, "oracle": float((test_y - test_X[:, columns] @ oracle).square().mean().sqrt())}


def _solve(
    method: str, X: Tensor, y: Tensor, start: Tensor, paper: float, settings: Settings
) -> tuple[Tensor, float | None]:
    """Weights of one method for (1/n)‖y − Xw‖² + λ_paper·Σ‖w_g‖^(2/D)."""

    def loss(w: Tensor) -> Tensor:
        return (y - X @ w).square().mean()

    steps, lr = settings["steps"], settings["lr"]
    if method == "FISTA":
        return fista(X, y, paper, settings["fista_steps"]), None
    if method == "subgradient":
        w = start.clone().requires_grad_()
        descent = torch.optim.SGD([w], lr, momentum=0.9)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
        for _ in range(steps):
            descent.zero_grad()
            (loss(w) + paper * w.view(GROUPS, SIZE).norm(dim=1).sum()).backward()
            descent.step()
            rates.step()
        return w.detach(), None
    depth = int(method[-1])
    model, optimizer, run = attached(start, lr, Gating(depth=depth), 2 * paper / depth, Blocks((SIZE,)), momentum=0.9)
    descend(model, optimizer, loss, steps, cosine=True)
    misalignment = run.certificate().misalignment
    run.settle(ZERO)
    return model.w.detach(), misalignment


def fista(X: Tensor, y: Tensor, strength: float, steps: int) -> Tensor:
    """min (1/n)‖y − Xw‖² + λΣ‖w_g‖ by accelerated proximal gradient with restarts (Beck and Teboulle 2009)."""
    n = len(y)
    rate = n / (2 * float(torch.linalg.matrix_norm(X, 2)) ** 2)
    w = z = torch.zeros(X.shape[1], dtype=X.dtype)
    t = 1.0
    for _ in range(steps):
        half = (z - rate * 2 / n * X.T @ (X @ z - y)).view(GROUPS, SIZE)
        norm = half.norm(dim=1, keepdim=True).clamp_min(1e-300)
        new = (half * (1 - rate * strength / norm).clamp_min(0)).flatten()
        if float((z - new) @ (new - w)) > 0:
            t = 1.0  # momentum points uphill: restart
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        z, w, t, last = new + (t - 1) / after * (new - w), new, after, w
        if float((w - last).norm()) <= 1e-12 * float(w.norm()):
            break
    return w


def _best(row: Row) -> dict[str, Any]:
    return dict(min((p for p in row["points"] if math.isfinite(p["rmse"] or math.inf)), key=lambda p: p["rmse"]))


def _at_best(rows: list[Row], method: str, key: str) -> float:
    """Mean of `key` at the method's best λ."""
    return mean([_best(row)[key] for row in among(rows, method=method)])


@claim("D = 2 equals the group lasso once the misalignment is gone", published="equal beyond some λ, just where M ≈ 0")
def equals_group_lasso(rows: list[Row], settings: Settings) -> Found:
    gaps = _against_fista(rows)
    said = f"coefficients differ by at most {max(gaps, default=math.nan):.1e} at the {len(gaps)} grid points with "
    return f"{said}M < {ALIGNED:g} Ω", bool(gaps) and max(gaps) < 0.02


@claim("D = 3 and D = 4 beat the best group lasso", published="yes (Fig. 4)")
def beats_group_lasso(rows: list[Row], settings: Settings) -> Found:
    rmse = {m: _at_best(rows, m, "rmse") for m in ("FISTA", "D=2", "D=3", "D=4")}
    said = ", ".join(f"{m} {x:.4f}" for m, x in rmse.items()) + " RMSE"
    return said, max(rmse["D=3"], rmse["D=4"]) < rmse["FISTA"]


@claim("D = 3 and D = 4 keep about the 7 true groups at their best λ", published="close to the oracle")
def keeps_the_true_ones(rows: list[Row], settings: Settings) -> Found:
    kept = {m: (_at_best(rows, m, "active"), _at_best(rows, m, "true")) for m in ("D=3", "D=4")}
    said = ", ".join(f"{m} {active:.1f} groups, {true:.1f} true" for m, (active, true) in kept.items())
    return said, all(6 <= active <= 9 and true > 6 for active, true in kept.values())


@claim("direct gradient descent on the group norm is far off in error", published="far off")
def direct_is_far_off(rows: list[Row], settings: Settings) -> Found:
    direct, exact = (_at_best(rows, m, "rmse") for m in ("subgradient", "FISTA"))
    return f"RMSE {direct:.4f} at its best λ, FISTA {exact:.4f}", direct > 1.05 * exact


@claim("it keeps most groups above 1e-6 at every λ (ours)", published="not given")
def direct_keeps_most(rows: list[Row], settings: Settings) -> Found:
    least = min(p["active"] for row in among(rows, method="subgradient") for p in row["points"])
    return f"at least {least} of 40 groups", least > 20


def _against_fista(rows: list[Row]) -> list[float]:
    """Relative differences of the weights of D = 2 from FISTA's at the grid points at which it is aligned."""
    gaps = []
    for row in among(rows, method="D=2"):
        exact = among(rows, method="FISTA", seed=row["seed"])[0]
        for p, q in zip(row["points"], exact["points"], strict=True):
            w, v = torch.tensor(p["w"], dtype=torch.float64), torch.tensor(q["w"], dtype=torch.float64)
            size = float(v.view(GROUPS, SIZE).norm(dim=1).sum())
            if size > 0 and p["misalignment"] < ALIGNED * size:
                gaps.append(float((w - v).norm() / v.norm()))
    return gaps


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (errors, sizes, misaligned) = panels(3)
    for i, method in enumerate(("FISTA", "subgradient", "D=2", "D=3", "D=4")):
        found = among(rows, method=method)
        grid = [p["lambda_paper"] for p in found[0]["points"]]

        def average(key: str, found: list[Row] = found, grid: list[float] = grid) -> list[float]:
            return [mean([row["points"][k][key] or 0.0 for row in found]) for k in range(len(grid))]

        curve(errors, i, grid, average("rmse"), method)
        curve(sizes, i, grid, average("active"), method)
        if method.startswith("D"):
            curve(misaligned, i, grid, [max(m, 1e-16) for m in average("misalignment")], method)
    errors.axhline(mean([row["oracle"] for row in rows]), color="0.5", linestyle=":", label="oracle")
    sizes.axhline(TRUE, color="0.5", linestyle=":")
    for ax, title, y in (
        (errors, "test error", "RMSE"),
        (sizes, "size", "active groups"),
        (misaligned, "misalignment", "Σ M"),
    ):
        ax.set_xscale("log")
        label(ax, title, "λ_paper", y)
    errors.set_ylim(0.95, 3.2)
    misaligned.set_yscale("log")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [["oracle", "", f"{mean([row['oracle'] for row in rows]):.4f}", "7", "7"]]
    for method in ("FISTA", "subgradient", "D=2", "D=3", "D=4"):
        best = [_best(row) for row in among(rows, method=method)]
        lines.append(
            [
                method,
                f"{mean([p['lambda_paper'] for p in best]):.3g}",
                f"{mean([p['rmse'] for p in best]):.4f}",
                f"{mean([p['active'] for p in best]):.1f}",
                f"{mean([p['true'] for p in best]):.1f}",
            ]
        )
    return Table(("method", "best λ_paper", "test RMSE", "active groups", "true ones of 7"), lines)


FULL = {"grid": [1e-5, 15.0, 30], "steps": 1500, "lr": 1e-2, "fista_steps": 100_000}
EXPERIMENT = Experiment(
    name="gating-regression",
    paper=GATING,
    title="Group-sparse regression",
    claims=(equals_group_lasso, beats_group_lasso, keeps_the_true_ones, direct_is_far_off, direct_keeps_most),
    differs="As published (200 + 2000 samples, 40 groups of 5, 7 true, full batch, momentum 0.9, 1500 iterations, "
    "cosine, 30 λ, 10 repetitions, threshold 1e-6), but with rate 1e-2 instead of 5e-2, at which D = 3 and 4 lose true "
    "groups or blow up on some seeds. Best λ by test error (our choice), for every method alike.",
    failed="1,500 steps with a cosine to 0 bring the subgradient as close to the group lasso as D = 2 comes; what it "
    "lacks are exact zeros, and D = 2 has a like tail of groups that are still on their way (35.3 and 33.8 at their best "
    "λ, FISTA 26.6).",
    full=FULL,
    quick=FULL | {"grid": [1e-2, 5.0, 7]},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    seeds=10,
    minutes=10.0,
)
