"""DATA: the sets that only the experiments use, from WINNOW_DATA; a set that is not there skips its cells."""

from __future__ import annotations

import contextlib
import csv
import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from winnow.errors import WinnowError
from winnow.jobs import data as jobs
from winnow.jobs import tables
from winnow.jobs.cifar import Images
from winnow.jobs.data import Examples, Text

from .base import Missing


@functools.lru_cache(maxsize=2)
def examples(name: str) -> Examples:
    """digits, mnist or fashion as the main job has it; `Missing` where it is not."""
    with _missing():
        found = jobs.load(name)
    assert isinstance(found, Examples)
    return found


@functools.lru_cache(maxsize=1)  # decoding takes many seconds
def images() -> Images:
    """CIFAR-10 as the main job has it; `Missing` where it is not."""
    with _missing():
        found = jobs.load("cifar10")
    assert isinstance(found, Images)
    return found


def text(block: int) -> Text:
    """Tiny Shakespeare in windows of `block`; `Missing` where it is not."""
    with _missing():
        found = jobs.load("shakespeare", block=block)
    assert isinstance(found, Text)
    return found


def features(name: str, seed: int) -> Examples:
    """isolet, coil20 or madelon, split by `seed`; `Missing` where it is not."""
    with _missing():
        return tables.features(name, seed)


def white_wine(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Wine quality, white: x (n, 11) standardised by the train part, y (n,); train x, y, then a fifth for testing."""
    with _missing():
        x, y = tables.white_wine()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    std, mean = torch.std_mean(x[train], 0)
    x = (x - mean) / std
    return x[train], y[train], x[test], y[test]


def housing() -> tuple[Tensor, Tensor]:
    """California housing as the p-norm decay notebook has it: x (n, 8), y (n,), in float64.

    Columns: income, age, rooms, bedrooms per household, population, people per household, latitude, longitude, all
    standardised, missing bedrooms at their mean; y is the median value in 100,000 dollars less its mean.
    """
    with _missing():
        rows = list(csv.DictReader(tables.lines_of("tabular/california_housing.csv.gz")))

    def column(name: str) -> Tensor:
        values = torch.tensor([float(row[name] or "nan") for row in rows], dtype=torch.float64)
        return values.nan_to_num(float(values.nanmean()))

    homes, people = column("households"), column("population")
    columns = [column("median_income"), column("housing_median_age"), column("total_rooms") / homes]
    columns += [column("total_bedrooms") / homes, people, people / homes, column("latitude"), column("longitude")]
    x, y = torch.stack(columns, 1), column("median_house_value") / 100_000
    return (x - x.mean(0)) / x.std(0, correction=0), y - y.mean()


@contextlib.contextmanager
def _missing() -> Iterator[None]:
    """A set that cannot be read is `Missing`."""
    try:
        yield
    except WinnowError as error:
        raise Missing(str(error)) from error
