"""PENALTIES: which penalty a dropout strategy stands for, against LogSum and MCP (the paper's figure)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from winnow.penalties import MCP, HardConcrete, LogSum, Penalty, Standout, VariationalDropout

from ..base import Bench, Cell, Experiment, Found, Row, Settings, Table, among, claim
from ..plots import curve, label, panels
from ..texts import DROPOUT

START = 0.01
CURVES: dict[str, tuple[Penalty, float]] = {
    "VarDrop": (VariationalDropout(), 1.0),
    "2·LogSum(2)": (LogSum(2.0), 2.0),
    "Standout(1)": (Standout(1.0), 1.0),
    "hard-concrete(1)": (HardConcrete(), 1.0),
    "√2·MCP(√½)": (MCP(0.5**0.5), 2**0.5),
}


def cells(settings: Settings, seeds: int) -> list[Cell]:
    return [
        *({"kind": "curve", "name": name} for name in CURVES),
        {"kind": "vector"},
        *({"kind": "noise", "name": name} for name in ("VarDrop", "2·LogSum(2)", "√2·MCP(√½)")),
    ]


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    return {"curve": _curve, "vector": _vector, "noise": _noise}[cell["kind"]](cell, settings)


def _curve(cell: Cell, settings: Settings) -> dict[str, Any]:
    """The penalty on [0.01, 5] minus its value at 0.01, and the integral of t/η̂ by the midpoint rule."""
    penalty, factor = CURVES[cell["name"]]
    edges = torch.linspace(START, 5, settings["points"], dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    pieces = factor * middle / penalty.eta(middle) * (edges[1:] - edges[:-1])
    integral = torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])
    value = factor * (penalty.value(edges) - penalty.value(edges[:1]))
    off = float((integral - value).abs().max())
    thin = max(1, len(edges) // 200)
    return {"w": edges[::thin].tolist(), "value": value[::thin].tolist(), "end": float(value[-1]), "off": off}


def _vector(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Unit vectors of k equal entries of 32: how each penalty counts them."""
    sizes = list(range(1, 33))
    found = {
        name: [float(f * p.value(torch.full((k,), (k + 1e-3) ** -0.5, dtype=torch.float64)).sum()) for k in sizes]
        for name, (p, f) in CURVES.items()
    }
    return {"k": sizes, "sums": found}


