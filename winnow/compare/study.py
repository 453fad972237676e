"""STUDY: the grid of a comparison as independent jobs in an Optuna study; any number of workers, on any machines, take them.

Every (task, method) is tuned first: its trials at the middle density and at all below it, judged on a fifth of the training
part that is not trained on, another one for each tuning seed.  Then every (density, seed) is trained on the whole with the best
trial there (a larger density: of the middle one), and judged on the test part.  Nothing is locked: of jobs that stand in the
queue twice, the first counts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError
from winnow.jobs.report import environment
from winnow.jobs.tasks import digest

from . import ROSTERS
from .plan import TUNINGS, Plan
from .storage import JOURNAL, Beat, dead, shown, storage_of

FORMAT = 4  # 1 had no `where`, 2 one tuned number instead of a learning rate and a number, 3 tuned at the middle density alone
NAME = "winnow compare"
Row = dict[str, Any]
Alive = Callable[[], None]
News = Callable[[str, int, int], None]


def begin(where: str, plan: Plan) -> Any:
    """The study with all its jobs, made, or found as it was left; jobs of workers that died are queued again.

    Raises `WinnowError` where another comparison lies there.
    """
    import optuna

    plan.check()
    _free(where)
    plan = replace(plan, tasks=[str(Path(word).resolve()) if word.endswith(".py") else word for word in plan.tasks])
    storage, asked = storage_of(where), _asked(plan)
    study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)
    stored = plan_of(study) if "plan" in study.user_attrs else None
    _readable(where, stored)
    if stored is not None and stored["format"] < FORMAT:
        raise WinnowError(
            f"{shown(where)} holds a comparison of format {stored['format']}, which can be read (winnow report) but not gone "
            "on with: choose another --out"
        )
    if stored is None:
        study.set_user_attr("environment", environment())
    elif differ := _differ(stored, asked):
        raise WinnowError(f"{shown(where)} holds another comparison ({differ}): choose another --out, or remove it")
    study.set_user_attr("plan", asked)  # of an earlier one's methods, and further ones
    _revive(study)
    known = {_key(trial.user_attrs["cell"]) for trial in _trials(study, "COMPLETE", "WAITING", "RUNNING")}
    for cell in plan.cells():
        if _key(cell) not in known:
            study.enqueue_trial({}, user_attrs={"cell": cell})
    return study


def _asked(plan: Plan) -> Row:
    """What is stored of a plan; of a task that is a file, what is in it."""
    files = {word: digest(Path(word)) for word in plan.tasks if word.endswith(".py")}
    plain = {key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
             for key, value in asdict(plan).items()}  # fmt: skip
    return {"format": FORMAT, **plain, **({"files": files} if files else {})}


def _differ(stored: Row, asked: Row) -> str:
    """In which of its words a plan is another one, there and here; further methods make none."""
    said = []
    there: Any
    for key, here in asked.items():
        there = stored.get(key, here)  # a plan of before tasks' files were looked at
        if key == "files":
            said += [f"{Path(file).name} has changed since" for file in here if there.get(file) != here[file]]
        elif there != here and not (key == "methods" and set(there) <= set(here)):
            said.append(f"{key}: {_plain(there)} there, {_plain(here)} here")
    return "; ".join(said)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _free(where: str) -> None:
    """Raises `WinnowError` for a folder of another command, whose run.json would be lost."""
    folder = Path(where)
    held = [name for name in ("run.json", "path.json") if (folder / name).exists()]
    if "://" not in where and held and not (folder / JOURNAL).exists():
        raise WinnowError(f"{where} holds a run already ({held[0]}) and no comparison: choose another --out")


def _revive(study: Any) -> None:
    """Queue the jobs of dead workers again."""
    import optuna

    for trial in _trials(study, "RUNNING"):
        if dead(trial):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            study.enqueue_trial({}, user_attrs={"cell": trial.user_attrs["cell"]})


def open_study(where: str) -> Any:
    """A study that `begin` has made; raises `WinnowError` where there is none."""
    import optuna

    if "://" not in where and not (Path(where) / JOURNAL).exists():
        raise WinnowError(f"{shown(where)} holds no comparison: begin one with `winnow compare`")
    try:
        study = optuna.load_study(storage=storage_of(where), study_name=NAME)
        _readable(where, study.user_attrs["plan"])
    except KeyError as error:
        raise WinnowError(f"{shown(where)} holds no comparison: begin one with `winnow compare`") from error
    return study


def plan_of(study: Any) -> Row:
    """The stored plan, with what was not asked yet when it was made."""
    return {"where": "elements", "weight_decay": 0.0, **study.user_attrs["plan"]}


def _readable(where: str, plan: Row | None) -> None:
    if plan is not None and plan["format"] > FORMAT:
        raise WinnowError(
            f"{shown(where)} has format {plan['format']}, newer than this Winnow reads ({FORMAT}); upgrade it"
        )


def work(where: str, run: Callable[[Row, Row, Alive], Row], news: News = lambda *_: None) -> None:
    """Take jobs until none is left, each `run(cell, plan, alive)`; those that others have under way are waited for.

    A job that fails is told as failed, with its error, and the rest goes on.
    """
    import optuna

    study = open_study(where)
    plan, aside = plan_of(study), optuna.trial.TrialState.PRUNED
    while _more(study, news):
        trial = study.ask()
        cell = trial.user_attrs.get("cell")
        if cell is None or _twice(study, trial.number, cell):  # another worker was quicker, or queued it as well
            study.tell(trial, state=aside)
            continue
        trial.set_user_attr("worker", _name())
        beat = Beat(trial)
        if cell["phase"] == "final" and not _wait(study, cell):  # its tuning was interrupted and queued again: later
            study.tell(trial, state=aside, skip_if_finished=True)
            study.enqueue_trial({}, user_attrs={"cell": cell})
            continue
        said = _do(study, trial, cell, plan, run, beat)
        done, all_of_them = (_count(study, *states) for states in (("COMPLETE", "FAIL"), ()))
        name = Path(cell["task"]).stem if cell["task"].endswith(".py") else cell["task"]
        news(f"{name} · {cell['method']} · {_what(cell)}: {said}", done, all_of_them)


def _more(study: Any, news: News) -> bool:
    """Whether a job waits to be taken, now or once other workers have finished or died with theirs."""
    told = False
    while not _trials(study, "WAITING"):
        _revive(study)
        others = [t for t in _trials(study, "RUNNING") if t.user_attrs.get("worker") != _name()]
        if not others:
            break
        if not told:
            news(f"waiting for {len(others)} jobs of other workers", _count(study, "COMPLETE", "FAIL"), _count(study))
            told = True
        time.sleep(1.0)
    return bool(_trials(study, "WAITING"))


def _name() -> str:
    """This process, among all workers."""
    return f"{socket.gethostname()} {os.getpid()}"


def _do(study: Any, trial: Any, cell: Row, plan: Row, run: Callable[[Row, Row, Alive], Row], beat: Alive) -> str:
    """One job, told to the study; what came of it in words. One given up as dead in the meantime counts for nothing."""
    import optuna

    value: Any
    try:
        chosen = _tuned(study, cell) if cell["phase"] == "final" else {}
        found = run({**cell, **chosen}, plan, beat)
    except Exception as error:  # a task of the user's own may raise anything; Ctrl-C is none of these
        words = str(error) if isinstance(error, WinnowError) else f"{type(error).__name__}: {error}"
        key, value, score, said = "error", words, None, f"failed: {words}"
    else:
        score = found["score"]
        key, value, said = "result", found, f"loss {-score:.4f}" if score < 0 else f"accuracy {score:.2f} %"
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr(key, value)
        study.tell(trial, score, state=optuna.trial.TrialState.FAIL if score is None else None)
    return said


def _twice(study: Any, number: int, cell: Row) -> bool:
    """Whether the same job is done, or stands before this one."""
    others = [t for t in _trials(study, "COMPLETE", "RUNNING", "WAITING") if _key(t.user_attrs["cell"]) == _key(cell)]
    return any(t.state.name == "COMPLETE" or t.number < number for t in others)


def _count(study: Any, *states: str) -> int:
    return len({_key(trial.user_attrs["cell"]) for trial in _trials(study, *states)})


def _what(cell: Row) -> str:
    """A job in words."""
    keep = "" if cell["method"] == "dense" else f"{cell['keep']:g} · "
    if cell["phase"] == "final":
        return f"{keep}seed {cell['seed']}"
    own = "" if cell["number"] is None else f", own number {cell['number']:g}"
    return f"{keep}tuning at rate × {cell['rate']:g}{own}"


def rows(study: Any) -> list[Row]:
    """Every job that was judged or failed: its cell, its result or its error."""
    out: dict[tuple[Any, ...], Row] = {}
    for trial in _trials(study, "COMPLETE", "FAIL"):
        if "result" in trial.user_attrs or "error" in trial.user_attrs:
            cell, error = trial.user_attrs["cell"], trial.user_attrs.get("error")
            out[_key(cell)] = {**cell, **trial.user_attrs.get("result", {}), "error": error}  # the last try counts
    return list(out.values())


def _wait(study: Any, cell: Row) -> bool:
    """Wait for tunings of the cell's method that living workers have under way; whether all are done then."""
    while _tuning(study, cell, "RUNNING"):
        _revive(study)
        if _tuning(study, cell, "WAITING"):
            return False
        time.sleep(1.0)
    return not _tuning(study, cell, "WAITING")


