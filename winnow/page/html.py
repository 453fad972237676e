"""HTML: one file, styles, script and data inside; every word that comes from a file is escaped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import winnow
from winnow.compare import league
from winnow.errors import WinnowError
from winnow.jobs.shrink import INPUTS

from . import charts
from .runs import Run, asked_for

HERE = Path(__file__).parent
STYLE, SCRIPT = "page.css", "page.js"
WHAT = {"elements": "single weights", "channels": "whole units, shares of the parameters"}
LONG = 30  # letters of a cell that may be broken over lines
MOST, LEAST = 6000, 40  # lines of history, of all runs and of one
FEW = 24  # runs, of more the weights are not drawn


def write(runs: Sequence[Run], out: Path) -> Path:
    """The report of some runs as one file.

    Raises `WinnowError`: no runs; the extra is not installed; `out` cannot be written.
    """
    if not runs:
        raise WinnowError("a report needs at least one run folder")
    pieces = [_curves(runs), _comparisons(runs)]
    pieces += [_run(run, number, len(runs)) for number, run in enumerate(runs)]
    names = ", ".join(dict.fromkeys(run.task for run in runs))
    text = PAGE.format(
        title=escape(f"Winnow: {names}"),
        about=escape(f"{len(runs)} run{'s' * (len(runs) > 1)} · Winnow {winnow.__version__}"),
        style=(HERE / STYLE).read_text(encoding="utf-8"),
        library=_inside(_library()),
        script=_inside((HERE / SCRIPT).read_text(encoding="utf-8")),
        body="\n".join(pieces),
    )
    try:
        half = out.with_name(out.name + ".part")
        half.write_text(text, encoding="utf-8")
        os.replace(half, out)
    except OSError as error:
        raise WinnowError(f"cannot write {out} ({error}): choose another --out") from error
    return out


def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed, as one script."""
    try:
        import vl_convert
    except ImportError as error:
        raise WinnowError('the report needs its extra: pip install "torch-winnow[report]"') from error
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _inside(script: str) -> str:
    """A script that cannot end its own element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def chart(spec: charts.Chart, name: str, words: str) -> str:
    """A figure whose chart is drawn when it is looked at; `words` say it to those who cannot see it."""
    compact = {**spec, "data": packed(spec["data"]["values"])}
    data = json.dumps(compact, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure class="chart" data-name="{escape(name)}"><div class="plot" role="img" aria-label="{escape(words)}"></div>'
        f'<figcaption>{escape(words)} <span class="tools"><button type="button" data-get="svg">SVG</button> '
        f'<button type="button" data-get="csv">CSV</button></span></figcaption>'
        f'<script type="application/json">{data}</script></figure>'
    )


def packed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as lists, each word once, numbers to six digits (page.js unpacks them): a tenth of the size."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    words = list(dict.fromkeys(x for row in rows for x in row.values() if isinstance(x, str)))
    place = {word: [i] for i, word in enumerate(words)}
    lists = [[place[x] if isinstance(x := row.get(key), str) else _short(x) for key in keys] for row in rows]
    return {"keys": keys, "words": words, "rows": lists}


def _short(x: Any) -> Any:
    return float(f"{x:.6g}") if isinstance(x, float) else x


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls sideways by itself where it is too wide."""
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    text = str(value)
    return f"<td{' class=words' * (len(text) > LONG)}>{escape(text)}</td>"


def _curves(runs: Sequence[Run]) -> str:
    tasks = list(dict.fromkeys(run.task for run in runs))
    parts = []
    for task in tasks:
        found = [run for run in runs if run.task == task]
        for by_loss in sorted({run.by_loss for run in found}):
            these = [run for run in found if run.by_loss == by_loss]
            words = f"{task}: {these[0].measure} against how many times smaller"
            words += f"; {gone} points lie out of view: zoom out" if (gone := charts.out_of_view(these)) else ""
            parts.append(f"<h3>{escape(task)}</h3>" + chart(charts.tradeoff(these), f"curve-{task}", words))
    return f'<section id="curves"><h2>What it costs to be smaller</h2>{"".join(parts)}</section>'


def _comparisons(runs: Sequence[Run]) -> str:
    """League tables, what failed, and how each comparison was made."""
    parts = []
    for record in {id(run.record): run.record for run in runs if run.kind == "compare"}.values():
        found = league.entries(record["rows"])
        rows = [
            [
                task,
                f"{keep:g}",
                next((f"{e.mean:.2f}" for e in found if e.task == task and e.method == "dense"), ""),
                *(f"{e.method}: {e}" for e in league.ranked(found, task, keep)[:4]),
            ]
            for task in record["plan"]["tasks"]
            for keep in record["plan"]["keeps"]
        ]
        places = [f"{place}." for place in range(1, max(map(len, rows)) - 2)]
        what = WHAT[record["plan"].get("where", "elements")]
        parts.append(f"<h3>League table: {what}</h3>" + table(["task", "keep", "dense", *places], rows))
        failed = [
            [r["task"], r["method"], f"{r['keep']:g}", r["seed"], r["error"]] for r in record["rows"] if r["error"]
        ]
        if failed:
            parts.append("<h3>Failed</h3>" + table(["task", "method", "keep", "seed", "error"], failed))
        parts.append(_made(record))
    return f"<section><h2>Who is first where</h2>{''.join(parts)}</section>" if parts else ""


