"""STAGE: the factors in the weights' places, for as long as the optimizer's step takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from winnow.checkpoint import KEY
from winnow.routes.base import Lane
from winnow.routes.moment import Moment


@final
class Stage:
    """Swaps what an optimizer sees: its own groups between steps, the lanes' coordinates within.

    The groups within have the settings of the weights' own, but no weight decay where a coordinate stands in.
    """

    def __init__(self, optimizer: Optimizer, lanes: Sequence[Lane]) -> None:
        self.optimizer = optimizer
        self.lanes = lanes
        self._lane_of = {id(lane.site.anchor): lane for lane in lanes}
        self._home = {id(lane): _index(optimizer, lane.site.anchor) for lane in lanes}
        shares = [share for lane in lanes for share in lane.site.shares]
        self._whole = {id(share.weight) for share in shares if share.whole}
        self._part = {id(share.weight) for share in shares if not share.whole}
        self._own_groups: list[dict[str, Any]] | None = None
        self._grads: list[tuple[Lane, Moment, Any]] = []
        self._parts: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._bags: dict[int, dict[str, Any]] = {}

    @property
    def swapped(self) -> bool:
        """Whether the factors stand in the weights' places now."""
        return self._own_groups is not None

    def group(self, lane: Lane) -> dict[str, Any]:
        """The optimizer's own parameter group of the lane's weight."""
        return (self._own_groups or self.optimizer.param_groups)[self._home[id(lane)]]

    def enter(self, grads: Sequence[tuple[Lane, Moment, Any]], apart: Sequence[Lane]) -> None:
        """Factors in; those of `apart` take their step elsewhere. `grads` are put back as they were when they leave."""
        optimizer, taken = self.optimizer, {id(lane.site.anchor) for lane in apart}
        self._grads = list(grads)
        self._own_groups = optimizer.param_groups
        for lane in self.lanes:
            bag = self._bags[id(lane)] = optimizer.state[lane.site.anchor].pop(KEY, {})
            if id(lane.site.anchor) not in taken:
                for name, factor in lane.coordinates().items():
                    optimizer.state[factor] = bag[name]["state"]
        self._parts = [
            (group, part) for group in self._own_groups for part in self._split(group, taken) if part["params"]
        ]
        optimizer.param_groups = [part for _, part in self._parts]

    def _split(self, group: dict[str, Any], taken: set[int]) -> list[dict[str, Any]]:
        """A group's foreign weights, and what stands for ours, which no weight decay may touch."""
        ours: list[Tensor] = []
        for theta in group["params"]:
            lane = self._lane_of.get(id(theta))
            if lane is not None and id(theta) not in taken:
                ours += [*([theta] if lane.steps_weight else []), *lane.coordinates().values()]
        alone = self._lane_of.keys() - self._part | self._whole
        rest = [theta for theta in group["params"] if id(theta) not in alone]
        bare: dict[str, Any] = {"weight_decay": group["weight_decay"] * 0} if "weight_decay" in group else {}
        if rest:  # a tensor that the optimizer counts in, in place, must count once
            bare |= {k: v.clone() for k, v in group.items() if isinstance(v, Tensor) and k not in ("lr", *bare)}
        return [{**group, "params": rest}, {**group, "params": ours, **bare}]

    def leave(self) -> None:
        """The weights back in their places, with what the optimizer counted; nothing where they are there already."""
        if self._own_groups is None:
            return
        self.optimizer.param_groups, self._own_groups = self._own_groups, None
        for lane, moment, grad in self._grads:  # a lane may have added to it, an optimizer with a scale divided it
            seen = lane.steps_weight and lane.site.theta.grad is grad
            lane.site.theta.grad = grad if seen or isinstance(moment.scale, float) else grad / moment.scale
        for group, part in reversed(self._parts):
            for key, value in part.items():  # an optimizer may count in its groups
                if key not in ("params", "weight_decay", KEY):
                    group[key] = value
        for lane in self.lanes:
            self.shelve(lane, self._bags.pop(id(lane)))

    def shelve(self, lane: Lane, bag: dict[str, Any]) -> None:
        """Put the coordinates, their optimizer state and whatever else must be saved under our key."""
        state = self.optimizer.state
        shelf: dict[str, Any] = {}
        for name, factor in lane.coordinates().items():
            own = state.pop(factor, None)
            if factor is not lane.site.theta:
                factor.grad = None
            shelf[name] = {
                "value": factor.detach(),
                "state": bag.get(name, {}).get("state", {}) if own is None else own,
            }
        shelf.update(lane.keeps())
        if "alive" in bag:
            shelf["alive"] = bag["alive"]
        if shelf:
            state[lane.site.anchor][KEY] = shelf


def _index(optimizer: Optimizer, theta: Tensor) -> int:
    return next(i for i, group in enumerate(optimizer.param_groups) if any(p is theta for p in group["params"]))
