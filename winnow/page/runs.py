"""RUNS: what a run folder says, in one form for all kinds of run, whatever its age."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from winnow.compare.command import record_of
from winnow.compare.storage import JOURNAL
from winnow.curve import RECORD
from winnow.errors import WinnowError

FORMAT = 1
GRID = 48  # cells of a weight's picture along each side, at most
NEAR = 0.02  # relative: a share this near to the one asked for is drawn there


class Missing(WinnowError):
    """A folder without a record."""


@dataclass(frozen=True)
class Point:
    """A finished model: how much it kept, and what it is worth."""

    kept: float
    score: float
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run folder. `score` is an accuracy in %, or a loss where `by_loss`."""

    name: str
    kind: str
    task: str
    method: str
    by_loss: bool
    points: Sequence[Point]
    record: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    layers: Mapping[str, Sequence[tuple[str, float, float]]]
    """Per point's name, every penalised weight: its name, groups alive, groups (or its density, and 1)."""
    pictures: Mapping[str, Sequence[Sequence[float]]]
    """Per weight, the share of nonzero entries in every cell of a grid."""
    unit: str = ""
    """Of the score, where it is neither."""

    @property
    def measure(self) -> str:
        return self.unit or ("loss" if self.by_loss else "accuracy %")


def read_all(folders: Sequence[Path | str], say: Callable[[str], None]) -> list[Run]:
    """All runs of all folders, lines of one method told apart where their settings differ.

    A folder without a finished training, as one that broke at once leaves it, is named to `say` and left out; where none
    has one, that is raised.
    """
    found: list[Run] = []
    lacking: list[Missing] = []
    for folder in folders:
        try:
            found += read(folder)
        except Missing as missing:
            say(f"left out: {missing}")
            lacking.append(missing)
    if not found:
        raise lacking[-1]
    return told_apart(found)


def only(runs: Sequence[Run], methods: Sequence[str]) -> list[Run]:
    """The runs of these methods. Raises `WinnowError` for one that none has."""
    wanted, known = [name.strip() for name in methods], list(dict.fromkeys(run.method for run in runs))
    for name in wanted:
        if name not in known:
            raise WinnowError(f"no run has the method {name!r}: choose from {'; '.join(known)} (separated by ;)")
    return [run for run in runs if run.method in wanted]


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one task and method whose settings differ get those into their names; seeds and targets may differ."""
    out = []
    for run in runs:
        same = [other for other in runs if (other.task, other.method) == (run.task, run.method)]
        mine, theirs = _settings(run), [_settings(other) for other in same]
        differ = [key for key in mine if any(other.get(key) != mine[key] for other in theirs)]
        words = ", ".join(f"{key} {mine[key]}" for key in differ if mine[key] is not None)
        out.append(replace(run, method=f"{run.method}, {words}") if words else run)
    return out


def _settings(run: Run) -> dict[str, Any]:
    """What must be equal for two runs to be points of one line; what older records do not say is as it was then."""
    old = {"weight_decay": 0.0, "width": None}
    if run.kind == "compare":
        plan = {**old, **run.record["plan"]}
        return {key: plan[key] for key in ("scale", "weight_decay")}
    free = {"seed", "dense", "threads", *SHARES, "strength", "data", "task", "how", "where"}
    options = run.record.get("options", {})
    shared = {"share of": SHARES[asked_for(options)[0]], "cost": run.record.get("cost")}
    return {**old, **{key: value for key, value in options.items() if key not in free}, **shared}


SHARES = {"keep": "weights", "keep_macs": "MACs", "keep_params": "parameters"}
"""What a target may be a share of."""


def asked_for(options: Mapping[str, Any]) -> tuple[str, float | None]:
    """The option that says how much to keep, and its value."""
    return next(((word, options[word]) for word in SHARES if options.get(word) is not None), ("keep", None))


def read(folder: Path | str) -> list[Run]:
    """A folder that `winnow train`, `winnow path` or `winnow compare` wrote; the last holds a run per task and method.

    A comparison that is under way is read from its study, in the folder or at the URL of an Optuna storage.
    Raises `WinnowError`: it is none, is damaged, or comes from a newer Winnow.
    """
    if "://" in str(folder):
        return _comparison(Path(Path(str(folder)).name), record_of(str(folder)))  # the address may hold a password
    folder = Path(folder)
    path = folder / "run.json"
    if _under_way(folder / JOURNAL, path):
        return _comparison(folder, record_of(str(folder)))
    if not path.exists() and (folder / RECORD).exists():
        path = folder / RECORD
    try:
        record = {"environment": None, **json.loads(path.read_text(encoding="utf-8"))}
        if record["format"] > FORMAT:
            raise WinnowError(
                f"{path} has format {record['format']}, newer than this Winnow reads ({FORMAT}); upgrade it"
            )
        if path.name == RECORD:
            return [_climbed(folder, record)]
        if record.get("kind") == "compare":
            return _comparison(folder, record)
        return [(_path if record.get("kind") == "path" else _train)(folder, record)]
    except (FileNotFoundError, NotADirectoryError) as error:
        why = "a file" if folder.is_file() else "it has no run.json"
        raise Missing(
            f"{folder} is no run folder: {why}; give what `winnow train`, `path` or `compare` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, WinnowError):
            raise
        raise WinnowError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _under_way(journal: Path, record: Path) -> bool:
    """Whether a comparison's study knows more than its record, as while it runs, or after its last worker."""
    if not journal.exists():
        return False
    return not record.exists() or journal.stat().st_mtime > record.stat().st_mtime


