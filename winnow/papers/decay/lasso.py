"""LASSO: linear regression on California housing: p = 1 against a lasso solver (the author's notebook)."""

from __future__ import annotations

from typing import Any

from winnow.penalties import Lp
from winnow.routes import Decay

from ..base import Bench, Cell, Experiment, Outcome, Row, Settings, Table, Verdict, among
from ..data import housing
from ..plots import colour, label, panels
from ..regression import Linear, shrunk_late
from ..small import attached, descend
from ..texts import DECAY

CLAIMS = (
    "decay with p = 1 reaches the lasso solver's coefficients, its zeros exact",
    "the coefficients are those of the notebook",
    "p = 2 leaves no zeros (negative control)",
    "decay by the weight after the gradient's step (PAdam_late) is biased",
)
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


def judge(rows: list[Row], settings: Settings) -> list[Verdict]:
    solved = among(rows, method="solver")[0]["w"]
    ours = {row["p"]: row["w"] for row in among(rows, method="decay")}
    off = max(abs(a - b) for a, b in zip(ours[1.0], solved, strict=True))
    zeros = [[i for i, x in enumerate(w) if x == 0] for w in (ours[1.0], solved)]
    late = among(rows, method="late decay")[0]["w"]
    biased = max(abs(a - b) for a, b in zip(late, solved, strict=True))
    away = max(abs(a - b) for a, b in zip(ours[1.0], PUBLISHED, strict=True))
    return [
        Verdict(
            CLAIMS[0],
            "equal",
            f"largest difference {off:.1e}, {len(zeros[0])} zeros against {len(zeros[1])}",
            Outcome.of(off < 1e-6 and zeros[0] == zeros[1]),
        ),
        Verdict(CLAIMS[1], _said(PUBLISHED), f"{_said(ours[1.0])}: within {away:.1e}", Outcome.of(away < 1e-3)),
        Verdict(CLAIMS[2], "ridge is never sparse", _said(ours[2.0]), Outcome.of(all(ours[2.0]))),
        Verdict(
            CLAIMS[3],
            "found inferior",
            f"{_said(late)}: off by {biased:.1e}, where decay is by {off:.1e}",
            Outcome.of(biased > 1e-3 and off < 1e-6),
        ),
    ]


def _said(w: Any) -> str:
    return "(" + ", ".join(f"{x + 0:.4g}" for x in w) + ")"


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
    claims=CLAIMS,
    differs="As the notebook (standardised features, λ = 0.1), by descent at rate 0.2 from least squares in place of an "
    "iterated ridge; p = 2 is ours.",
    full=FULL,
    quick=FULL | {"steps": 2000},
    cells=cells,
    run=run,
    judge=judge,
    draw=draw,
    table=table,
    minutes=0.5,
)
