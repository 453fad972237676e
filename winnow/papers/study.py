"""STUDY: an experiment's cells, run one by one or side by side, kept as they finish; then its record."""

from __future__ import annotations

import concurrent.futures
import datetime
import functools
import hashlib
import json
import multiprocessing
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from winnow.errors import WinnowError, WinnowWarning
from winnow.jobs import process, report

from .base import Bench, Cell, Diverged, Experiment, Missing, Outcome, Row, Verdict

PLAN, CELLS, SCRATCH, RECORD = "plan.json", "cells", "scratch", "record.json"
News = Callable[[str, int, int], None]
"""Called with one line of news, cells done, cells in all."""


@dataclass(frozen=True)
class Study:
    """One run of an experiment: its folder and what it was asked."""

    experiment: Experiment
    folder: Path
    plan: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.plan["settings"])

    def cells(self) -> list[Cell]:
        return self.experiment.cells(self.settings, self.plan["seeds"])


def open_study(
    experiment: Experiment, seeds: int | None, quick: bool, out: Path | None, root: Path = Path("records")
) -> Study:
    """A fresh study, or the unfinished one that was asked the same.

    Without `out`, the folder is `root`/<date>_<name>, with "-quick" behind a quick one.
    Raises `WinnowError` if `out` holds something else.
    """
    settings = dict(experiment.quick if quick else experiment.full)
    plan = {"name": experiment.name, "quick": quick, "seeds": seeds or experiment.seeds, "settings": settings}
    plan = json.loads(json.dumps(plan))
    label = experiment.name + ("-quick" if quick else "")
    if out is None:
        same = [folder for folder in sorted(root.glob(f"*_{label}")) if _plan(folder) == plan and not _finished(folder)]
        out = same[-1] if same else _fresh(root, label)
    elif _finished(out) or _plan(out) not in (None, plan):
        raise WinnowError(f"{out} holds another run ({_plan(out)}): choose another --out, or remove it")
    elif _plan(out) is None and out.exists() and any(out.iterdir()):
        raise WinnowError(f"{out} holds other files: choose another --out")
    (out / CELLS).mkdir(parents=True, exist_ok=True)
    report.write_json(out / PLAN, plan)
    return Study(experiment, out, plan)


def reproduce(study: Study, jobs: int = 1, command: str = "", news: News = lambda *_: None) -> dict[str, Any]:
    """All cells not yet done, then the record; returns it.  What is done stays done when this is interrupted."""
    cells = study.cells()
    waiting = [cell for cell in cells if not _kept(study.folder, cell).exists()]
    done = len(cells) - len(waiting)
    news(f"{done} of {len(cells)} cells are done already" if done else f"{len(cells)} cells", done, len(cells))
    for cell, row in _finishing(study, waiting, jobs):
        done += 1
        news(
            f"{_words(cell)}: {row.get('missing') or row.get('diverged') or format(row['seconds'], '.1f') + ' s'}",
            done,
            len(cells),
        )
    rows = [json.loads(_kept(study.folder, cell).read_text(encoding="utf-8")) for cell in cells]
    record = _record(study, rows, command)
    _publish(study, _sound(rows), record)
    for name in (CELLS, SCRATCH):
        shutil.rmtree(study.folder / name, ignore_errors=True)
    (study.folder / PLAN).unlink()
    return record


