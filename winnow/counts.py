"""What a target's density is a share of: entries, parameters, or multiply–accumulates.

Entries add up, unit by unit.  Parameters and multiply–accumulates do not: those of a layer are a product of its inputs and
its outputs, so that half the units everywhere leave a quarter.  Here they are sums of such products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx, nn

from winnow.errors import TraceError
from winnow.trace import Tracer
from winnow.trace.einsum import letters_of
from winnow.trace.layout import Block, Layout
from winnow.trace.tracer import argument, attribute, operator
from winnow.units import UnitLayer


@final
@dataclass(frozen=True)
class Size:
    """A size that falls as units go: `fixed` + Σ `each[layer]` · living units of that layer."""

    fixed: float
    each: Mapping[int, float]

    def at(self, alive: Sequence[float]) -> float:
        return self.fixed + sum(slope * alive[layer] for layer, slope in self.each.items())


@final
@dataclass(frozen=True)
class Spending:
    """A count as a function of how many units of each layer live: a sum of products of sizes."""

    terms: tuple[tuple[Size, ...], ...]
    units: tuple[int, ...]
    """Units per layer, when all live."""

    def of(self, alive: Sequence[float]) -> float:
        """The count when `alive[i]` units of layer i live."""
        return sum(math.prod(size.at(alive) for size in term) for term in self.terms)

    def share(self, alive: Sequence[float]) -> float:
        """The same, over what it is when all live."""
        return self.of(alive) / self.of(self.units)

    @property
    def prices(self) -> list[float]:
        """Per layer, the share that one of its units holds when all live."""
        every = range(len(self.units))
        return [max(0.0, 1 - self.share([n - (i == j) for j, n in enumerate(self.units)])) for i in every]

    @property
    def grain(self) -> float:
        """The largest share that one unit holds when all live."""
        return max(self.prices)


class Count(ABC):
    """What is counted."""

    @abstractmethod
    def sizes(self, tracer: Tracer) -> Iterator[Sequence[tuple[Layout, Sequence[int]]]]:
        """Per product, its factors: tensors, and of each the axes whose sizes are multiplied."""

    def spending(self, tracer: Tracer, layers: Sequence[UnitLayer]) -> Spending:
        """The count of a traced model, `layers` being the units that may go."""
        owner = _owners(tracer, layers)
        terms = (
            tuple(size for layout, axes in factors for size in _sizes(layout, axes, owner, layers))
            for factors in self.sizes(tracer)
        )
        found = Spending(tuple(terms), tuple(layer.count for layer in layers))
        if not found.of(found.units):
            raise TraceError(f"{self} finds nothing to count in this model; leave count out to count entries")
        return found


@final
@dataclass(frozen=True)
class Parameters(Count):
    """Parameters of the smaller model, tied ones once."""

    def sizes(self, tracer: Tracer) -> Iterator[Sequence[tuple[Layout, Sequence[int]]]]:
        seen: set[int] = set()
        used = {node.target for node in tracer.module.graph.nodes if node.op == "get_attr" and node.users}
        for name, layout in sorted(
            tracer.weights.items(), key=lambda item: item[0] not in used
        ):  # of tied names, the one used
            theta = attribute(tracer.module, name)
            if isinstance(theta, nn.Parameter) and id(theta) not in seen:
                seen.add(id(theta))
                yield [(layout, range(len(layout.shape)))]


@final
@dataclass(frozen=True)
class MACs(Count):
    """Multiply–accumulates of one call of the smaller model: of linear layers, convolutions, matrix products, attention,
    recurrent layers."""

    def sizes(self, tracer: Tracer) -> Iterator[Sequence[tuple[Layout, Sequence[int]]]]:
        for node in tracer.module.graph.nodes:
            name = operator(node) if node.op == "call_function" else ""
            if "conv" in name:
                yield _convolution(tracer, node, "transpose" in name)
            elif name == "aten.scaled_dot_product_attention":
                yield from _attention(tracer, node)
            elif name == "aten.einsum" and (parts := letters_of(node)) is not None:
                (left, _), out_letters = parts
                axes = [i for i, c in enumerate(left) if c not in out_letters]
                yield [(tracer.layout(node), range(len(out_letters))), (tracer.layout(node.args[1][0]), axes)]
            elif name in _RECURRENT:
                yield from _recurrence(tracer, node)
            elif name in _PRODUCTS:
                summed = tracer.layout(node.args[_PRODUCTS[name]])
                out = tracer.layout(node)
                yield [(out, range(len(out.shape))), (summed, [len(summed.shape) - 1])]


_RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
_PRODUCTS = {"aten.linear": 0, "aten.addmm": 1, "aten.mm": 0, "aten.bmm": 0, "aten.matmul": 0}
"""Operator to the position of the argument whose last axis is summed over."""


def _convolution(tracer: Tracer, node: fx.Node, transposed: bool) -> list[tuple[Layout, Sequence[int]]]:
    """Every output, or every input of a transposed one, meets a kernel."""
    many, kernel = tracer.layout(node.args[0] if transposed else node), tracer.layout(node.args[1])
    axes: list[int] = list(range(1, len(kernel.shape)))
    if int(argument(node, 6, "groups", 1)) > 1:
        kernel = Layout(kernel.shape)  # what is inside a group stays
    return [(many, range(len(many.shape))), (kernel, axes)]


def _recurrence(tracer: Tracer, node: fx.Node) -> Iterator[Sequence[tuple[Layout, Sequence[int]]]]:
    """Every step of every sequence meets each matrix once."""
    weights: Any = node.args[2]
    x = tracer.layout(node.args[0])
    for weight in map(tracer.layout, weights):
        if len(weight.shape) == 2:
            yield [(x, range(len(x.shape) - 1)), (weight, range(2))]


def _attention(tracer: Tracer, node: fx.Node) -> Iterator[Sequence[tuple[Layout, Sequence[int]]]]:
    """Scores, and the means of the values that they weigh."""
    q, k = tracer.layout(node.args[0]), tracer.layout(node.args[1])
    out = tracer.layout(node)
    for many in (q, out):
        yield [(many, range(len(many.shape))), (k, [len(k.shape) - 2])]


def _owners(tracer: Tracer, layers: Sequence[UnitLayer]) -> torch.Tensor:
    """Per class of atoms, the layer of units that it is one of, or −1."""
    owner = torch.full((tracer.ties.count,), -1)
    for number, layer in enumerate(layers):
        member = layer.members[0]
        block = tracer.weights[member.name].alone(member.axis)
        assert block is not None
        owner[tracer.resolved[block.ids[member.indices[:, 0]]]] = number
    return owner[tracer.resolved]


def _sizes(layout: Layout, axes: Sequence[int], owner: torch.Tensor, layers: Sequence[UnitLayer]) -> Iterator[Size]:
    """The sizes of some axes of a tensor; axes that are labelled together make one."""
    done: set[int] = set()
    for axis in axes:
        block = layout.at(axis)
        if block is None or any(a not in axes for a in block.axes):
            yield Size(float(layout.shape[axis]), {})
        elif axis not in done:
            done.update(block.axes)
            yield _living(block, owner, layers)


def _living(block: Block, owner: torch.Tensor, layers: Sequence[UnitLayer]) -> Size:
    found: dict[Any, Any] = {}
    for number, count in zip(*torch.unique(owner[block.ids], return_counts=True), strict=True):
        found[int(number)] = int(count)
    fixed = float(found.pop(-1, 0))
    return Size(fixed, {number: count / layers[number].count for number, count in found.items()})
