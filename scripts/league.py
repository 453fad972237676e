"""Builds docs/league.md, league-units.md and rates.md from the records: `python scripts/league.py`.

With --check it only says whether the pages are what the records say.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from winnow.compare import league
from winnow.compare.command import ours
from winnow.compare.study import FORMAT

ROOT = Path(__file__).parents[1]
DOCS, CHANCE = ROOT / "docs", 20.0
RANGES = (("a half to a fifth", 0.15, 1.0), ("a tenth to a twentieth", 0.03, 0.15), ("a fiftieth and less", 0.0, 0.03))
WHEN = (
    "Which method when: over all tasks, how often it is first, how often first or within one standard deviation of first;\n"
    "its mean rank."
)
AUTO = """Routes under the two optimizers that most people use, at three learning rates: factors of the one found on the dense
control. Mean test accuracy in % over the tasks named, 3 splits each; a dash: some diverged.

What to take from this and the league tables. Single weights under SGD with momentum: [latent weights](latent.md) have the
[best mean rank](league.md), and lead here with a fiftieth kept; on networks of two hidden layers, as all of these are: deep
narrow ones may break ([failure modes](latent.md)). Under AdamW the larger rate is better for most; with it latent weights lead
with a fiftieth kept and a gate of depth 2 does well throughout, without it latent weights fail. On [whole
units](league-units.md) a gate of depth 2 is level with decay on LogSum by mean rank. `--how auto` and `recipes.auto` take the
gate of depth 2 everywhere, as nothing was seen to break it; `--how auto` trains single weights under AdamW at three times
`--lr`, in your own code the rate is yours (`recipes.rate`)."""
HEAD = """Made by `scripts/league.py` from the records; the rules are those of [comparisons](compare.md). Scores are test
accuracy in %, mean ± standard deviation over seeds; **bold** is Winnow's; ≈ is within one standard deviation of the
first."""
PAGES = {
    "elements": ("league.md", "# League table: single weights", "Shares are of the weights of two or more dimensions."),
    "channels": ("league-units.md", "# League table: whole units", "Shares are of the parameters of the model that is left."),
}
MORE = "[Whole units](league-units.md) have a table of their own, and so have [learning rates](rates.md)."
Found = Sequence[tuple[Path, dict[str, Any]]]


def records() -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """What was compared: its records, by what vanishes."""
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted((ROOT / "records").glob("compare-*/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["plan"]["format"] != FORMAT:
            sys.exit(f"{path} was made under rules {record['plan']['format']}, not {FORMAT}: make it again")
        found.setdefault(record["plan"]["where"], []).append((path.parent, record))
    return found


def pages() -> dict[Path, str]:
    """What every page should be."""
    made = {}
    for where, these in records().items():
        _one_plan(these)
        name, title, shares = PAGES[where]
        made[DOCS / name] = [title, HEAD, shares, *([MORE] if where == "elements" else []), *_section(these)]
    made[DOCS / "rates.md"] = ["# Routes and learning rates", AUTO, *_rates()]
    return {page: "\n\n".join(parts) + "\n" for page, parts in made.items()}


def _one_plan(these: Found) -> None:
    """Records of one task may differ in their methods alone: a method may have come later."""
    plans: dict[str, dict[str, Any]] = {}
    seen: set[tuple[str, str]] = set()
    for folder, record in these:
        plan = {key: value for key, value in record["plan"].items() if key not in ("methods", "tasks")}
        for task in record["plan"]["tasks"]:
            if plans.setdefault(task, plan) != plan:
                sys.exit(f"{folder} has another plan than the other record of {task}: make it again")
            twice = {(task, name) for name in record["plan"]["methods"]} & seen
            if twice:
                sys.exit(f"{folder} has what another record has already: {sorted(twice)}")
            seen |= {(task, name) for name in record["plan"]["methods"]}


def _section(these: Found) -> Iterator[str]:
    rows = [row for _, record in these for row in record["rows"]]
    found = league.entries(rows)
    mine = sorted({name for _, record in these for name in ours(record)} & {e.method for e in found})
    yield _verdict(found, mine)
    others = {e.method for e in found} - {"dense", *mine}
    yield (
        f"The best of {len(mine)} routes runs against {len(others)} other methods, and chance favours the larger side; what a\n"
        "single route does is in the second table."
    )
    yield _table(found, mine, these)
    yield WHEN
    yield _when(found, mine)
    yield _advice(found, mine)
    yield "Made with:"
    yield "\n".join(_made(folder, record) for folder, record in these)


def _verdict(found: Sequence[league.Entry], mine: Sequence[str]) -> str:
    whole, tail = league.standing(found, mine), league.standing(found, mine, most=0.05)
    share = whole.level / whole.cells
    level, ahead = ("met" if met else "missed" for met in (share >= 0.9, tail.first == tail.cells))
    return (
        f"Winnow's best route is first in {whole.first} of {whole.cells} cells, and first or within one standard deviation of\n"
        f"first in {whole.level}, {100 * share:.0f} % (our bar of 90 %: {level}); at 5 % kept and less first in {tail.first}\n"
        f"of {tail.cells} (our bar, all of them: {ahead})."
    )


def _table(found: Sequence[league.Entry], mine: Sequence[str], these: Found) -> str:
    lines = []
    cells = dict.fromkeys((task, keep) for _, r in these for task in r["plan"]["tasks"] for keep in r["plan"]["keeps"])
    for task, keep in cells:
        dense = next((e for e in found if e.task == task and e.method == "dense"), None)
        order = league.ranked(found, task, keep)
        best = next((e for e in order if e.method in mine), None)
        first = "" if dense is None else str(dense).partition(" ")[0]
        own = "" if best is None or best in order[:3] else _entry(best, order[0], mine)
        shown = " | ".join(_entry(e, order[0], mine) for e in order[:3])
        lines.append([f"| {Path(task).stem} | {keep:g} | {first} | {shown} |", f" {own} |"])
    last = any(own != "  |" for _, own in lines)  # only where it is not among the first three
    head = ["| task | kept | dense | 1. | 2. | 3. |" + " Winnow's best |" * last, "|---|---|---|---|---|---|" + "---|" * last]
    return "\n".join([*head, *(row + own * last for row, own in lines)])


def _entry(e: league.Entry, first: league.Entry, mine: Sequence[str]) -> str:
    name = f"**{e.method}**" if e.method in mine else e.method
    return f"{'≈ ' * (e is not first and league.level(e, first))}{name} {e}"


def _when(found: Sequence[league.Entry], mine: Sequence[str]) -> str:
    methods = list(dict.fromkeys(e.method for e in found if e.method != "dense"))
    cells = sorted({(e.task, e.keep) for e in found if e.method != "dense"})
    lines = [f"| method | {' | '.join(words for words, *_ in RANGES)} |", "|---" * (len(RANGES) + 1) + "|"]
    shown = {}
    for method in methods:
        parts, ranks = [], []
        for _, low, high in RANGES:
            orders = [league.ranked(found, task, keep) for task, keep in cells if low < keep <= high]
            places = [next((i for i, e in enumerate(o) if e.method == method), len(o)) for o in orders]
            near = sum(any(e.method == method and league.level(e, o[0]) for e in o) for o in orders)
            ranks += places
            parts.append(f"{places.count(0)}, {near} of {len(orders)}; {1 + mean(places):.1f}" if orders else "")
        name = f"**{method}**" if method in mine else method
        shown[f"| {name} | {' | '.join(parts)} |"] = mean(ranks)
    return "\n".join([*lines, *sorted(shown, key=lambda line: shown[line])])


def _advice(found: Sequence[league.Entry], mine: Sequence[str]) -> str:
    """Which of Winnow's routes to take when, by the mean rank."""
    lines = []
    for words, low, high in RANGES:
        cells = sorted({(e.task, e.keep) for e in found if e.method != "dense" and low < e.keep <= high})
        orders = [[e.method for e in league.ranked(found, task, keep)] for task, keep in cells]
        if not orders:
            continue
        names = {name for order in orders for name in order}
        ranks = {name: mean([1 + order.index(name) if name in order else len(order) for order in orders]) for name in names}
        order = sorted(ranks, key=lambda name: (ranks[name], name))
        first = [f"{n} ({ranks[n]:.1f})" for n in order if n in mine][:2]
        rivals = [f"{n} ({ranks[n]:.1f})" for n in order if n not in mine]
        ahead = order.index(next(n for n in order if n in mine))
        said = f"ahead of it: {', '.join(rivals[:ahead])}" if ahead else f"the best of the others: {rivals[0]}"
        lines.append(f"- **{words}** kept: {first[0]}, then {first[1]}; {said}.")
    return "\n".join(["What to take when, by mean rank over these tasks, of all methods:", "", *lines])