def judge_again(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """A finished study's verdicts, table, texts and figure anew from its stored numbers, which stay as they are."""
    record, rows = read(folder), json.loads((folder / "raw.json").read_text(encoding="utf-8"))
    record |= _words_of(experiment, rows, record["settings"])
    _publish(Study(experiment, folder, record), rows, record)
    return record


def read(folder: Path) -> dict[str, Any]:
    """A finished study's record.  Raises `WinnowError` where there is none."""
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise WinnowError(f"{folder} holds no finished record ({error})") from error


def judged(experiment: Experiment, rows: list[Row], settings: dict[str, Any]) -> list[Verdict]:
    """The verdicts on all claims; without rows, nothing could run."""
    if rows:
        return [*(claim.judge(rows, settings) for claim in experiment.claims), *experiment.beyond]
    return [Verdict(c.words, c.published, "its data are not here", Outcome.NOT_RUN) for c in experiment.claims]


def _finishing(study: Study, cells: list[Cell], jobs: int) -> Iterator[tuple[Cell, Row]]:
    if jobs < 2 or len(cells) < 2:
        for cell in cells:
            yield cell, work(study.experiment, cell, study.settings, study.folder)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    with concurrent.futures.ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
        waiting = {pool.submit(_elsewhere, study.experiment.name, c, study.settings, study.folder): c for c in cells}
        try:
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(getattr(pool, "_processes", {}).values()):
                process.terminate()
            raise


def _elsewhere(name: str, cell: Cell, settings: dict[str, Any], folder: Path) -> Row:
    from . import EXPERIMENTS

    return work(EXPERIMENTS[name], cell, settings, folder)


def work(experiment: Experiment, cell: Cell, settings: dict[str, Any], folder: Path) -> Row:
    """One cell, kept in its own file before it counts."""
    process.prepare()
    scratch = folder / SCRATCH / _key(cell)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WinnowWarning)  # a scan of strengths goes where users are warned not to
        try:
            result = experiment.run(cell, settings, Bench(scratch))
        except Missing as error:
            result = {"missing": str(error)}
        except Diverged as error:
            result = {"diverged": str(error)}
    books = {"seconds": time.perf_counter() - start, "commit": _commit()}
    if taken := {**cell, **result}.keys() & books:
        raise WinnowError(
            f"{experiment.name} returns {', '.join(sorted(taken))}, which every cell has already: rename it"
        )
    row = {**cell, **result, **books}
    report.write_json(_kept(folder, cell), row)
    shutil.rmtree(scratch, ignore_errors=True)
    return row


def _record(study: Study, rows: list[Row], command: str) -> dict[str, Any]:
    present = _sound(rows)
    pairs = list(zip(study.cells(), rows, strict=True))
    return {
        "format": 1,
        **study.plan,
        "paper": study.experiment.paper.slug,
        "command": command,
        "date": _date(study.folder),
        "environment": report.environment(),
        "seconds": sum(row["seconds"] for row in rows),
        **_words_of(study.experiment, present, study.settings),
        "missing": sorted({row["missing"] for row in rows if "missing" in row}),
        "diverged": [f"{_words(cell)} ({row['diverged']})" for cell, row in pairs if "diverged" in row],
        "commits": sorted({str(row["commit"]) for row in rows}),
    }


def _words_of(experiment: Experiment, rows: list[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """What a record says of its rows."""
    table = experiment.table(rows, settings) if rows else None
    return {
        "title": experiment.title,
        "differs": experiment.differs,
        "failed": experiment.failed,
        "made_by": dict(Counter(row["commit"] for row in rows if row.get("commit"))),
        "verdicts": [{**vars(v), "outcome": v.outcome.value} for v in judged(experiment, rows, settings)],
        "table": None if table is None else {"columns": list(table.columns), "rows": [list(row) for row in table.rows]},
    }


def _sound(rows: list[Row]) -> list[Row]:
    """The rows with numbers in them."""
    return [row for row in rows if "missing" not in row and "diverged" not in row]


@functools.cache
def _commit() -> str | None:
    return report.commit()


def _publish(study: Study, rows: list[Row], record: dict[str, Any]) -> None:
    """raw.json, the figure, the paragraph; record.json last, as it says that the rest is there."""
    from . import pages, plots

    lines = ",\n".join(json.dumps(report.plain(row), allow_nan=False) for row in rows)
    (study.folder / "raw.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    if rows:
        figure = study.experiment.draw(rows, study.settings)
        plots.save(figure, study.folder)
    (study.folder / "README.md").write_text(pages.paragraph(record), encoding="utf-8")
    report.write_json(study.folder / RECORD, record)


def _plan(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _finished(folder: Path) -> bool:
    return (folder / RECORD).exists()


def _fresh(root: Path, label: str) -> Path:
    stamp = datetime.date.today().isoformat()
    names = [f"{stamp}_{label}", *(f"{stamp}.{n}_{label}" for n in range(2, 1000))]
    return next(root / name for name in names if not (root / name).exists())


def _date(folder: Path) -> str:
    return datetime.date.fromtimestamp((folder / PLAN).stat().st_mtime).isoformat()


def _key(cell: Cell) -> str:
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]


def _kept(folder: Path, cell: Cell) -> Path:
    return folder / CELLS / f"{_key(cell)}.json"


def _words(cell: Cell) -> str:
    return " ".join(f"{key}={value}" for key, value in cell.items())
