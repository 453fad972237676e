"""LADDER: one training that climbs a curve: dense first, then sparser and sparser, a finished model on every rung."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path as Folder
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from winnow.curve import FORMAT, RECORD, SMALL, Path, Point, stored_points
from winnow.errors import FileError, ScheduleError, TraceError
from winnow.files import WEIGHTS, load, save, tensor_files
from winnow.groups import Grouping
from winnow.measure import measure
from winnow.routes import Route
from winnow.routes.base import Site
from winnow.run import attach
from winnow.schedules import Toward
from winnow.sites import Where, find_sites
from winnow.smaller import compact
from winnow.trace import Example

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
COST, GROW, HEAL = 2.5, 1.1, 0.7
"""Dense trainings that all rungs cost together; steps of a rung over those of the one before; a rung's last part, which heals.

Chosen by hand on validation parts of LeNet-300-100/MNIST; no sweep is recorded.
"""
WIDER, MOSTLY = 0.85, 0.9
"""Single weights under Adam, whose steps know no scale: a rung's rates go as density^−0.85, as a sparse layer has less fan-in.

Sparse maximal update parametrisation has density^−1 (Dey, Bergsma, Hestness, arXiv 2405.15743); chosen by hand among −0.5,
−0.7, −0.85 and −1 on a validation part of Tiny Shakespeare, no sweep is recorded.  Only for parameter groups of which this
share of all entries becomes sparse.
"""
STATE, DICE = "state", "dice.safetensors"
Fit = Callable[[nn.Module, Optimizer, int], None]
"""A training loop: exactly so many optimizer steps, learning-rate schedule included."""
News = Callable[[str, float, int, int], None]
"""Told what is being trained, its density, and how many rungs of how many are done."""


def path(
    model: nn.Module,
    fit: Fit,
    score: Callable[[nn.Module], float],
    *,
    optimizer: Callable[[nn.Module], Optimizer],
    how: Route,
    where: Where,
    example: Example,
    steps: int,
    out: str | os.PathLike[str],
    densities: Sequence[float] = DENSITIES,
    cost: float = COST,
    tag: str = "",
    batches: Sequence[int] = (1, 64),
    news: News = lambda *_: None,
) -> Path:
    """Train dense for `steps`, then walk down `densities`, and keep a finished model on every rung.

    Every rung starts from the last one's weights with a fresh optimizer, as learning-rate rewinding does, its learning
    rates times 1 − density, as what takes little away needs little healing; over density^0.85 for single weights under
    Adam (`WIDER`).  It cuts first (`Toward`), then heals, and is settled, made smaller, proved, timed and scored.  All of
    it costs `cost` dense trainings; the sparser a rung, the longer.

    Args:
        model: trained in place; left as the last rung leaves it.
        fit: `fit(model, optimizer, steps)` takes exactly `steps` optimizer steps, with its own schedule over them.
        score: of a model in eval mode, higher is better: an accuracy, or minus a loss.
        optimizer: builds one for the model.
        how, where: as for `attach`.
        example: what the model is called with.
        steps: of the dense training.
        out: a folder; what is finished there is not done again, and random numbers go on as if never interrupted.
        densities: falling, beginning with 1.
        tag: whatever else makes this path what it is, as a learning rate: a folder begun under another is refused.

    Raises `ScheduleError` for bad numbers or a `fit` that takes another number of steps; `FileError` for a folder that
    holds something else.
    """
    _check(densities, steps, cost)
    tensor_files()  # rather than after the dense training
    lengths = _lengths(len(densities), steps, cost)
    folder, template = Folder(out), copy.deepcopy(model)
    asked = {
        "format": FORMAT,
        "densities": list(densities),
        "steps": steps,
        "cost": cost,
        "lengths": lengths,
        "how": repr(how),
        "where": _said(where),
        "tag": tag,
        "model": type(model).__name__,
    }
    points = _begun(folder, asked)
    if points:
        _resume(folder / f"rung-{len(points) - 1}" / STATE, model)
    else:
        _try(model, example, batches)
        _scored(score, model)  # a score that is no number is told before the training, not after
    dense = load(folder / "rung-0" / SMALL, lambda: copy.deepcopy(template)) if points else None
    for k in range(len(points), len(densities)):
        news("dense" if not k else f"{densities[k]:g}", densities[k], k, len(densities))
        density, layers = _climb(model, fit, _made(optimizer, model), how, where, densities[k], lengths[k])
        dense = dense or copy.deepcopy(model).eval()
        with _folder(folder / f"rung-{k}") as part:
            numbers = (densities[k], density, sum(lengths[: k + 1]))
            point = _finish(model, dense, score, example, batches, part, numbers, layers)
        points.append(point)
        _write(folder / RECORD, {**asked, "points": [dataclasses.asdict(p) for p in points]})
    return Path(folder, tuple(points), template)


def _try(model: nn.Module, example: Example, batches: Sequence[int]) -> None:
    """What is done on every rung, on the model as it is: its errors come before the training, not after."""
    with torch.random.fork_rng(devices=[]):
        small, _ = compact(copy.deepcopy(model).eval(), example)
        try:
            measure(model, small, example, batches=batches, seconds=0.0)
        except RuntimeError as error:
            raise TraceError(
                f"the model cannot be called with the example repeated along its first axis, for batches={tuple(batches)}: "
                f"{error}. Give an example with a batch axis, or other batches"
            ) from error


def _said(where: Where) -> str:
    """A grouping in words; of one that holds an example its name, as that may be large."""
    if isinstance(where, Mapping):
        return ", ".join(f"{name}: {rule!r}" for name, rule in where.items())
    return repr(where) if isinstance(where, Grouping) else type(where).__name__


def _lengths(rungs: int, steps: int, cost: float) -> list[int]:
    """Optimizer steps of every rung, the first dense."""
    weights = [GROW**k for k in range(rungs - 1)]
    return [steps, *(max(2, round((cost - 1) * steps * weight / sum(weights))) for weight in weights)]


def _scored(score: Callable[[nn.Module], float], model: nn.Module) -> float:
    """The model's score as a finite float."""
    found = score(model.eval())
    try:
        number = float(found)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ScheduleError(f"score(model) must return a finite number, higher is better, got {found!r}")
    return number


