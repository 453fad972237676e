"""What an optimizer's checkpoint must hold for its run to go on, and how it is read back to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from winnow.errors import CheckpointError
from winnow.routes.base import Lane

KEY = "winnow"
"""Under which everything of ours lies, in the optimizer's state and in its first parameter group."""


def plain_entries(
    state_dict: dict[str, Any], ours: Mapping[str, str], lanes: Sequence[Lane], optimizer: Optimizer
) -> dict[str, Any]:
    """The state_dict as the optimizer may read it, without our entries; `ours` describes the run's weights by name.

    Raises `CheckpointError` if it was made without Winnow, for other weights or groups, or lacks factors.
    """
    groups = state_dict.get("param_groups") or [{}]
    saved = groups[0].get(KEY)
    if saved is None:
        raise CheckpointError(
            "this optimizer checkpoint was made without Winnow; load it before attach(), which then starts from it"
        )
    for name in {**ours, **saved["sites"]}:
        was, now = saved["sites"].get(name, "not penalised"), ours.get(name, "not penalised")
        if was != now:
            raise CheckpointError(
                f"the checkpoint does not fit: {name!r} was trained as [{was}] and is attached as [{now}]; "
                "attach with the same how= and where=, or start without the checkpoint"
            )
    for lane, key in zip(lanes, _keys(state_dict, lanes, optimizer), strict=True):
        missing = lane.coordinates().keys() - state_dict["state"].get(key, {}).get(KEY, {}).keys()
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {', '.join(sorted(missing))} of {lane.site.name!r}, which is attached as "
                f"[{lane}]; save optimizer.state_dict() as it is"
            )
    # torch reads no state but its own: Adam takes an entry that is not empty for a complete one
    entries = {
        key: {name: x for name, x in entry.items() if name != KEY} if isinstance(entry, Mapping) else entry
        for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": entries}


def shelves(state_dict: Mapping[str, Any], lanes: Sequence[Lane], optimizer: Optimizer) -> Iterator[dict[str, Any]]:
    """Per lane, what was saved of it: exact values, as torch casts what it loads to the weight's dtype, which masks and
    float32 factors must not be."""
    for lane, key in zip(lanes, _keys(state_dict, lanes, optimizer), strict=True):
        bag = state_dict["state"].get(key, {}).get(KEY, {})
        yield {name: _placed(value, lane.site.theta.device) for name, value in bag.items()}


def _keys(saved: Mapping[str, Any], lanes: Sequence[Lane], optimizer: Optimizer) -> list[Any]:
    """The key of each lane's weight in a checkpoint."""
    sizes, now = (
        [len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)
    )
    if sizes != now:
        raise CheckpointError(
            f"the checkpoint's optimizer holds {_words(sizes)} and this one {_words(now)}; build the "
            "optimizer as it was when the checkpoint was saved"
        )
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    params = [theta for group in optimizer.param_groups for theta in group["params"]]
    key_of = {id(theta): key for key, theta in zip(keys, params, strict=True)}
    return [key_of[id(lane.site.anchor)] for lane in lanes]


def _words(sizes: Sequence[int]) -> str:
    groups = f" in groups of {', '.join(map(str, sizes))}" if len(sizes) > 1 else ""
    return f"{sum(sizes)} parameters{groups}"


def _placed(value: Any, device: torch.device) -> Any:
    """A deep copy on `device`, dtypes untouched; step counters stay where they are."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True) if value.ndim else value.clone()
    if isinstance(value, Mapping):
        return {key: _placed(inner, device) for key, inner in value.items()}
    return copy.deepcopy(value)