def _run(run: Run, number: int, of: int) -> str:
    parts = [_points(run), _layers(run), _training(run, of), _pictures(run, of), _speed(run)]
    parts += [] if run.kind == "compare" else [_made(run.record)]
    opened = " open" if of == 1 else ""
    title = f"{run.task} · {run.method} · {run.name}"
    return (
        f'<section><details{opened} id="run-{number}"><summary><h2>{escape(title)}</h2></summary>'
        f"{''.join(parts)}</details></section>"
    )


def _points(run: Run) -> str:
    keys = list(dict.fromkeys(key for p in run.points for key in p.more))
    rows = [[f"{p.kept:.4g}", f"{p.score:.4f}", *(_number(p.more.get(key)) for key in keys)] for p in run.points]
    return table(["kept", run.measure, *keys], rows)


def _number(x: Any) -> str:
    return "" if x is None else f"{x:,}" if isinstance(x, int) else f"{x:.4g}"


def _layers(run: Run) -> str:
    if not run.layers:
        return ""
    words = "what lives of every weight" + (", at every density" if len(run.layers) > 1 else "")
    return "<h3>Layer by layer</h3>" + chart(charts.layers(run.layers), f"layers-{run.name}", words)


def _training(run: Run, of: int) -> str:
    """The more runs, the fewer looks at each: a report of hundreds must open at once."""
    if not run.history:
        return ""
    run = replace(run, history=run.history[:: -(-len(run.history) // max(LEAST, MOST // of))])
    loss = {"train_loss": "training", "test_loss": "held out", "loss": "training"}
    parts = [chart(charts.history(run, loss, "loss"), f"loss-{run.name}", "loss against steps")]
    if any("density" in row for row in run.history):
        spec = charts.history(run, {"density": "density"}, "density")
        parts.append(chart(spec, f"density-{run.name}", "density against steps" + _asked(run)))
    if any(isinstance(row.get("strength"), float) and row["strength"] > 0 for row in run.history):
        spec = charts.history(run, {"strength": "λ"}, "strength λ", log=True)
        parts.append(chart(spec, f"strength-{run.name}", "strength of the penalty against steps"))
    sparse = run.record.get("sparse") or {}
    words = (sparse.get("certificate") or {}).get("words")
    certificate = f"<h4>Certificate</h4><pre>{escape(words)}</pre>" if words else ""
    return f'<h3>Training</h3><div class="row">{"".join(parts)}</div>{certificate}'


def _asked(run: Run) -> str:
    asked = asked_for(run.record["options"])[1]
    return f"; asked for {asked:g}" if asked is not None else ""


def _pictures(run: Run, of: int) -> str:
    if run.pictures and of > FEW:
        return f"<p>The weights' pictures are left out where there are more than {FEW} runs.</p>"
    shown = "".join(chart(charts.picture(g), f"weight-{n}", f"where {n} is alive") for n, g in run.pictures.items())
    return f'<h3>The weights</h3><div class="row">{shown}</div>' if shown else ""


def _speed(run: Run) -> str:
    if run.kind == "path":
        points = run.record["points"]
        batches = list(points[0]["speedup"])
        inputs = INPUTS if run.record.get("environment") else 1  # `winnow.path` may have been given any example
        columns = [
            "kept",
            "MACs of the example" if inputs == 1 else "MACs per input",
            "bytes",
            *(f"ms at batch {b}" for b in batches),
            *(f"faster at {b}" for b in batches),
        ]
        rows = [
            [f"{p['density']:.4g}", f"{p['macs'] // inputs:,}", f"{p['bytes']:,}"]
            + [f"{1e3 * p['seconds'][b]:.3f}" for b in batches]
            + [f"{p['speedup'][b]:.2f}×" for b in batches]
            for p in points
        ]
        return "<h3>Before and after</h3>" + table(columns, rows)
    smaller = run.record.get("smaller")
    if not smaller:
        return ""
    proof, timed = smaller["proof"], smaller["measured"]
    counted = {"parameters": proof["parameters"], "bytes": proof["bytes"]}
    counted["MACs per input"] = [x // INPUTS for x in proof["macs"]]
    sizes = [[key, f"{a:,}", f"{b:,}", f"{a / max(b, 1):.2f}×"] for key, (a, b) in counted.items()]
    times = [
        [f"ms at batch {a['batch']}, median (95 %)", _ms(a), _ms(b), f"{a['p50'] / b['p50']:.2f}×"]
        for a, b in zip(timed["before"], timed["after"], strict=True)
    ]
    equal = f"outputs {'equal' if proof['proved'] else 'DIFFER'}: largest difference {proof['max_error']:.1e}"
    return f"<h3>Before and after</h3><p>{escape(equal)}</p>" + table(["", "before", "after", "smaller"], sizes + times)


def _ms(timing: Mapping[str, Any]) -> str:
    return f"{1e3 * timing['p50']:.3f} ({1e3 * timing['p95']:.3f})"


def _made(record: Mapping[str, Any]) -> str:
    if record["environment"] is None:
        return ""
    environment = record["environment"]
    rows = [("command", record["command"])]
    rows += [("seed", record["seed"]), ("data", _list(record["data"]))] if "data" in record else []
    rows += [("versions", _list(environment["versions"])), ("commit", environment.get("commit") or "not in a checkout")]
    rows += [
        ("hardware", f"{environment['processor']}, {environment['cores']} cores, {environment['threads']} threads")
    ]
    rows += [("warnings", "; ".join(record.get("warnings") or []) or "none")]
    rows += [("error", record["error"])] if record.get("error") else []
    return "<h3>How it was made</h3>" + table(["", ""], rows)


def _list(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the curves</a>
<header><h1>{title}</h1><p>{about}</p></header>
<main id="main">
{body}
</main>
<script>{library}</script>
<script>{script}</script>
</body>
</html>
"""
