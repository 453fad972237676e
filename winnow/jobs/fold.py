"""FOLD: a part of the train part to look at instead of the test part, for whatever is tuned."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

PARTS = 5
"""One in so many examples is held out, others for each seed."""


def fold(data: Any, seed: int) -> Any:
    """The same data, a dataclass of x, y, test_x and test_y, with a random part of its train part in the test part's place."""
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))
    held, rest = order[: len(order) // PARTS], order[len(order) // PARTS :]
    return dataclasses.replace(data, x=data.x[rest], y=data.y[rest], test_x=data.x[held], test_y=data.y[held])
