"""LASSO: linear regression on California housing: p = 1 against a lasso solver (the author's notebook)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from winnow.penalties import Lp
from winnow.routes import Decay

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim
from ..data import housing
from ..plots import colour, label, panels
from ..regression import Linear, shrunk_late
from ..small import attached, descend
from ..texts import DECAY

NAMES = ("income", "age", "rooms", "bedrooms", "population", "people", "latitude", "longitude")
PUBLISHED = (0.7057, 0.106, 0.0, 0.0, 0.0, 0.0, -0.0112, 0.0)


def cells(settings: Settings, seeds: int) -> list[Cell]:
    return [{"method": "solver"}, {"method": "late decay"}, *({"method": "decay", "p": p} for p in settings["p"])]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    x, y = housing()
    problem, strength = Linear(x, y), settings["strength"]
    if cell["method"] == "solver":
        from sklearn.linear_model import Lasso

        solver = Lasso(alpha=strength, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
        return {"w": solver.fit(x.numpy(), y.numpy()).coef_.tolist()}
    if cell["method"] == "late decay":
        start = problem.least_squares()
        return {"w": shrunk_late(problem, start, Lp(1.0), strength, settings["lr"], settings["steps"]).tolist()}
    model, optimizer, _ = attached(problem.least_squares(), settings["lr"], Decay(Lp(cell["p"])), strength)
    descend(model, optimizer, problem.loss, settings["steps"])
    return {"w": model.w.tolist()}


def _said(w: Any) -> str:
    return "(" + ", ".join(f"{x + 0:.4g}" for x in w) + ")"


def _solved(rows: list[Row]) -> list[float]:
    """The solver's coefficients."""
    return list(among(rows, method="solver")[0]["w"])


def _decayed(rows: list[Row], p: float = 1.0) -> list[float]:
    return list(among(rows, method="decay", p=p)[0]["w"])


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@claim("decay with p = 1 reaches the lasso solver's coefficients, its zeros exact", published="equal")
def equals_the_solver(rows: list[Row], settings: Settings) -> Found:
    off = _apart(_decayed(rows), _solved(rows))
    ours, theirs = ([i for i, x in enumerate(w) if x == 0] for w in (_decayed(rows), _solved(rows)))
    said = f"largest difference {off:.1e}, {len(ours)} zeros against {len(theirs)}"
    return said, off < 1e-6 and ours == theirs


@claim("the coefficients are those of the notebook", published=_said(PUBLISHED))
def equals_the_notebook(rows: list[Row], settings: Settings) -> Found:
    away = _apart(_decayed(rows), PUBLISHED)
    return f"{_said(_decayed(rows))}: within {away:.1e}", away < 1e-3


@claim("p = 2 leaves no zeros (negative control)", published="ridge is never sparse")
def no_zeros_from_l2(rows: list[Row], settings: Settings) -> Found:
    return _said(_decayed(rows, 2.0)), all(_decayed(rows, 2.0))


@claim("decay by the weight after the gradient's step (PAdam_late) is biased", published="found inferior")
def late_is_biased(rows: list[Row], settings: Settings) -> Found:
    late, off = among(rows, method="late decay")[0]["w"], _apart(_decayed(rows), _solved(rows))
    biased = _apart(late, _solved(rows))
    said = f"{_said(late)}: off by {biased:.1e}, where decay is by {off:.1e}"
    return said, biased > 1e-3 and off < 1e-6


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (ax,) = panels(1, width=6.0)
    for i, row in enumerate(rows):
        name = f"p = {row['p']:g}" if "p" in row else row["method"]
        places = [k + 0.2 * (i - 1.5) for k in range(len(NAMES))]
        ax.bar(places, row["w"], width=0.18, color=colour(i), label=name)
    ax.set_xticks(range(len(NAMES)), NAMES)
    label(ax, "California housing, coefficients", "", "w")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [["notebook", "1", *(f"{x:.4f}" for x in PUBLISHED)]]
    lines += [[row["method"], f"{row.get('p', 1):g}", *(f"{x + 0:.4f}" for x in row["w"])] for row in rows]
    return Table(("method", "p", *NAMES), lines)


FULL = {"p": [1.0, 2.0], "strength": 0.1, "lr": 0.2, "steps": 20_000}
EXPERIMENT = Experiment(
    name="decay-lasso",
    paper=DECAY,
    title="The lasso on California housing",
    claims=(equals_the_solver, equals_the_notebook, no_zeros_from_l2, late_is_biased),
    differs="As the notebook (standardised features, λ = 0.1), by descent at rate 0.2 from least squares in place of an "
    "iterated ridge; p = 2 is ours.",
    full=FULL,
    quick=FULL | {"steps": 2000},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    minutes=0.5,
)
