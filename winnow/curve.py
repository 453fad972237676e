"""CURVE: the trade-off curve as it is kept: its points, their models, and the one to ship."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as Folder
from typing import Any, final

from torch import nn

from winnow.errors import FileError, ScheduleError
from winnow.files import load

FORMAT = 1
RECORD, SMALL = "path.json", "small"


@final
@dataclass(frozen=True)
class Point:
    """One rung: a settled and healed model, made physically smaller.  Sizes are those of the smaller model."""

    asked: float
    density: float
    score: float
    parameters: int
    nonzero: int
    macs: int
    bytes: int
    """Of its file, zeros left out."""
    seconds: Mapping[str, float]
    """Median seconds of a call, by batch size."""
    speedup: Mapping[str, float]
    """Over the dense model, timed by turns."""
    error: float
    """Largest |Δoutput| that its removal made."""
    steps: int
    """Optimizer steps from the beginning."""
    layers: Sequence[tuple[str, int, int]] = ()
    """Per penalised weight: name, groups alive, groups; none for the dense point."""


@final
@dataclass(frozen=True)
class Path:
    """The curve; `points[0]` is dense. Folders below `folder` hold a model each."""

    folder: Folder
    points: tuple[Point, ...]
    template: nn.Module = field(repr=False)

    @classmethod
    def read(cls, folder: str | os.PathLike[str], model: nn.Module) -> Path:
        """The path that a folder holds, one of `winnow path` too; `model` is one as the path began with.

        Raises `FileError` where there is none, or it is damaged or of a newer version.
        """
        place = Folder(folder)
        if not (place / RECORD).exists():
            raise FileError(f"{place} holds no path: it has no {RECORD}")
        return cls(place, tuple(stored_points(place / RECORD)[1]), copy.deepcopy(model))

    def load(self, point: Point) -> nn.Module:
        """The point's smaller model, in eval mode."""
        return load(self.folder / f"rung-{self.points.index(point)}" / SMALL, lambda: copy.deepcopy(self.template))

    def __str__(self) -> str:
        lines = [f"{'density':>8} {'score':>9} {'parameters':>11} {'MACs':>13} {'bytes':>11}  faster"]
        for p in self.points:
            faster = " · ".join(f"{ratio:.2f}× at {batch}" for batch, ratio in p.speedup.items())
            lines.append(
                f"{p.density:8.4f} {p.score:9.4f} {p.parameters:11,} {p.macs:13,} {p.bytes:11,}  {faster}".rstrip()
            )
        return "\n".join(lines)


def pick(
    found: Path,
    *,
    max_drop: float | None = None,
    max_latency: float | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    batch: int | None = None,
) -> nn.Module:
    """The model to ship: that of the point which `choose` takes by the same limits."""
    limits = {"max_drop": max_drop, "max_latency": max_latency, "max_params": max_params, "max_macs": max_macs}
    point = choose(found, **limits, batch=batch)  # type: ignore[arg-type]
    return found.load(point)


def choose(
    found: Path,
    *,
    max_drop: float | None = None,
    max_latency: float | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    batch: int | None = None,
) -> Point:
    """The point within all limits: with `max_drop` (of the dense score) the smallest file, else the best score.

    `max_latency` is in seconds per call at `batch` (the smallest batch measured, if None).  Raises `ScheduleError` where no
    limit is given, or none is met: it says what came nearest.
    """
    limits = {"max_latency": max_latency, "max_params": max_params, "max_macs": max_macs, "max_drop": max_drop}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if not isinstance(found, Path):
        raise ScheduleError(
            f"pick and choose take what winnow.path returned, or winnow.Path.read(folder, model), got {found!r}"
        )
    if not given:
        raise ScheduleError("a limit is needed: max_drop=0.005, max_latency=…, max_params=… or max_macs=…")
    sizes = [_sizes(point, found.points[0], batch) for point in found.points]
    fits = [p for p, size in zip(found.points, sizes, strict=True) if all(size[name] <= given[name] for name in given)]
    if not fits:
        nearest = ", ".join(f"{name}={min(size[name] for size in sizes):.6g}" for name in given)
        raise ScheduleError(f"no point keeps within {given}; the least on the path, each by itself: {nearest}")
    return min(fits, key=lambda p: p.bytes) if max_drop is not None else max(fits, key=lambda p: p.score)


def _sizes(point: Point, dense: Point, batch: int | None) -> dict[str, float]:
    key = min(point.seconds, key=int) if batch is None else str(batch)
    if key not in point.seconds:
        raise ScheduleError(f"no latency was measured at batch {batch}: choose from {', '.join(point.seconds)}")
    sizes = {"max_latency": point.seconds[key], "max_params": point.parameters, "max_macs": point.macs}
    return {**sizes, "max_drop": dense.score - point.score}


def stored_points(record: Folder) -> tuple[dict[str, Any], list[Point]]:
    """What a path was asked for, and its finished points."""
    try:
        stored = dict(json.loads(record.read_text(encoding="utf-8")))
        points = [_point(**point) for point in stored.pop("points")] if stored.get("format", 0) <= FORMAT else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{record} is damaged ({error}): remove the folder, or choose another") from error
    if stored.get("format", 0) > FORMAT:
        raise FileError(
            f"{record} has format {stored['format']}, newer than this Winnow reads ({FORMAT}); upgrade Winnow"
        )
    return stored, points


def _point(layers: Sequence[Sequence[Any]] = (), **numbers: Any) -> Point:
    return Point(**numbers, layers=[(name, alive, groups) for name, alive, groups in layers])
