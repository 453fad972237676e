"""DIAGONAL: the diagonal linear network: which strengths over time recover a sparse truth (section 4, B.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from winnow.routes import Masking
from winnow.schedules import Clock, Constant, Geometric, Harmonic, Schedule
from winnow.starts import Gap

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim, mean, spread
from ..plots import curve, label, panels
from ..small import attached
from ..texts import PILOT
from .flow import problem

DECAYING = ("0.95^k × 500", "0.95^k × 1000", "0.95^k × 2000", "1000/k", "2000/k²")
CONSTANT = ("constant 0.1", "constant 1")
SCHEDULES: dict[str, Schedule] = {
    "none": Constant(0.0),
    **{f"0.95^k × {c}": Geometric(2.0 * c, 0.95) for c in (500, 1000, 2000)},
    "1000/k": Harmonic(2000.0),
    "2000/k²": Harmonic(4000.0, power=2.0),
    "constant 0.1": Constant(0.2),
    "constant 1": Constant(2.0),
}
"""By the paper's α; λ = 2α."""


def cells(settings: Settings, seeds: int) -> list[Cell]:
    ours = [(m, s) for m in ("PILoT", "balanced") for s in settings["schedules"]]
    l1 = [(m, s) for m in ("L1 on x", "L1 on m") for s in (*CONSTANT, "0.95^k × 1000")]
    sgd = [("PILoT, SGD", s) for s in settings["sgd"]]
    return [{"method": m, "schedule": s, "seeds": seeds} for m, s in (*ours, *l1, *sgd)]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    """All seeds at once, as rows of one weight: nothing couples them."""
    Z, Y, truth, start = (torch.stack(parts) for parts in zip(*map(problem, range(cell["seeds"])), strict=True))
    torch.manual_seed(0)
    steps = settings["steps"]
    walk = _penalised if cell["method"].startswith("L1") else _masked
    path, x, dose = [], start, [0.0]
    marks = {round(steps ** (k / 40)) for k in range(41)}
    for step, x in enumerate(walk(cell, Z, Y, start, settings, dose), 1):
        if step in marks:
            path.append([step, *(x - truth).norm(dim=1).tolist()])
    losses = [float(half_squares(Z[i], Y[i], x[i])) for i in range(len(x))]
    return {
        "dose": dose[0],
        "errors": path[-1][1:],
        "losses": losses,
        "large": (x.abs() > 0.05).sum(1).tolist(),
        "path": path,
    }


def half_squares(Z: Tensor, Y: Tensor, x: Tensor) -> Tensor:
    """½‖Zx − Y‖², summed over leading dimensions."""
    out: Tensor = 0.5 * ((Z @ x[..., None])[..., 0] - Y).square().sum()
    return out


def _masked(cell: Cell, Z: Tensor, Y: Tensor, start: Tensor, settings: Settings, dose: list[float]) -> Iterator[Tensor]:
    beta = 0.0 if cell["method"] == "balanced" else 1.0
    model, optimizer, run = attached(start, settings["lr"], Masking(beta), SCHEDULES[cell["schedule"]])
    noisy = cell["method"].endswith("SGD")
    for _ in range(settings["steps"]):
        rows = torch.randint(40, (5,)) if noisy else torch.arange(40)
        optimizer.zero_grad()
        loss = 40 / len(rows) * half_squares(Z[:, rows], Y[:, rows], model.w)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        dose[0] = run.dose
        yield model.w.detach()


def _penalised(
    cell: Cell, Z: Tensor, Y: Tensor, start: Tensor, settings: Settings, dose: list[float]
) -> Iterator[Tensor]:
    """Subgradient descent with L1 on x, or on m of x = m·v (the start as PILoT's)."""
    on_mask, schedule = cell["method"] == "L1 on m", SCHEDULES[cell["schedule"]]
    m, v = Gap(1.0)(start, 2) if on_mask else (start, torch.ones_like(start))
    m, v = m.clone().requires_grad_(), v.clone().requires_grad_(on_mask)
    optimizer = torch.optim.SGD([m, v] if on_mask else [m], settings["lr"])
    for step in range(settings["steps"]):
        alpha = schedule.strength(Clock(step=step)) / 2
        optimizer.zero_grad()
        loss = half_squares(Z, Y, m * v) + alpha * m.abs().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield (m * v).detach()


def _error(rows: list[Row], method: str, schedule: str) -> float:
    return mean(among(rows, method=method, schedule=schedule)[0]["errors"])


def _by_dose(rows: list[Row], settings: Settings) -> list[tuple[float, float, str]]:
    """Dose, error and name of PILoT's decaying schedules, by rising dose."""
    decaying = ["none", *(s for s in DECAYING if s in settings["schedules"])]
    return sorted((among(rows, method="PILoT", schedule=s)[0]["dose"], _error(rows, "PILoT", s), s) for s in decaying)


@claim(
    "PILoT (β = 1) with decaying schedules: the larger the dose, the nearer to x*, whatever the shape",
    published="yes (curves)",
)
def ordered_by_dose(rows: list[Row], settings: Settings) -> Found:
    found = _by_dose(rows, settings)
    errors = [error for _, error, _ in found]
    said = ", ".join(f"{name} (Λ = {dose:.2f}) {error:.3f}" for dose, error, name in found)
    return "‖x − x*‖: " + said, errors == sorted(errors, reverse=True)


