"""COMMAND: `winnow compare`, `winnow worker`: processes that take jobs, and the league table."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError
from winnow.jobs.report import write_json

from . import ROSTERS, league
from .cell import loaded, task_of
from .ours import Ours
from .plan import Plan
from .study import Row, begin, open_study, plan_of, rows, work

News = Callable[[str, int, int], None]


def compare(plan: Plan, where: str, jobs: int, news: News) -> Row:
    """Run what is left of a comparison with so many processes; its record.

    Raises `WinnowError` for a bad plan; `KeyboardInterrupt` leaves finished jobs finished, and the same call goes on.
    """
    if jobs < 1:
        raise WinnowError(f"--jobs must be at least 1, got {jobs}")
    begin(where, plan)
    try:
        if jobs == 1:
            worker(where, news)
        else:
            _several(where, jobs, news)
    finally:  # what is done so far can be looked at
        record = record_of(where)
        if "://" not in where:
            write_json(Path(where) / "run.json", record)
    return record


def worker(where: str, news: News = lambda *_: None) -> None:
    """Take jobs of a study until none is left.

    Raises `WinnowError` before it takes any where data or a library that they need are missing here.
    """
    from .cell import run

    plan = plan_of(open_study(where))
    for task in plan["tasks"]:
        if not hasattr(loaded(task), "fold"):
            raise WinnowError(
                f"{task}: its data cannot be tuned on: give {type(loaded(task)).__name__} a method fold(seed) that returns the "
                "same data with a part of its train part in the test part's place, or use Examples"
            )
    for name in plan["methods"]:
        ROSTERS[plan["where"]][name].check()
    work(where, run, news)


def record_of(where: str) -> Row:
    """Everything a study holds, as run.json has it."""
    study = open_study(where)
    plan, found = plan_of(study), rows(study)
    names = {word: _name(word) for word in plan["tasks"]}
    listed = {name: ROSTERS[plan["where"]][name].about for name in plan["methods"]}
    words = f"winnow compare {','.join(plan['tasks'])} --methods '{'; '.join(plan['methods'])}'"
    keeps = ",".join(f"{keep:g}" for keep in plan["keeps"])
    words += f" --keep {keeps} --seeds {plan['seeds']} --scale {plan['scale']:g} --where {plan['where']}"
    words += f" --weight-decay {plan['weight_decay']:g}" if plan["weight_decay"] else ""
    return {
        "format": 1,
        "kind": "compare",
        "command": words,
        "plan": {**{key: value for key, value in plan.items() if key != "files"}, "tasks": list(names.values())},
        "methods": listed,
        "environment": study.user_attrs["environment"],
        "rows": [{**row, "task": names[row["task"]]} for row in found],
    }


def _name(word: str) -> str:
    """What a task is called that may be given by its file, wherever that is now."""
    try:
        return task_of(word).name
    except WinnowError:
        return Path(word).stem


def _several(where: str, jobs: int, news: News) -> None:
    """Processes of their own, the threads shared among them; Ctrl-C reaches all."""
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    told: Any = spawn.Queue()
    crew = [spawn.Process(target=_crew, args=(where, threads, told), daemon=True) for _ in range(jobs)]
    try:
        for process in crew:
            process.start()
        while True:
            alive = [process for process in crew if process.is_alive()]  # which also buries the dead
            try:
                news(*told.get(timeout=0.5))
            except queue.Empty:
                if not alive:
                    break
        died = [str(process.exitcode) for process in crew if process.exitcode]
        if died:
            raise WinnowError(
                f"{len(died)} of {jobs} workers died (exit codes {', '.join(died)}), what they said stands above; the same "
                "command goes on with what is left"
            )
    finally:
        for process in crew:
            process.terminate()
            process.join()
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def _crew(where: str, threads: int, told: Any) -> None:
    import torch

    threading.Thread(target=_orphaned, daemon=True).start()
    torch.set_num_threads(threads)
    worker(where, lambda *line: told.put(line))


def _orphaned() -> None:
    """Ends this process with the one that began it, which may be killed without a word; its job is taken up again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def table(record: Row, most: int = 3) -> Any:
    """The best of every cell, as a `rich.table.Table`, from the record alone."""
    from rich.table import Table

    found = league.entries(record["rows"])
    shown = Table(title="the best of every density: mean ± spread over seeds (density obtained)")
    for column in ("task", "keep", "dense", *(f"{place + 1}." for place in range(most))):
        shown.add_column(column)
    for task in record["plan"]["tasks"]:
        dense = next((str(e) for e in found if e.task == task and e.method == "dense"), "")
        for keep in record["plan"]["keeps"]:
            order = league.ranked(found, task, keep)[:most]
            best = (f"{e.method}\n{e} ({e.density:.4g})" for e in order)
            shown.add_row(task, f"{keep:g}", dense, *best)
    names = ours(record)
    whole, tail = league.standing(found, names), league.standing(found, names, most=0.05)
    shown.caption = f"Winnow's best: first in {whole.first} of {whole.cells}, "
    shown.caption += f"within one standard deviation of first in {whole.level}"
    shown.caption += f"; at 5 % and less first in {tail.first} of {tail.cells}" if tail.cells else ""
    failed = [row for row in record["rows"] if row["error"]]
    if failed:
        shown.caption += "\nfailed: " + "; ".join(
            f"{r['task']} {r['method']} {r['keep']:g}: {r['error']}" for r in failed[:5]
        )
    return shown


def ours(record: Row) -> list[str]:
    """The names of Winnow's methods in a record."""
    return [m.name for m in ROSTERS[record["plan"].get("where", "elements")].values() if isinstance(m, Ours)]


def listed(words: str, kind: Callable[[str], Any] = str) -> Sequence[Any]:
    """What stands between commas."""
    try:
        return [kind(word.strip()) for word in words.split(",") if word.strip()]
    except ValueError as error:
        raise WinnowError(f"numbers with commas between them, got {words!r}") from error
