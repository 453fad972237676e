"""DATA: the sets that only the experiments use, from WINNOW_DATA; a set that is not there skips its cells."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from winnow.errors import WinnowError
from winnow.jobs import data as jobs
from winnow.jobs.cifar import Images
from winnow.jobs.data import Examples, Text

from .base import Missing

HIGHDIM = {"isolet": "Isolet", "coil20": "COIL20", "madelon": "madelon"}


@functools.lru_cache(maxsize=2)
def examples(name: str) -> Examples:
    """digits, mnist or fashion as the main job has it; `Missing` where it is not."""
    try:
        found = jobs.load(name)
    except WinnowError as error:
        raise Missing(str(error)) from error
    assert isinstance(found, Examples)
    return found


@functools.lru_cache(maxsize=1)  # decoding takes many seconds
def images() -> Images:
    """CIFAR-10 as the main job has it; `Missing` where it is not."""
    try:
        found = jobs.load("cifar10")
    except WinnowError as error:
        raise Missing(str(error)) from error
    assert isinstance(found, Images)
    return found


def text(block: int) -> Text:
    """Tiny Shakespeare in windows of `block`; `Missing` where it is not."""
    try:
        found = jobs.load("shakespeare", block=block)
    except WinnowError as error:
        raise Missing(str(error)) from error
    assert isinstance(found, Text)
    return found


def features(name: str, seed: int) -> Examples:
    """isolet, coil20 (pooled to 20×20 pixels) or madelon: a fifth drawn by `seed` for testing, standardised by the rest.

    Raises `Missing`: WINNOW_DATA names no folder with highdim/<set>.npz.
    """
    with np.load(_below(f"highdim/{HIGHDIM[name]}.npz"), allow_pickle=False) as stored:
        x, y = stored["X"].astype(np.float32), stored["y"]
    if name == "coil20":
        pixels = torch.from_numpy(x).view(-1, 1, 32, 32)
        x = torch.nn.functional.adaptive_avg_pool2d(pixels, 20).flatten(1).numpy()
    classes, codes = np.unique(y, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    mean, std = x[train].mean(0), x[train].std(0) + 1e-6
    x, y = torch.from_numpy((x - mean) / std), torch.from_numpy(codes.astype(np.int64))
    return Examples(name, "WINNOW_DATA", x[train], y[train], x[test], y[test], classes=len(classes))


def white_wine(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Wine quality, white: x (n, 11) standardised by the train part, y (n,); train x, y, then a fifth for testing."""
    raw = gzip.decompress(_below("tabular/winequality-white.csv.gz").read_bytes()).decode()
    rows = np.loadtxt(io.StringIO(raw), delimiter=",", dtype=np.float32)
    order = np.random.default_rng(seed).permutation(len(rows))
    test, train = (torch.from_numpy(rows[part]) for part in (order[: len(rows) // 5], order[len(rows) // 5 :]))
    std, mean = torch.std_mean(train[:, :-1], 0)
    return (train[:, :-1] - mean) / std, train[:, -1], (test[:, :-1] - mean) / std, test[:, -1]


def housing() -> tuple[Tensor, Tensor]:
    """California housing as the p-norm decay notebook has it: x (n, 8), y (n,), in float64.

    Columns: income, age, rooms, bedrooms per household, population, people per household, latitude, longitude, all
    standardised, missing bedrooms at their mean; y is the median value in 100,000 dollars less its mean.
    """
    with gzip.open(_below("tabular/california_housing.csv.gz"), "rt") as lines:
        rows = list(csv.DictReader(lines))

    def column(name: str) -> Tensor:
        values = torch.tensor([float(row[name] or "nan") for row in rows], dtype=torch.float64)
        return values.nan_to_num(float(values.nanmean()))

    homes, people = column("households"), column("population")
    columns = [column("median_income"), column("housing_median_age"), column("total_rooms") / homes]
    columns += [column("total_bedrooms") / homes, people, people / homes, column("latitude"), column("longitude")]
    x, y = torch.stack(columns, 1), column("median_house_value") / 100_000
    return (x - x.mean(0)) / x.std(0, correction=0), y - y.mean()


def _below(path: str) -> Path:
    root = os.environ.get("WINNOW_DATA")
    found = Path(root) / path if root else None
    if found is None or not found.exists():
        raise Missing(f"{path} is not below the folder that WINNOW_DATA names")
    return found
