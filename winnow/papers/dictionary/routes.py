"""ROUTES: one penalty and one λ on one problem, down every route: paths and end points."""

from __future__ import annotations

import math
from typing import Any

import torch

from winnow.penalties import L1, MCP, LogSum, Lp, Penalty, VariationalDropout
from winnow.routes import Bernoulli, Decay, Dropout, Expected, Gating, Masking, Route

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim
from ..plots import curve, label, panels
from ..regression import correlated, descent
from ..texts import DICTIONARY

PENALTIES: dict[str, Penalty] = {
    "L1": L1,
    "Lp(2/3)": Lp(2 / 3),
    "Lp(1/2)": Lp(0.5),
    "LogSum(1)": LogSum(1.0),
    "MCP(3)": MCP(3.0),
    "VarDrop": VariationalDropout(),
}
EXACT = ("decay", "gating", "masking")
ROUTES = ("decay", "gating", "expected dropout", "random dropout")
SUPPORT = 1e-4  # of a weight, for the noisy route and the control: far above rounding, far below every survivor


def cells(settings: Settings, seeds: int) -> list[Cell]:
    pairs = [(p, r) for p in settings["penalties"] for r in ROUTES]
    extra = [("L1", "masking"), ("L1", "AdamW on factors")]
    return [{"penalty": p, "route": r} for p, r in [*pairs, *extra]]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    problem, _ = correlated(200, 50, settings["truth"], settings["noise"], seed=0)
    penalty, strength = PENALTIES[cell["penalty"]], settings["strength"]
    start, reference = problem.least_squares(), problem.reweighted(penalty, strength)
    if cell["route"] == "AdamW on factors":
        w = _decoupled(problem, start, settings)
        path: list[list[float]] = []
    else:
        noisy, steps = cell["route"] == "random dropout", settings["steps"]
        lr = settings["noisy_lr" if noisy else "lr"]
        w, path = descent(problem, start, route_of(cell["route"], penalty), penalty, strength, lr, steps)
    scale = float(reference.norm())
    return {
        "reference": problem.objective(reference, penalty, strength),
        "objective": problem.objective(w, penalty, strength),
        "error": float((w - reference).norm()) / scale,
        "support": int((w.abs() > SUPPORT).sum()),
        "exact_zeros": int((w == 0).sum()),
        "same_support": bool(((w.abs() > SUPPORT) == (reference.abs() > SUPPORT)).all()),
        "lasso_error": _lasso_error(problem, w, strength) if cell["penalty"] == "L1" else None,
        "path": path,
    }


def route_of(name: str, penalty: Penalty) -> Route:
    """The route `name` for `penalty`."""
    if name == "masking":
        return Masking(beta=1.0)
    if name.endswith("dropout"):
        return Dropout(penalty, mask=Expected() if name.startswith("expected") else Bernoulli())
    return Decay(penalty) if name == "decay" else Gating(penalty)


def _decoupled(problem: Any, start: Any, settings: Settings) -> Any:
    m = (start.abs().sqrt()).requires_grad_()
    v = (start.sign() * start.abs().sqrt()).requires_grad_()
    optimizer = torch.optim.AdamW([m, v], 1e-2, weight_decay=settings["strength"])
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])
    for _ in range(settings["steps"]):
        optimizer.zero_grad()
        problem.loss(m * v).backward()
        optimizer.step()
        rates.step()
    return (m * v).detach()


