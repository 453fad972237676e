"""CHARTS: Vega-Lite specifications: zoom by wheel and drag, values on hover, the same look everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .runs import Run

Chart = dict[str, Any]
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#8C6D31", "#7f7f7f", "#B15928"]
COLOURS += ["#17becf", "#9b9b00", "#e7298a", "#8da0cb", "#1b7837"]
BELOW = {"orient": "bottom", "columns": 4}
SIDES = {
    "color": {"field": "what", "type": "nominal", "scale": {"range": COLOURS}, "title": None, "legend": BELOW},
    "strokeDash": {"field": "side", "type": "nominal", "title": None, "legend": BELOW},
}
ZOOM = {"name": "zoom", "select": "interval", "bind": "scales"}


def tradeoff(runs: Sequence[Run]) -> Chart:
    """One task's runs: score against times smaller, a line per method, its range over seeds where there are several."""
    rows = _points(runs)
    measure, seen = runs[0].measure, [row["times smaller"] for row in rows]
    names = {run.method for run in runs}
    many, columns = len(names) > MANY, 2 if max(map(len, names)) <= SHORT else 1
    domain = {"type": "log", "nice": False, "domain": [min(seen) / ROOM, max(seen) * ROOM]}
    scale = {"zero": False, "domain": _shown(runs), "nice": True}
    legend = {"orient": "bottom", "columns": columns, "symbolOpacity": 1}
    x = {"field": "times smaller", "type": "quantitative", "scale": domain, "title": "times smaller"}
    y = {"field": "score", "type": "quantitative", "scale": scale, "title": measure}
    colour = {"field": "method", "type": "nominal", "scale": {"range": COLOURS}, "legend": legend}
    keys = [key for key in rows[0] if key not in ("times smaller", "score")]
    tips = [{"field": "score", "title": measure, "format": ".4f"}, *({"field": key} for key in keys)]
    line = {
        "mark": {"type": "line", "clip": True},
        "encoding": {"x": x, "y": {**y, "aggregate": "mean"}, "color": colour},
    }
    band = {
        "mark": {"type": "errorband", "extent": "stdev", "clip": True},
        "encoding": {"x": x, "y": y, "color": colour},
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 20 if many else 45, "clip": True},
        "encoding": {"x": x, "y": y, "color": colour, "tooltip": tips},
        "params": [ZOOM],
    }
    several = len(names) < len(runs) or any(run.kind == "compare" for run in runs)
    layers = [*([band] if several and not many else []), line, dots]
    return {"data": {"values": rows}, "height": HEIGHT + LINE * -(-len(names) // columns), "layer": layers}


def _points(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for every model of every run, with what is shown on hover."""
    return [
        {
            "method": run.method,
            "times smaller": 1 / p.kept,
            "kept %": 100 * p.kept,
            "score": p.score,
            "run": run.name,
            **p.more,
        }
        for run in runs
        for p in run.points
        if p.kept > 0
    ]


MANY = 7  # methods; of more, those that collapse need not be in view at first, and spreads would hide the lines
ROOM = 1.08  # beside the outermost points
HEIGHT, LINE, SHORT = 300, 18, 24  # pixels without the legend, and of each of its lines; letters that go beside others


def _shown(runs: Sequence[Run]) -> list[float]:
    """The scores in view at first: all of the better half of many methods; what collapses leaves through the floor."""
    sign = -1.0 if runs[0].by_loss else 1.0
    worst: dict[str, float] = {}
    for run in runs:
        for p in run.points:
            worst[run.method] = min(worst.get(run.method, float("inf")), sign * p.score)
    best = max(sign * p.score for run in runs for p in run.points)
    floor = sorted(worst.values())[len(worst) // 2 if len(worst) > MANY else 0]
    margin = 0.05 * (best - floor) or 1.0
    low, high = sign * (floor - margin), sign * (best + margin)
    return [min(low, high), max(low, high)]


def out_of_view(runs: Sequence[Run]) -> int:
    """How many points are not in view at first."""
    low, high = _shown(runs)
    return sum(not low <= p.score <= high for run in runs for p in run.points)


def history(run: Run, fields: Mapping[str, str], title: str, log: bool = False) -> Chart:
    """Columns of a history against steps, a line each; both sides, told apart by dashes."""
    rows = [
        {"step": row["step"], "side": row["side"], "what": name, "value": row[key]}
        for row in run.history
        for key, name in fields.items()
        if isinstance(row.get(key), float) and not (log and row[key] <= 0)
    ]
    return {
        "data": {"values": rows},
        "params": [ZOOM],
        "mark": {"type": "line", "tooltip": {"content": "data"}},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "optimizer step"},
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": title,
                "scale": {"type": "log"} if log else {"zero": False},
                "axis": {"format": ".0e"} if log else {},
            },
            **(_by_rung(run) if run.kind == "path" else SIDES),
        },
    }


def _by_rung(run: Run) -> dict[str, Any]:
    """Colours for the rungs, in their order."""
    order = list(dict.fromkeys(row["side"] for row in run.history))
    return {
        "color": {
            "field": "side",
            "type": "nominal",
            "sort": order,
            "scale": {"range": COLOURS},
            "title": None,
            "legend": BELOW,
        }
    }


def layers(kept: Mapping[str, Sequence[tuple[str, float, float]]]) -> Chart:
    """What lives of every weight, a row each; a column per point."""
    rows = [
        {"weight": name, "density": point, "kept %": 100 * alive / groups, "alive": alive, "of": groups}
        for point, entries in kept.items()
        for name, alive, groups in entries
    ]
    order = list(dict.fromkeys(row["weight"] for row in rows))
    return {
        "data": {"values": rows},
        "mark": {"type": "rect", "tooltip": {"content": "data"}}
        if len(kept) > 1
        else {"type": "bar", "tooltip": {"content": "data"}},
        "encoding": {
            "y": {"field": "weight", "type": "nominal", "sort": order, "title": None},
            **(
                {
                    "x": {"field": "density", "type": "nominal", "sort": list(kept), "title": "density of the whole"},
                    "color": {
                        "field": "kept %",
                        "type": "quantitative",
                        "scale": {"scheme": "viridis", "domain": [0, 100]},
                    },
                }
                if len(kept) > 1
                else {
                    "x": {"field": "kept %", "type": "quantitative", "scale": {"domain": [0, 100]}},
                    "color": {"value": COLOURS[0]},
                }
            ),
        },
    }


def picture(grid: Sequence[Sequence[float]]) -> Chart:
    """A weight: outputs down, inputs across, brighter where more entries live."""
    rows = [{"output": i, "input": j, "alive": x} for i, row in enumerate(grid) for j, x in enumerate(row)]
    return {
        "data": {"values": rows},
        "mark": {"type": "rect", "tooltip": {"content": "data"}},
        "height": 220,
        "encoding": {
            "x": {"field": "input", "type": "ordinal", "axis": {"labels": False, "ticks": False}},
            "y": {"field": "output", "type": "ordinal", "axis": {"labels": False, "ticks": False}},
            "color": {"field": "alive", "type": "quantitative", "scale": {"scheme": "viridis"}, "title": "share alive"},
        },
    }
