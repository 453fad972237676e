"""WHERE: how a weight is cut into groups that live or die together.

A `Grouping` is a rule ("one group per row"); `Grouping.bind(shape)` turns it into `Groups`, the same rule for one
tensor.  A group's magnitude is its Euclidean norm r_g = ‖w_g‖; tensors with one number per group ("gates") have the
shape of the weight's view with the axes inside a group kept at length 1, so they broadcast.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from winnow.errors import GroupError


@final
@dataclass(frozen=True)
class Groups:
    """One tensor's groups: `shape` seen as `view`, whose axes `inside` belong to one group.

    `scale` multiplies the penalty of every group (1, or √size for the classic group lasso weights).
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    inside: tuple[int, ...]
    scale: float = 1.0
    quota: int = 0
    """Where a cut leaves this many of the groups along the view's axis 2 at least: the n of n:m; 0 where it may take any."""

    @property
    def gate_shape(self) -> tuple[int, ...]:
        return tuple(1 if axis in self.inside else n for axis, n in enumerate(self.view))

    @property
    def size(self) -> int:
        """Entries in one group."""
        return math.prod(self.view[axis] for axis in self.inside)

    @property
    def count(self) -> int:
        """Number of groups."""
        return math.prod(self.gate_shape)

    def split(self, x: Tensor) -> Tensor:
        """`x` in the grouped view: no copy for any strides, as every axis is only split."""
        return x if self.view == tuple(x.shape) else x.view(self.view)

    def total(self, x: Tensor) -> Tensor:
        """Sum of `x` over each group, one number per group."""
        x = self.split(x)
        return _whole(x.sum(self.inside, keepdim=True)) if self.inside else x

    def norm(self, x: Tensor) -> Tensor:
        """‖x_g‖, one number per group."""
        x = self.split(x)
        return _whole(torch.linalg.vector_norm(x, dim=self.inside, keepdim=True)) if self.inside else x.abs()

    def last(self, norm: Tensor) -> Tensor | None:
        """Which groups a cut takes only when all others are gone; None if it takes them by norm alone."""
        if not self.quota:
            return None
        best = norm.topk(self.quota, dim=2).indices
        return torch.zeros_like(norm, dtype=torch.bool).scatter_(2, best, True)

    def spread(self, gates: Tensor, x: Tensor) -> Tensor:
        """`x` times its group's gate, in the shape of `x`."""
        return (self.split(x) * gates).view(x.shape)

    def __str__(self) -> str:
        inside = "×".join(str(self.view[axis]) for axis in self.inside) or "1"
        scale = "" if self.scale == 1.0 else f", weight {self.scale:.6g}"
        return f"{self.count} groups of {inside} in {self.shape}, gates {self.gate_shape}{scale}"


@final
@dataclass(frozen=True)
class Split:
    """`Groups` for tensors that are in the grouped view already, of any lengths: what compiled code works with."""

    inside: tuple[int, ...]
    scale: float

    def split(self, x: Tensor) -> Tensor:
        return x

    def total(self, x: Tensor) -> Tensor:
        return x.sum(self.inside, keepdim=True) if self.inside else x

    def norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=self.inside, keepdim=True) if self.inside else x.abs()

    def spread(self, gates: Tensor, x: Tensor) -> Tensor:
        return x * gates


def _whole(x: Tensor) -> Tensor:
    """A sharded tensor's partial sums added up over its ranks, so that in-place arithmetic on it is right."""
    placements = getattr(x, "placements", None)
    if placements is None or not any(p.is_partial() for p in placements):
        return x
    from torch.distributed.tensor import Replicate

    whole: Tensor = x.redistribute(placements=[Replicate() if p.is_partial() else p for p in placements])  # type: ignore[attr-defined]
    return whole