def _rates() -> Iterator[str]:
    """Routes by optimizer and learning rate, tasks that were trained alike together."""
    together: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted((ROOT / "records").glob("tuning-rate*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        together.setdefault((record["asked"]["tasks"], record["asked"]["scale"]), []).append((path, record))
    for (tasks, _), these in together.items():
        rows = [row for _, record in these for row in record["rows"]]
        rates = sorted({row["rate"] for row in rows})
        lines = [f"| optimizer | kept | route | {' | '.join(f'rate × {rate:g}' for rate in rates)} |"]
        lines.append("|---" * (3 + len(rates)) + "|")
        order = {"sgd": 0, "adamw": 1}
        keys = sorted(dict.fromkeys(_point(row)[:3] for row in rows), key=lambda key: (order[key[0]], -key[1]))
        for key in keys:
            means = [_mean(row["accuracy"] for row in rows if _point(row) == (*key, rate)) for rate in rates]
            lines.append(f"| {key[0]} | {key[1]:g} | {key[2]} | {' | '.join(means)} |")
        yield f"## {tasks.replace(',', ' and ')}"
        yield "\n".join(lines)
        yield "\n".join(_tuned(path, record["asked"]) for path, record in these)


def _tuned(path: Path, asked: dict[str, str]) -> str:
    options = " ".join(f"--{key} {shlex.quote(value)}" for key, value in asked.items() if key != "tasks")
    return f"- `python bench/tuning.py {asked['tasks']} {options}` ([record](../records/{path.name}))"


def _point(row: dict[str, Any]) -> tuple[str, float, str, float]:
    return row["optimizer"], row["keep"], row["route"], row["rate"]


def _mean(found: Iterable[Sequence[float]]) -> str:
    """Over tasks and splits; a dash where a training diverged, or got no better than chance."""
    all_of_it = [value for part in found for value in part]
    return "–" if min(all_of_it) < CHANCE else f"{mean(all_of_it):.2f}"


def _made(folder: Path, record: dict[str, Any]) -> str:
    seconds = sum(row.get("seconds", 0.0) for row in record["rows"])
    failed = [row for row in record["rows"] if row["error"] is not None]
    ran = record["environment"]
    return (
        f"- `{record['command']}` ([record](../{folder.relative_to(ROOT)}/run.json)): {len(record['rows'])} trainings, "
        f"{len(failed)} failed{_where(failed)}, {seconds / 3600:.1f} hours of training added up, {ran['processor']}, "
        f"{ran['cores']} cores, torch {ran['versions']['torch']}."
    )


def _where(failed: Sequence[dict[str, Any]]) -> str:
    """What failed, by method and learning rate."""
    found = Counter((row["method"], row["phase"], row["rate"]) for row in failed)
    cases = [
        f"{method} {count}{'' if rate is None else f' at rate × {rate:g}'}, {phase}"
        for (method, phase, rate), count in found.items()
    ]
    return f" ({'; '.join(cases)})" if cases else ""


def main() -> int:
    """Write the pages, or say which are stale."""
    stale = [page for page, text in pages().items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    if "--check" not in sys.argv:
        for page, text in pages().items():
            page.write_text(text, encoding="utf-8")
        return 0
    for page in stale:
        print(f"docs/{page.name} is not what the records say: run python scripts/league.py")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