def _noise(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Monte Carlo of E‖y − X(s·w)‖²/2n minus ‖y − Xw‖²/2n, Gaussian and Bernoulli s, against ½Σhλw²/η̂ in standard errors."""
    penalty, factor = CURVES[cell["name"]]
    dice = torch.Generator().manual_seed(0)
    X = torch.randn(40, 8, generator=dice, dtype=torch.float64)
    w = torch.linspace(0.1, 0.5, 8, dtype=torch.float64)
    strength, h = settings["strength"] * factor, X.square().mean(0)
    variance = strength / penalty.eta(w)
    y = X @ w + 0.1 * torch.randn(40, generator=dice, dtype=torch.float64)
    formula = float(0.5 * (h * variance * w.square()).sum())
    out: dict[str, Any] = {"formula": formula}
    for law in ("Gaussian", "Bernoulli"):
        extra = _losses(X, y, w * _masks(law, variance, settings["draws"], dice)) - 0.5 * (y - X @ w).square().mean()
        error = float(extra.std() / len(extra) ** 0.5)
        out[law] = {"mean": float(extra.mean()), "standard_errors": (float(extra.mean()) - formula) / error}
    return out


def _masks(law: str, variance: Tensor, draws: int, dice: torch.Generator) -> Tensor:
    if law == "Gaussian":
        return 1 + variance.sqrt() * torch.randn(draws, len(variance), generator=dice, dtype=torch.float64)
    keep = 1 / (1 + variance)
    return (torch.rand(draws, len(variance), generator=dice, dtype=torch.float64) < keep) / keep


def _losses(X: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return 0.5 * (y - weights @ X.T).square().mean(1)


@claim(
    "every strategy's penalty is the integral of t/η̂(t), the variance its noise has, from 0 to |w|",
    published="by definition",
)
def is_the_integral(rows: list[Row], settings: Settings) -> Found:
    off = max(row["off"] for row in among(rows, kind="curve"))
    return f"midpoint rule within {off:.1e}", off < 1e-4


@claim("simulated: noise of variance λ/η̂ adds ½Σhλw²/η̂ to the expected loss of a linear model", published="exact")
def noise_costs_as_much(rows: list[Row], settings: Settings) -> Found:
    noise = among(rows, kind="noise")
    worst = max(abs(row[law]["standard_errors"]) for row in noise for law in ("Gaussian", "Bernoulli"))
    return f"within {worst:.1f} standard errors of {settings['draws']:,} draws", worst < 4


@claim("variational dropout follows 2·LogSum(2), hard-concrete L0 follows √2·MCP(√½)", published="close (figure)")
def nearest_curves(rows: list[Row], settings: Settings) -> Found:
    curves = {row["name"]: torch.tensor(row["value"]) for row in among(rows, kind="curve")}
    pairs = (("VarDrop", "2·LogSum(2)"), ("hard-concrete(1)", "√2·MCP(√½)"))
    apart = {
        (a, b): float((curves[a] - curves[b]).abs().max() / curves[a].max()) for a in curves for b in curves if a != b
    }
    near = " and ".join(f"{100 * apart[pair]:.0f} %" for pair in pairs)
    said = f"each the nearest of the figure's curves, {near} of the largest value apart at most"
    return said, all(apart[a, b] == min(apart[a, c] for c in curves if c != a) for a, b in pairs)


@claim(
    "readings of the figure: VarDrop 2.7 and 2·LogSum 2.5 at 5, Standout 0.96, hard-concrete and MCP 0.49",
    published="as named",
)
def readings(rows: list[Row], settings: Settings) -> Found:
    end = {row["name"]: row["end"] for row in among(rows, kind="curve")}
    read = {"VarDrop": 2.7, "2·LogSum(2)": 2.5, "Standout(1)": 0.96, "hard-concrete(1)": 0.49, "√2·MCP(√½)": 0.49}
    said = ", ".join(f"{name} {end[name]:.2f}" for name in read)
    return said, all(abs(end[name] - value) < 0.06 for name, value in read.items())


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (scalar, vector) = panels(2)
    sums = among(rows, kind="vector")[0]
    for i, row in enumerate(among(rows, kind="curve")):
        curve(scalar, i, row["w"], row["value"], row["name"], marked=False)
        curve(vector, i, sums["k"], sums["sums"][row["name"]], row["name"], marked=False)
    vector.plot([1, 16, 16, 17], [0, 0, 8, 8], color="0.5", linestyle=":", label="top-16 pruning (0 or ∞)")
    label(scalar, "one weight", "|w|", "Ω(w) − Ω(0.01)")
    label(vector, "unit vectors with k equal entries of 32", "k", "ΣΩ")
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [[row["name"], f"{row['end']:.4f}", f"{row['off']:.1e}"] for row in among(rows, kind="curve")]
    return Table(("strategy", "Ω(5) − Ω(0.01)", "distance to ∫t/η̂"), lines)


FULL = {"points": 20_001, "strength": 0.1, "draws": 400_000}
EXPERIMENT = Experiment(
    name="dropout-penalties",
    paper=DROPOUT,
    title="The effective penalty of a dropout strategy",
    claims=(is_the_integral, noise_costs_as_much, nearest_curves, readings),
    differs="As in the paper's figure (its code's parameters), with quadrature instead of unseeded sampling for "
    "hard-concrete.",
    full=FULL,
    quick=FULL | {"points": 4001, "draws": 20_000},
    cells=cells,
    run=run,
    draw=draw,
    table=table,
    minutes=0.5,
)
