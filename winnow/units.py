"""Which slices of which weights make a channel, a neuron or a head: what has to be zero for it to vanish."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from winnow.errors import TraceError
from winnow.trace import Example, Tracer, graph_of

ATTACHED = "_winnow_attached"
"""Set on a weight while a run trains it: its zeros are not final."""


@final
@dataclass(frozen=True, eq=False)
class Member:
    """One weight's share in a layer of units."""

    name: str
    axis: int
    indices: Tensor = field(repr=False)
    """(units, k): the k indices along `axis` that belong to each unit."""

    def take(self, theta: Tensor) -> Tensor:
        """The entries of every unit: (units, entries each), a copy."""
        rows = theta.movedim(self.axis, 0).flatten(1) if theta.ndim > 1 else theta.unsqueeze(1)
        return rows[self.indices.to(theta.device)].flatten(1)

    @torch.no_grad()
    def put(self, theta: Tensor, entries: Tensor) -> None:
        """Write what `take` gave back."""
        moved = theta.movedim(self.axis, 0)
        moved[self.indices.reshape(-1).to(theta.device)] = entries.reshape(-1, *moved.shape[1:]).to(theta.dtype)

    def scale(self, theta: Tensor, factors: Tensor) -> Tensor:
        """`theta` with each unit's entries times its factor, (units,); the rest as it is."""
        along = torch.ones(theta.shape[self.axis], dtype=factors.dtype, device=theta.device)
        along[self.indices.to(theta.device)] = factors[:, None]
        return theta * along.view([-1 if a == self.axis else 1 for a in range(theta.ndim)])

    @torch.no_grad()
    def zero(self, theta: Tensor, dead: Tensor) -> None:
        """Zero the entries of the units marked in `dead`, (units,) bool."""
        theta.movedim(self.axis, 0)[self.indices[dead].reshape(-1).to(theta.device)] = 0


@final
@dataclass(frozen=True, eq=False, repr=False)
class UnitLayer:
    """Units of one kind: they have slices of the same weights, and as many entries each."""

    members: tuple[Member, ...]
    reads: tuple[Member, ...]
    """The weights that read the units' output, and so shrink with them; nothing there has to be zero."""
    cost: int
    """Entries of all weights that go with one unit."""
    feature: bool = False
    """Whether the units are features of an input, made of the weights that read them."""

    def of(self, names: Container[str]) -> UnitLayer:
        """With members of these names alone: a buffer (running statistics) is made with the units, but no weight of theirs."""
        return replace(self, members=tuple(m for m in self.members if m.name in names))

    @property
    def count(self) -> int:
        return len(self.members[0].indices)

    @property
    def name(self) -> str:
        return self.members[0].name

    def __str__(self) -> str:
        return f"{self.count} units of {', '.join(m.name for m in self.members)}"

    def __repr__(self) -> str:
        return f"<{self}>"


def find_units(model: nn.Module, example: Example, *, inputs: bool = False) -> list[UnitLayer]:
    """All units of a model that could be removed, layer by layer, in the order of the graph.

    A unit's members are the slices that make it: a filter with its bias, or, where a batch normalisation follows, the
    weight and bias of that (the filter in front has no scale of its own); for a residual channel those of every branch;
    for a head its slices of Q, K and V.  With `inputs`, also the features of the model's inputs (axis 1, or the last of
    three), each made of all weights that read it.  Raises `TraceError` if the model cannot be read or has none.
    """
    return read_units(model, example, inputs)[1]


def read_units(model: nn.Module, example: Example, inputs: bool = False) -> tuple[Tracer, list[UnitLayer]]:
    """The traced model with its units; raises as `find_units` does."""
    tracer = Tracer(graph_of(model, example), features=inputs).run()
    units = units_of(tracer)
    if not units:
        why = Counter(tracer.ties.reasons(tracer.resolved).values()).most_common(3)
        raise TraceError(
            f"{type(model).__name__} has no channel that could be removed; every one is pinned: "
            + "; ".join(f"{count} channels: {reason}" for reason, count in why)
        )
    return tracer, units


def units_of(tracer: Tracer) -> list[UnitLayer]:
    """The units of a traced model."""
    classes = tracer.resolved
    pinned = torch.zeros(tracer.ties.count, dtype=torch.bool)
    pinned[list(tracer.ties.reasons(classes))] = True
    shares = _shares(tracer, classes, pinned)
    kinds: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    for number, share in shares.items():
        kind = tuple((name, axis, len(indices)) for (name, axis), indices in share.items())
        kinds.setdefault(kind, []).append(number)
    features = {int(number) for block in tracer.inputs.values() for number in classes[block.ids]}
    layers = []
    for kind, numbers in kinds.items():
        every = [
            (Member(name, axis, torch.stack([shares[number][name, axis] for number in numbers])), (name, axis))
            for name, axis, _ in kind
        ]
        makers = [m for m, key in every if key in tracer.makers]
        chosen = [m for m in makers if m.name not in tracer.normalised] or makers
        feature = not makers and features.issuperset(numbers)
        if feature:
            chosen = [m for m, _ in every]  # nothing makes a feature: it goes when nothing reads it
        if chosen:
            reads = tuple(m for m, key in every if m not in chosen and key not in tracer.makers)
            layers.append(UnitLayer(tuple(chosen), reads, sum(_width(tracer, m) for m, _ in every), feature))
    return layers


def _width(tracer: Tracer, member: Member) -> int:
    """Entries per unit in one weight (buffers, such as running means, count as well: they are few)."""
    shape = tracer.weights[member.name].shape
    return member.indices.shape[1] * math.prod(n for axis, n in enumerate(shape) if axis != member.axis)


def _shares(tracer: Tracer, classes: Tensor, pinned: Tensor) -> dict[int, dict[tuple[str, int], Tensor]]:
    """Per class that is not pinned, its indices along every axis of every weight."""
    shares: dict[int, dict[tuple[str, int], Tensor]] = {}
    for name, layout in tracer.weights.items():
        for block in layout.blocks:
            numbers = classes[block.ids]
            for number in sorted(set(numbers[~pinned[numbers]].tolist())):
                shares.setdefault(number, {})[name, block.axes[0]] = (numbers == number).nonzero()[:, 0]
    return shares


def weight(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    owner: object = model
    for part in name.split("."):
        owner = getattr(owner, part)
    assert isinstance(owner, Tensor)
    return owner


def zero_units(model: nn.Module, layers: Sequence[UnitLayer], dead: Sequence[Tensor]) -> None:
    """Zero what makes the units marked in `dead`, one bool tensor per layer; the model is changed in place."""
    for layer, marks in zip(layers, dead, strict=True):
        for member in layer.members:
            member.zero(weight(model, member.name).data, marks)