def _lasso_error(problem: Any, w: Any, strength: float) -> float:
    from sklearn.linear_model import Lasso

    solver = Lasso(alpha=strength, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
    exact = torch.from_numpy(solver.fit(problem.X.numpy(), problem.y.numpy()).coef_)
    return float((w - exact).norm() / exact.norm())


def _exact(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["route"] in EXACT]


@claim("the same penalty and λ end in the same weights down decay and gating", published="equal objectives (derived)")
def same_end(rows: list[Row], settings: Settings) -> Found:
    worst = max(_exact(rows), key=lambda row: float(row["error"]))
    said = (
        f"largest relative difference to reweighted ridge {worst['error']:.1e} ({worst['route']}, {worst['penalty']})"
    )
    return said, worst["error"] < 1e-6 and all(row["same_support"] for row in _exact(rows))


@claim(
    "expected dropout, whose step is explicit, ends there too where Ω has a finite slope at zero",
    published="equal (derived)",
)
def expected_dropout_too(rows: list[Row], settings: Settings) -> Found:
    explicit = {row["penalty"]: row["error"] for row in among(rows, route="expected dropout")}
    finite = [e for name, e in explicit.items() if math.isfinite(PENALTIES[name].slope_at_zero)]
    return ", ".join(f"{name} {e:.0e}" for name, e in explicit.items()), max(finite) < 1e-3


@claim("L1: masking with a constant strength ends there too, and all three at scikit-learn's lasso", published="equal")
def lasso_too(rows: list[Row], settings: Settings) -> Found:
    lasso = max(row["lasso_error"] for row in _exact(rows) if row["penalty"] == "L1")
    return f"largest relative difference {lasso:.1e}", lasso < 1e-6


@claim("adaptive dropout with random masks finds the same support, its weights within 3 %", published="within 2–3 %")
def random_dropout_near(rows: list[Row], settings: Settings) -> Found:
    noisy = among(rows, route="random dropout")
    said = f"largest relative difference {100 * max(r['error'] for r in noisy):.1f} %"
    return said, all(r["error"] < 0.03 and r["same_support"] for r in noisy)


@claim(
    "decoupled (AdamW) decay on the factors does not solve the problem (negative control)",
    published="relative error 0.43, no zero",
)
def decoupled_fails(rows: list[Row], settings: Settings) -> Found:
    control = among(rows, route="AdamW on factors")[0]
    said = f"{control['error']:.2f}, {control['support']} of 50 nonzero"
    return said, control["error"] > 0.1 and control["support"] > 25


def draw(rows: list[Row], settings: Settings) -> Any:
    names = settings["penalties"]
    figure, axes = panels(len(names), "the same Ω and λ, every route: F − F* against accumulated learning rate")
    for ax, name in zip(axes, names, strict=True):
        for i, route in enumerate((*ROUTES, "masking")):
            for row in among(rows, penalty=name, route=route):
                gap = [max(f - row["reference"], 1e-17) for _, f in row["path"]]
                curve(ax, i, [t for t, _ in row["path"]], gap, route, marked=False)
        ax.set(xscale="log", yscale="log")
        label(ax, name, "Σ lr", "F − F*", legend=name == names[0])
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [
        [
            row["penalty"],
            row["route"],
            f"{row['objective']:.10f}",
            f"{row['reference']:.10f}",
            f"{row['error']:.1e}",
            str(row["support"]),
        ]
        for row in rows
    ]
    return Table(("penalty", "route", "F", "F, reweighted ridge", "relative difference of w", "nonzero"), lines)


FULL = {
    "penalties": list(PENALTIES),
    "strength": 0.2,
    "noise": 0.5,
    "truth": [3.0, -2.0, 1.5, 1.0, -2.5],
    "lr": 0.1,
    "steps": 60_000,
    "noisy_lr": 0.02,
}
EXPERIMENT = Experiment(
    name="dictionary-routes",
    paper=DICTIONARY,
    title="One penalty, one λ, every route",
    claims=(same_end, expected_dropout_too, lasso_too, random_dropout_near, decoupled_fails),
    differs="Regression with 200 samples and 50 correlated columns of unit mean square, 5 true weights, λ = 0.2, plain "
    "SGD from least squares with a cosine rate; the reference is iteratively reweighted ridge, written independently of "
    "the routes. Where F is not convex the routes share its local minima, not necessarily their basins. Expected dropout "
    "descends along λΩ' at its finite rate: for p < 1, where Ω'(0+) = ∞, it chatters about zero.",
    full=FULL,
    quick=FULL | {"penalties": ["L1", "LogSum(1)"], "steps": 3000},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    minutes=15.0,
)