def _train(folder: Path, record: dict[str, Any]) -> Run:
    by_loss = record.get("by_loss", record["data"]["name"] == "shakespeare")
    points, layers, options = [], {}, record["options"]
    if record["dense"]:
        points.append(Point(1.0, _score(record["dense"], by_loss), {"nonzero": record["dense"]["nonzero"]}))
    sparse, status = record["sparse"], record.get("status", "done")
    if sparse:
        density, asked = sparse["density"], asked_for(options)[1]
        near = asked is not None and abs(density - asked) <= NEAR * asked  # seeds meet at what was asked for
        more = {"density": density, "nonzero": sparse["nonzero"]}
        points.append(Point(asked if near and asked else density, _score(sparse, by_loss), more))
        layers[f"{density:.4g}"] = [(e["name"], e["alive"], e["groups"]) for e in sparse["layers"]]
    points = [point for point in points if math.isfinite(point.score)]
    if not points:
        raise Missing(f"{folder} holds no finished training ({record.get('error') or status})")
    names = [entry[0] for entries in layers.values() for entry in entries]
    return Run(
        folder.name,
        "train",
        options["data"],
        f"{options['how']}, {options['where']}" + f" ({status})" * (status != "done"),
        by_loss,
        points,
        record,
        _history(folder),
        layers,
        pictures(folder / "model.safetensors", names),
    )


def _score(side: Mapping[str, Any], by_loss: bool) -> float:
    return float(side["loss"]) if by_loss else 100 * float(side["accuracy"])


def _path(folder: Path, record: dict[str, Any]) -> Run:
    options, sign = record["options"], -1 if record["by_loss"] else 1
    keys = ("nonzero", "parameters", "macs", "bytes")
    points = [Point(p["density"], sign * p["score"], {key: p[key] for key in keys}) for p in record["points"]]
    layers = {f"{p['asked']:g}": [tuple(entry) for entry in p.get("layers", [])] for p in record["points"]}
    last = folder / f"rung-{len(points) - 1}" / "state" / "model.safetensors"
    names = [entry[0] for entries in layers.values() for entry in entries]
    method = f"path: {options['how']}, {options['where']}"
    shown = {name: entries for name, entries in layers.items() if entries}
    args = (record, _history(folder), shown, pictures(last, names))
    return Run(folder.name, "path", options["data"], method, record["by_loss"], points, *args)


def _climbed(folder: Path, record: dict[str, Any]) -> Run:
    """A path of the user's own loop, which has no more than its path.json; scores are the user's."""
    if record.get("tag", "").startswith("winnow path"):
        raise Missing(f"{folder} holds an unfinished path: {record['tag']} goes on with it")
    words = {"how": record["how"], "where": record["where"], "data": record["model"]}
    made = {"command": "winnow.path(…)", "environment": None}
    found = _path(folder, {**record, **made, "options": words, "by_loss": False})
    return replace(found, method=f"path: {record['how']}", unit="score")


def _comparison(folder: Path, record: dict[str, Any]) -> list[Run]:
    """Seeds are points of one run; x is the density asked for, so that they meet."""
    runs = []
    good = [row for row in record["rows"] if row["phase"] == "final" and row["error"] is None]
    if not good:
        errors = [row["error"] for row in record["rows"] if row["error"]]
        raise Missing(f"{folder}: no training of this comparison is done ({(errors or ['none was begun'])[0]})")
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in good):
        rows = [row for row in good if (row["task"], row["method"]) == (task, method)]
        by_loss = rows[0]["score"] < 0
        keys = [key for key in ("density", "seed", "rate", "number", "value", "dead_units") if key in rows[0]]
        points = [
            Point(r["keep"], -r["score"] if by_loss else r["score"], {key: r.get(key) for key in keys}) for r in rows
        ]
        kept = {f"{row['keep']:g}": [(name, share, 1.0) for name, share in row["layers"].items()] for row in rows}
        name = method + ", units" * (record["plan"].get("where") == "channels")
        runs.append(Run(folder.name, "compare", task, name, by_loss, points, record, [], kept, {}))
    return runs


def _history(folder: Path) -> list[dict[str, Any]]:
    """history.csv, numbers as numbers; [] where there is none."""
    file = folder / "history.csv"
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        return [{key: value if key == "side" else _number(value) for key, value in row.items()} for row in rows]


def _number(text: str) -> Any:
    """A finite number, else the text."""
    try:
        return number if math.isfinite(number := float(text)) else text
    except ValueError:
        return text


def pictures(file: Path, names: Sequence[str]) -> dict[str, list[list[float]]]:
    """The share of nonzero entries, cell by cell, of every named weight in a safetensors file; {} where it is missing."""
    if not file.exists():
        return {}
    from safetensors import SafetensorError, safe_open

    found: dict[str, list[list[float]]] = {}
    try:
        with safe_open(str(file), framework="pt") as tensors:
            held = set(tensors.keys())
            for name in dict.fromkeys(names):
                if name in held and len(tensors.get_slice(name).get_shape()) >= 2:
                    found[name] = cells(tensors.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise WinnowError(f"{file} is damaged ({error})") from error
    return found


def cells(weight: Tensor) -> list[list[float]]:
    """(outputs, …) as at most `GRID` × `GRID` shares of nonzero entries, kernels summed up."""
    alive = (weight != 0).float().flatten(2).mean(2) if weight.dim() > 2 else (weight != 0).float()
    size = min(GRID, alive.shape[0]), min(GRID, alive.shape[1])
    grid = torch.nn.functional.adaptive_avg_pool2d(alive[None], size)[0]
    return [[round(x, 3) for x in row] for row in grid.tolist()]