def _tuned(study: Any, cell: Row) -> Row:
    """The trial of the best mean over the tuning seeds; of equal ones the first. One that failed for a seed is none."""
    scores: dict[tuple[float, float | None], list[float]] = {}
    for t in _tuning(study, cell, "COMPLETE"):
        at = t.user_attrs["cell"]
        scores.setdefault((at["rate"], at["number"]), []).append(float(t.value))
    trials = [(t.rate, t.number) for t in ROSTERS[cell["where"]][cell["method"]].trials]
    whole = [trial for trial in trials if len(scores.get(trial, ())) >= TUNINGS]
    if not whole:
        raise WinnowError("no trial of its tuning could be trained")
    rate, number = max(whole, key=lambda trial: sum(scores[trial]) / len(scores[trial]))
    return {"rate": rate, "number": number}


def _tuning(study: Any, cell: Row, state: str) -> list[Any]:
    """The tunings for a final cell that are in a state."""
    wanted = {"phase": "tune", "task": cell["task"], "method": cell["method"], "keep": cell["tuned"]}
    return [t for t in _trials(study, state) if all(t.user_attrs["cell"][k] == v for k, v in wanted.items())]


def _trials(study: Any, *states: str) -> list[Any]:
    return [
        t for t in study.get_trials(deepcopy=False) if "cell" in t.user_attrs and (not states or t.state.name in states)
    ]


def _key(cell: Row) -> tuple[Any, ...]:
    cell = {"where": "elements", **cell}  # format 1 had none
    return tuple(
        cell.get(key) for key in ("phase", "task", "where", "method", "keep", "seed", "rate", "number", "value")
    )