@claim("the strongest decaying schedule recovers x*", published="yes (curves)")
def recovers(rows: list[Row], settings: Settings) -> Found:
    dose, error, name = _by_dose(rows, settings)[-1]
    return f"{name} (Λ = {dose:.2f}): ‖x − x*‖ = {error:.3f}", error < 0.1


@claim("constant strengths end near x* with the lasso's bias, larger for the larger strength", published="yes")
def constant_is_biased(rows: list[Row], settings: Settings) -> Found:
    small, large = (_error(rows, "PILoT", s) for s in CONSTANT)
    loss = min(x for s in CONSTANT for row in among(rows, method="PILoT", schedule=s) for x in row["losses"])
    said = f"{small:.3f} and {large:.3f}, final loss at least {loss:.1e}"
    return said, small < large < 0.5 and loss > 1e-3


@claim("the balanced start (β = 0, spred) never comes near x*, for any schedule", published="stuck on wrong signs")
def balanced_is_stuck(rows: list[Row], settings: Settings) -> Found:
    found = [among(rows, method="balanced", schedule=s)[0]["errors"] for s in settings["schedules"]]
    nearest = [min(errors) for errors in zip(*found, strict=True)]
    said = ", ".join(f"{x:.2f}" for x in nearest)
    return f"least ‖x − x*‖ of each seed {said} (‖x*‖ = 2.24)", min(nearest) > 0.5


@claim("L1 on the weights or on the masks wants a constant strength: decaying, it loses the sparsity", published="yes")
def l1_wants_constant(rows: list[Row], settings: Settings) -> Found:
    l1 = {
        m: (min(_error(rows, m, s) for s in CONSTANT), _error(rows, m, "0.95^k × 1000")) for m in ("L1 on x", "L1 on m")
    }
    said = "; ".join(f"{m}: constant {a:.3f}, decaying {b:.3f}" for m, (a, b) in l1.items())
    return said, all(3 * a < b for a, b in l1.values())


@claim("minibatches of 5 behave alike", published="yes")
def minibatches_alike(rows: list[Row], settings: Settings) -> Found | None:
    sgd = {s: _error(rows, "PILoT, SGD", s) for s in settings["sgd"]}
    if not sgd:
        return None
    said = ", ".join(f"{s} {e:.3f}" for s, e in sgd.items())
    return said, all(abs(e - _error(rows, "PILoT", s)) < 0.1 for s, e in sgd.items())


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, axes = panels(3, "diagonal linear network, n = 100, 40 samples, 5 true entries")
    for ax, methods in zip(axes, (("PILoT",), ("balanced",), ("L1 on x", "L1 on m")), strict=True):
        pairs = [(m, s) for m in methods for s in SCHEDULES if among(rows, method=m, schedule=s)]
        for i, (method, schedule) in enumerate(pairs):
            path = among(rows, method=method, schedule=schedule)[0]["path"]
            name = schedule if len(methods) == 1 else f"{method[-1]}: {schedule}"
            curve(ax, i, [p[0] for p in path], [p[1] for p in path], name, marked=False)
        ax.set(xscale="log", yscale="log")
        label(
            ax,
            {"balanced": "balanced start (β = 0)", "PILoT": "PILoT (β = 1)"}.get(methods[0], "L1"),
            "steps",
            "‖x − x*‖",
        )
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [
        [
            row["method"],
            row["schedule"],
            f"{mean(row['errors']):.4f} ± {spread(row['errors']):.4f}",
            f"{mean(row['losses']):.1e}",
            f"{mean(row['large']):.1f}",
        ]
        for row in rows
    ]
    return Table(("method", "α over steps", "‖x − x*‖", "loss", "entries above 0.05 (5 true)"), lines)


FULL = {"lr": 1e-4, "steps": 300_000, "schedules": list(SCHEDULES), "sgd": ["0.95^k × 2000"]}
EXPERIMENT = Experiment(
    name="pilot-diagonal",
    paper=PILOT,
    title="Diagonal linear network",
    claims=(ordered_by_dose, recovers, constant_is_biased, balanced_is_stuck, l1_wants_constant, minibatches_alike),
    differs="As published: n = 100, 40 samples, 5 non-zeros, β = 1, rate 1e-4; 3 seeds instead of 5 and two constant "
    "strengths instead of four. Open there and chosen here: the loss ½‖Zx − Y‖², entries ±1, start N(0, 1/√n), 300,000 "
    "steps, the amplitudes. Minibatches of 5 scaled to the full sum. The figure shows seed 0. A dose of about 4 is "
    "needed to come within 0.1 of x*; 1000/k has 2.64 after our steps.",
    failed="In the exact flow a balanced start cannot change a sign. Seed 1 happens to start with all five signs of x* "
    "right (seeds 0 and 2: three and one) and recovers x*. Under the constant 1 seed 0 ends where PILoT ends, so its "
    "signs did change: a wrong entry at zero with a gradient larger than λ is a saddle there, and in float64 the start "
    "is balanced to rounding only, which likely suffices to leave it.",
    full=FULL,
    quick=FULL | {"lr": 2e-4, "steps": 1500, "schedules": ["none", "1000/k", *CONSTANT], "sgd": []},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    seeds=3,
    minutes=35.0,
)
