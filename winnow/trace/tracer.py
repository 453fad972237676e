"""Walks a model's graph once and finds which slices of which weights vanish together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, fx

from winnow.trace.layout import Block, Layout, Ties, unknown

Layouts = Layout | tuple[Layout, ...]
Rule = Callable[["Tracer", fx.Node], Layouts]
RULES: dict[str, Rule] = {}
"""Operator name (`aten.linear`) to how labels pass through it; one entry is all that a new operator costs."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for operators by name, any overload."""

    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


@final
@dataclass(frozen=True, eq=False)
class Read:
    """A place where atoms are summed over: what removing one of them would change."""

    node: fx.Node
    ids: Tensor
    """Atoms along the axis that is summed over, (n,)."""
    value: Tensor
    """What the input holds there for every input, or NaN, (n,)."""
    outs: Tensor
    """Atoms of the result, (m,)."""
    weight: Tensor
    """Factor of each on each output, all taps of a convolution, (m, n, taps)."""
    bias: str | None
    """Parameter that takes up what a constant contributes; None if there is none."""
    sign: float
    """+1 for a bias, −1 for a running mean."""
    edge: bool
    """Whether zero padding makes a constant's contribution differ at the border."""


@final
@dataclass
class Tracer:
    """State of one walk. Rules see nodes and answer with layouts; ties, pins and reads are noted on the way."""

    module: fx.GraphModule
    ties: Ties = field(default_factory=Ties)
    layouts: dict[fx.Node, Layouts] = field(default_factory=dict)
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    weights: dict[str, Layout] = field(default_factory=dict)
    makers: set[tuple[str, int]] = field(default_factory=set)
    """(weight, axis) whose entries along the axis make an output channel: what is gated to make it vanish."""
    scales: set[str] = field(default_factory=set)
    """Weights that scale what a normalisation has normalised, or shift it."""
    normalised: set[str] = field(default_factory=set)
    """Weights (and biases) that a normalisation follows: the loss does not see their scale."""
    features: bool = False
    """Whether the features of the model's inputs may go as well: axis 1, or the last of three."""
    inputs: dict[fx.Node, Block] = field(default_factory=dict)
    """Those features, per input."""
    reads: list[Read] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    """Operators without a rule, and how often each occurred."""
    resolved: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """After the walk: per atom its class; equal numbers vanish together."""

    # ---- what rules ask ----------------------------------------------------------------------------------------

    def sizes(self, node: Any) -> tuple[int, ...]:
        """A node's shape, with the example's numbers for free sizes."""
        if node in self.constants:
            return tuple(self.constants[node].shape)
        return tuple(hint(n) for n in node.meta["val"].shape)

    def layout(self, node: Any) -> Layout:
        """A tensor argument's layout; numbers have none."""
        found = self.layouts.get(node) if isinstance(node, fx.Node) else None
        if isinstance(found, Layout):
            return found
        if isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor):
            return Layout(self.sizes(node))
        return Layout(())

    def name(self, node: Any) -> str | None:
        """The weight that a node is, by name."""
        return node.target if isinstance(node, fx.Node) and node.op == "get_attr" else None  # type: ignore[return-value]

    def plain(self, node: fx.Node) -> Layout:
        """No labels: nothing along this tensor ever changes size."""
        return Layout(self.sizes(node))

    def plain_of(self, value: Any) -> Layout:
        """The same for one of several results."""
        return Layout(tuple(hint(n) for n in value.shape) if isinstance(value, Tensor) else ())

    def pin(self, blocks: Iterable[Block | None], why: str) -> None:
        """What is labelled so stays."""
        for block in blocks:
            if block is not None:
                self.ties.pin(block.ids, why)

    def refuse(self, node: fx.Node, why: str) -> Layouts:
        """Pin everything that goes in; nothing is known of what comes out."""
        for arg in node.all_input_nodes:
            found = self.layouts.get(arg, ())
            for layout in (found,) if isinstance(found, Layout) else found:
                self.pin(layout.blocks, why)
        value = node.meta.get("val")
        if isinstance(value, (tuple, list)):
            return tuple(Layout(tuple(hint(n) for n in v.shape)) for v in value if isinstance(v, Tensor))
        return self.plain(node) if isinstance(value, Tensor) else Layout(())

    def out(self, node: fx.Node, layout: Layout) -> Layout:
        """The layout, if its shape is the node's (a rule that erred costs compression only)."""
        if layout.shape == self.sizes(node):
            return layout
        self.pin(layout.blocks, f"{operator(node)} gives a shape that its rule did not foresee")
        return self.plain(node)

    # ---- the walk ----------------------------------------------------------------------------------------------

    def run(self) -> Tracer:
        """Every node once, in order."""
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                self._weight(node)
            elif node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
                self.layouts[node] = self._input(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.ties.place = self.ties.module = ""
                self.refuse(node, "is an output of the model")
        self.ties.place = self.ties.module = ""
        self.resolved = self._resolve()
        return self

    def _resolve(self) -> Tensor:
        """Classes, once every tensor that is labelled along several axes at once can shrink along one of them only."""
        classes = self.ties.classes()
        for found in list(self.layouts.values()):
            for layout in (found,) if isinstance(found, Layout) else found:
                for block in layout.blocks:
                    if len(block.axes) > 1:
                        classes = self._one_axis(block, classes)
        return classes

    def _one_axis(self, block: Block, classes: Tensor) -> Tensor:
        """Tie across all axes but the one that leaves the most to remove."""
        numbers, pinned = classes[block.ids], torch.zeros(self.ties.count, dtype=torch.bool)
        pinned[list(self.ties.reasons(classes))] = True
        best, score = 0, -1
        for i in range(numbers.ndim):
            lines = numbers.movedim(i, 0).flatten(1)
            if bool((lines == lines[:, :1]).all()):
                return classes
            free = int((~pinned[lines].any(1)).sum())
            if free > score:
                best, score = i, free
        lines = block.ids.movedim(best, 0).flatten(1)
        self.ties.tie(lines, lines[:, :1])
        return self.ties.classes()

    def _input(self, node: fx.Node) -> Layout:
        """An input of the model, its features labelled if they may go (once: a graph that selects some selects no fewer)."""
        shape = self.sizes(node)
        selected = any(operator(user) == "aten.index_select" for user in node.users)
        if not self.features or len(shape) < 2 or selected or not node.meta["val"].is_floating_point():
            return self.plain(node)
        axis = 2 if len(shape) == 3 else 1
        ids = self.ties.fresh(shape[axis])
        self.inputs[node] = Block((axis,), ids, unknown(ids))
        return Layout(shape, (self.inputs[node],))

    def _weight(self, node: fx.Node) -> None:
        theta = attribute(self.module, str(node.target))
        self.constants[node] = theta.detach()
        name = str(node.target)
        if name not in self.weights:
            blocks = []
            for axis, size in enumerate(theta.shape):
                if size > 1 and theta.is_floating_point():
                    ids = self.ties.fresh(size)
                    blocks.append(Block((axis,), ids, unknown(ids)))
            self.weights[name] = Layout(tuple(theta.shape), tuple(blocks))
        self.layouts[node] = self.weights[name]

    def _call(self, node: fx.Node) -> None:
        name = self.ties.place = operator(node)
        self.ties.module = module_of(node)
        tensors = [a for a in node.all_input_nodes if a in self.layouts]
        if name == "getitem":
            found = self.layouts.get(node.args[0])  # type: ignore[arg-type]
            if isinstance(found, tuple):
                self.layouts[node] = found[int(node.args[1])]  # type: ignore[arg-type]
            return
        if not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
            return  # arithmetic on sizes
        if tensors and all(a in self.constants for a in node.all_input_nodes) and isinstance(node.meta["val"], Tensor):
            self._fold(node)
        made = RULES.get(name)
        if made is None:
            if any(self.labelled(a) for a in tensors):
                self.unknown[name] = self.unknown.get(name, 0) + 1
            self.layouts[node] = self.refuse(node, f"goes into {name}, which has no rule")
        else:
            self.layouts[node] = made(self, node)

    def labelled(self, node: fx.Node) -> bool:
        found = self.layouts.get(node, ())
        return any(layout.blocks for layout in ((found,) if isinstance(found, Layout) else found))

    def _fold(self, node: fx.Node) -> None:
        """The value of what depends on weights only."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.constants[n])
        with torch.no_grad():
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(value, Tensor):
            self.constants[node] = value


def hint(size: Any) -> int:
    """A size as a number; a free one as the example had it."""
    return size if isinstance(size, int) else int(size.node.hint)


def operator(node: fx.Node) -> str:
    """`aten.linear` for any of its overloads; `getitem` for picking from a tuple."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet) if packet is not None else getattr(node.target, "__name__", str(node.target))


def module_of(node: fx.Node) -> str:
    """The dotted name of the module whose forward called the operator; empty for the model's own."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def attribute(module: Any, path: str) -> Tensor:
    """A weight by its dotted name."""
    for part in path.split("."):
        module = getattr(module, part)
    assert isinstance(module, Tensor)
    return module


def combine(fn: Callable[..., Any], *values: Tensor | float) -> Tensor:
    """`fn` of known values, NaN where one of them is not known."""
    made: Tensor = fn(*values).double()
    lost = ~made.isfinite()
    for value in values:
        if isinstance(value, Tensor):
            lost = lost | value.isnan()
    return torch.where(lost, math.nan, made)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An operator's argument, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def dims(node: fx.Node, position: int, rank: int, name: str = "dim") -> Sequence[int]:
    """An argument that names axes, none meaning all."""
    given = argument(node, position, name)
    if given is None or (isinstance(given, (list, tuple)) and not given):
        return range(rank)
    return [d % rank for d in (given if isinstance(given, (list, tuple)) else [given])]
