"""Which entries of which tensors vanish together: atoms, and how they lie along a tensor's axes.

An *atom* is one index of one axis of one parameter.  Passing through the graph, atoms are carried along: a convolution's
output channel o *is* its filter o; adding two tensors ties their channels; flattening repeats each channel H·W times.
A `Layout` says, for one tensor, which atom each index belongs to; ties are collected and resolved in the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Block:
    """Axes of a tensor whose indices are labelled together.

    `ids` has one axis per entry of `axes`: the atom of each index.  `value` (float64, same shape) is what the tensor
    holds there, for every input, or NaN where it depends on the input.
    """

    axes: tuple[int, ...]
    ids: Tensor
    value: Tensor

    def varying(self) -> Block:
        """The same labels, nothing known of the values."""
        return Block(self.axes, self.ids, torch.full_like(self.value, math.nan))


@final
@dataclass(frozen=True, eq=False)
class Layout:
    """A tensor's labelled axes; those in no block have a size that never changes."""

    shape: tuple[int, ...]
    blocks: tuple[Block, ...] = ()

    def at(self, axis: int) -> Block | None:
        """The block that `axis` belongs to."""
        axis %= max(len(self.shape), 1)
        return next((b for b in self.blocks if axis in b.axes), None)

    def alone(self, axis: int) -> Block | None:
        """The block of `axis` if it is that axis only."""
        block = self.at(axis)
        return block if block is not None and len(block.axes) == 1 else None


@final
@dataclass
class Ties:
    """Atoms handed out so far, the ties between them, and those that must stay."""

    count: int = 0
    edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    place: str = ""
    """The operator at which the walk is, for reasons that do not name it."""
    module: str = ""
    """The module whose forward called it."""

    def fresh(self, size: int) -> Tensor:
        """`size` new atoms."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Atom by atom, these vanish together."""
        whole = a + torch.zeros_like(b)  # the shape of both, broadcast
        self.edges.append((whole.reshape(-1), b.expand(whole.shape).reshape(-1)))

    def pin(self, ids: Tensor, why: str) -> None:
        """These stay, because of `why`."""
        why = f"{why} in {self.place}" if self.place and "aten." not in why else why
        why = f"{why}, at {self.module}" if self.module else why
        self.pins.append((ids.reshape(-1), why))

    def classes(self) -> Tensor:
        """Per atom, the smallest atom it is tied to: equal numbers vanish together."""
        label = torch.arange(self.count)
        if not self.edges:
            return label
        a, b = (torch.cat(side) for side in zip(*self.edges, strict=True))
        while True:
            low = torch.minimum(label[a], label[b])
            new = label.scatter_reduce(0, label[a], low, "amin").scatter_reduce(0, label[b], low, "amin")
            new = new[new]
            if torch.equal(new, label):
                return label
            label = new

    def reasons(self, classes: Tensor) -> dict[int, str]:
        """Per pinned class, the first reason."""
        found: dict[int, str] = {}
        for ids, why in self.pins:
            for number in set(classes[ids].tolist()):
                found.setdefault(number, why)
        return found


def constant(shape: Sequence[int], value: Tensor, axis: int, ids: Tensor) -> Layout:
    """A layout labelled along one axis."""
    return Layout(tuple(shape), (Block((axis % len(shape),), ids, value),))


def unknown(ids: Tensor) -> Tensor:
    """Values of atoms of which nothing is known."""
    return torch.full(ids.shape, math.nan, dtype=torch.float64)