def _made(optimizer: Callable[[nn.Module], Optimizer], model: nn.Module) -> Optimizer:
    """A fresh optimizer for a rung."""
    made = optimizer(model) if callable(optimizer) else optimizer
    if not callable(optimizer) or not isinstance(made, Optimizer):
        raise ScheduleError(
            f"optimizer must be a function that builds one, as lambda model: torch.optim.SGD(model.parameters(), 0.1), and "
            f"every rung takes a fresh one; got {type(made).__name__}"
        )
    return made


def _check(densities: Sequence[float], steps: int, cost: float) -> None:
    try:
        falling = all(a > b > 0 for a, b in itertools.pairwise(densities))
    except TypeError:
        falling = False
    if not falling or not densities or densities[0] != 1:
        raise ScheduleError(f"densities must begin with 1.0 (dense) and fall, each above 0, got {densities}")
    if steps < 1 or not cost > 1:
        raise ScheduleError(
            f"steps must be >= 1 and cost (in dense trainings, the first is one) > 1, got {steps} and {cost}"
        )


def _climb(
    model: nn.Module, fit: Fit, optimizer: Optimizer, how: Route, where: Where, density: float, steps: int
) -> tuple[float, list[tuple[str, int, int]]]:
    """Train one rung; the density obtained, and what lives of every weight."""
    if density == 1:
        counted = [0]
        handle = optimizer.register_step_post_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
        fit(model.train(), optimizer, steps)
        handle.remove()
        _took(counted[0], steps)
        return 1.0, []
    sites, _ = find_sites(model, optimizer, where)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * _rate(density, group, sites)  # not in place: a tensor may be every rung's
    run = attach(model, optimizer, how=how, where=where, when=Toward(density, steps, begin=0.0, heal=HEAL))
    if run.density() < 1:
        run.cut(run.density())  # what is zero stays zero, on every route
    fit(model.train(), optimizer, steps)
    _took(run.clock.step, steps)
    run.settle()
    return run.density(), [(layer.name, layer.alive, layer.groups) for layer in run.layers()]


def _rate(density: float, group: Mapping[str, Any], sites: Sequence[Site]) -> float:
    """Factor of a rung's learning rates; Adam and its like have second moments, and betas.

    Only a group that holds hardly anything but weights that become sparse gets the larger rates.
    """
    single = {id(theta) for site in sites if site.groups.size == 1 for theta in site.weights}
    sparse = sum(theta.numel() for theta in group["params"] if id(theta) in single)
    mostly = sparse >= MOSTLY * sum(theta.numel() for theta in group["params"])
    return (1 - density) * (density**-WIDER if mostly and "betas" in group else 1.0)


def _took(taken: int, asked: int) -> None:
    if taken != asked:
        raise ScheduleError(
            f"fit took {taken} optimizer steps where {asked} were asked for; it must take exactly those"
        )


def _finish(
    model: nn.Module,
    dense: nn.Module,
    score: Callable[[nn.Module], float],
    example: Example,
    batches: Sequence[int],
    part: Folder,
    numbers: tuple[float, float, int],
    layers: Sequence[tuple[str, int, int]],
) -> Point:
    asked, density, steps = numbers
    save(model.eval(), part / STATE)
    small, proof = compact(model, example)
    save(small, part / SMALL, compress=True)
    timed = measure(dense, small, example, batches=batches, seconds=0.5)
    point = Point(
        asked,
        density,
        _scored(score, small),
        proof.parameters[1],
        sum(int(torch.count_nonzero(theta)) for theta in small.parameters()),
        proof.macs[1],
        (part / SMALL / WEIGHTS).stat().st_size,
        {str(t.batch): t.p50 for t in timed.after},
        {str(t.batch): ratio for t, ratio in zip(timed.after, timed.speedup, strict=True)},
        proof.max_error,
        steps,
        layers,
    )
    tensor_files().torch.save_file({"dice": torch.get_rng_state()}, part / DICE)
    return point


def _resume(state: Folder, model: nn.Module) -> None:
    saved = load(state, lambda: copy.deepcopy(model))
    model.load_state_dict(saved.state_dict())
    torch.set_rng_state(tensor_files().torch.load_file(state.parent / DICE)["dice"])


def _begun(folder: Folder, asked: Mapping[str, Any]) -> list[Point]:
    """The points that are finished in `folder`."""
    record = folder / RECORD
    if not record.exists():
        if folder.exists() and any(p for p in folder.iterdir() if not p.name.startswith("rung-")):
            raise FileError(f"{folder} holds other files: choose another folder for the path")
        return []
    stored, points = stored_points(record)
    if stored != dict(asked):
        other = ", ".join(f"{k}: {stored.get(k)} there, {asked[k]} here" for k in asked if stored.get(k) != asked[k])
        raise FileError(f"{folder} holds another path ({other}): choose another folder, or remove it")
    return points


@contextmanager
def _folder(folder: Folder) -> Iterator[Folder]:
    """A folder that appears whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _write(file: Folder, record: Mapping[str, Any]) -> None:
    half = file.with_name(file.name + ".part")
    half.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(half, file)