@dataclass(frozen=True, kw_only=True)
class Grouping(ABC):
    """A rule for cutting tensors of any shape; `weighted=True` multiplies each group's penalty by √size."""

    weighted: bool = False

    def bind(self, shape: torch.Size | tuple[int, ...]) -> Groups:
        """The rule for one tensor; raises `GroupError` where the tensor cannot be cut so."""
        shape = tuple(shape)
        view, inside = self._cut(shape)
        size = math.prod(view[axis] for axis in inside)
        return Groups(shape, view, inside, math.sqrt(size) if self.weighted else 1.0)

    @abstractmethod
    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(view, axes inside a group)."""


@final
@dataclass(frozen=True)
class Elements(Grouping):
    """Every entry is its own group: unstructured sparsity."""

    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return shape, ()


@final
@dataclass(frozen=True, init=False)
class Axes(Grouping):
    """One group per index along the axes `kept`; all other axes are inside the group. Negative axes count from the end."""

    kept: tuple[int, ...] = (0,)

    def __init__(self, *kept: int, weighted: bool = False) -> None:
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "weighted", weighted)

    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return shape, _others(shape, self.kept, self)


@final
@dataclass(frozen=True)
class Rows(Grouping):
    """One group per index of axis 0: the weights into one neuron (linear) or one filter (convolution)."""

    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return shape, _others(shape, (0,), self)


@final
@dataclass(frozen=True)
class Columns(Grouping):
    """One group per index of axis 1: the weights out of one input feature or channel."""

    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return shape, _others(shape, (1,), self)


@final
@dataclass(frozen=True)
class Blocks(Grouping):
    """Rectangular blocks; `block` gives the block's length along each leading axis, the other axes are taken whole."""

    block: tuple[int, ...] = (4, 4)

    def __post_init__(self) -> None:
        if not (isinstance(self.block, tuple | list) and self.block and all(isinstance(b, int) for b in self.block)):
            raise GroupError(f"Blocks takes a length for each leading axis, got {self.block!r}; try Blocks((4, 4))")

    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if len(self.block) > len(shape) or any(b < 1 or n % b for n, b in zip(shape, self.block, strict=False)):
            raise GroupError(
                f"{self} does not divide a tensor of shape {shape}: each block length must divide its axis; "
                f"give lengths that divide {shape[: len(self.block)]}, or another grouping for this weight"
            )
        view: list[int] = []
        inside: list[int] = []
        for axis, n in enumerate(shape):
            b = self.block[axis] if axis < len(self.block) else n
            view += [n // b, b]
            inside.append(2 * axis + 1)
        return tuple(view), tuple(inside)


@final
@dataclass(frozen=True)
class NM(Grouping):
    """Single entries, n of every m along axis 1 the last to go: `Toward(density=n / m)` leaves at most n of every m.

    2:4 is what NVIDIA's sparse tensor cores compute with (Mishra et al. 2021, arXiv:2104.08378).  The penalty is that of
    single entries; the pattern is in what is cut.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        _whole_numbers(self, self.n, self.m)

    def bind(self, shape: torch.Size | tuple[int, ...]) -> Groups:
        return dataclasses.replace(super().bind(shape), quota=self.n)

    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not 0 < self.n < self.m or len(shape) < 2 or shape[1] % self.m:
            raise GroupError(
                f"{self} does not divide a tensor of shape {shape}: it needs 0 < n < m and a second axis that is a multiple "
                "of m; leave this weight out, or give another grouping for it"
            )
        return (shape[0], shape[1] // self.m, self.m, *shape[2:]), ()


@final
@dataclass(frozen=True)
class Heads(Grouping):
    """One group per attention head: axis `axis` holds `fused` stacked projections of `count` heads each.

    `fused=3` is a fused QKV weight (3·count·d, width), whose head h is its slices of Q, K and V together;
    `axis=1` suits the output projection, whose columns belong to heads.
    """

    count: int
    axis: int = 0
    fused: int = 1

    def __post_init__(self) -> None:
        _whole_numbers(self, self.count, self.axis, self.fused)

    def _cut(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        parts = self.count * self.fused
        if not -len(shape) <= self.axis < len(shape) or self.count < 1 or self.fused < 1 or shape[self.axis] % parts:
            raise GroupError(
                f"{self} does not divide a tensor of shape {shape}: axis {self.axis} must exist and be a multiple of "
                f"count × fused = {parts}; check the number of heads and whether Q, K, V are fused"
            )
        axis = self.axis % len(shape)
        view = (*shape[:axis], self.fused, self.count, shape[axis] // parts, *shape[axis + 1 :])
        return view, tuple(i for i in range(len(view)) if i != axis + 1)


def _whole_numbers(rule: Grouping, *given: object) -> None:
    if not all(isinstance(number, int) for number in given):
        raise GroupError(f"{rule}: whole numbers are expected, got {', '.join(map(repr, given))}")


def _others(shape: tuple[int, ...], kept: tuple[int, ...], rule: Grouping) -> tuple[int, ...]:
    rank = len(shape)
    if any(not -rank <= axis < rank for axis in kept) or len({axis % rank for axis in kept}) < len(kept):
        raise GroupError(
            f"{rule} does not fit a tensor of shape {shape}: it keeps axes {kept} of {rank}; "
            f"keep different axes in [{-rank}, {rank}), or use Elements()"
        )
    return tuple(axis for axis in range(rank) if axis not in {k % rank for k in kept})
