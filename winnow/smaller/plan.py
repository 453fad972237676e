"""Which channels can go without changing any output, and what of them must be folded into a bias.

A class of atoms may go if nothing pins it and every place that sums over it would not notice: its weights there are zero,
or what it emits is zero, or a constant that the bias behind can take up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from winnow.errors import TraceError
from winnow.trace.layout import Layout
from winnow.trace.tracer import Read, Tracer
from winnow.units import units_of

CONSTANT = "emits a constant that nothing behind it can take up"
BORDER = "emits a constant that zero padding makes uneven at the border"
LAST = "is the last of its layer"
ROUNDED = "makes a round number"


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """What goes: per atom, and per weight and axis what is kept."""

    gone: Tensor
    """Per atom, bool."""
    keep: Mapping[str, Mapping[int, Tensor]]
    """Weight name to axis to the indices that stay; axes that stay whole are not listed."""
    folds: Mapping[str, Tensor]
    """Weight name to what is added to it (before it is cut itself)."""
    kept: Mapping[str, int]
    """Reason to number of channels that are dead but stay."""
    pinned: Mapping[str, int]
    """Reason to number of channels that no zeros could remove."""
    inputs: Mapping[str, tuple[int, Tensor]]
    """Input of the graph to (axis, features that stay), where some go."""

    def kept_along(self, layout: Layout, axis: int) -> Tensor | None:
        """Indices of a tensor's axis that stay; None if all do."""
        block = layout.at(axis)
        if block is None:
            return None
        gone = self.gone[block.ids]
        i = block.axes.index(axis % len(layout.shape))
        others = [a for a in range(gone.ndim) if a != i]
        lost = gone.all(others) if others else gone
        return None if not bool(lost.any()) or _axis_of(gone) != i else (~lost).nonzero()[:, 0]


def _axis_of(gone: Tensor) -> int | None:
    """The axis along which whole slices are gone."""
    for i in range(gone.ndim):
        others = [a for a in range(gone.ndim) if a != i]
        lost = gone.all(others, keepdim=True) if others else gone
        if bool((lost.expand_as(gone) == gone).all()):
            return i
    return None


def plan(tracer: Tracer, round_to: int = 1) -> Plan:
    """The largest set of channels that can go, found from the weights as they are.

    `round_to` leaves some of them in, so that layers have a multiple of that many channels where they had more.
    """
    classes = tracer.resolved
    reasons = dict(tracer.ties.reasons(classes))
    made = _made(tracer, classes)
    free = made.clone()
    free[list(reasons)] = False
    held: dict[int, str] = {}
    while True:
        gone, why = _grow(tracer, classes, free)
        empty = _emptied(tracer, classes, gone)
        back = [empty] if empty is not None else _odd(tracer, classes, gone, round_to)
        if not back:
            break
        free[back] = False  # of a layer that would vanish, one channel stays
        held.update(dict.fromkeys(back, LAST if empty is not None else ROUNDED))
    dead = _dead(tracer, classes)
    atoms = gone[classes]
    return Plan(
        atoms,
        _keep(tracer, atoms),
        _folds(tracer, classes, gone),
        _count({**{k: why[k] for k in dead if k in why}, **held}),
        _count({k: reasons[k] for k in reasons if bool(made[k])}),
        _inputs(tracer, atoms),
    )


def keeping(tracer: Tracer, keep: Mapping[str, Mapping[int, Tensor]]) -> Plan:
    """A plan made before, in terms of the indices kept; nothing is folded, as the weights are to be filled in.

    Raises `TraceError` if this graph's ties do not allow it.
    """
    gone = torch.zeros(tracer.ties.count, dtype=torch.bool)
    for name, axes in keep.items():
        for axis, kept in axes.items():
            block = tracer.weights[name].alone(axis) if name in tracer.weights else None
            if block is None or not bool(((kept >= 0) & (kept < len(block.ids))).all()):
                raise TraceError(
                    f"{name} has no axis {axis} that could be cut so; the model is not the one that was saved"
                )
            lost = torch.ones(len(block.ids), dtype=torch.bool).index_fill_(0, kept, False)
            gone[tracer.resolved[block.ids[lost]]] = True
    atoms = gone[tracer.resolved]
    found = _keep(tracer, atoms)
    if {n: {a: k.tolist() for a, k in axes.items()} for n, axes in found.items()} != {
        n: {a: k.tolist() for a, k in axes.items()} for n, axes in keep.items()
    }:
        raise TraceError("the saved cut does not fit this model's graph; make_model must build the model as it was")
    return Plan(atoms, found, {}, {}, {}, _inputs(tracer, atoms))


def _inputs(tracer: Tracer, gone: Tensor) -> dict[str, tuple[int, Tensor]]:
    """Per input that loses features: (axis, those that stay)."""
    lost = {node.name: (block.axes[0], gone[block.ids]) for node, block in tracer.inputs.items()}
    return {name: (axis, (~marks).nonzero()[:, 0]) for name, (axis, marks) in lost.items() if bool(marks.any())}


def _made(tracer: Tracer, classes: Tensor) -> Tensor:
    """Classes that hold an output channel of some layer, or a feature of an input."""
    made = torch.zeros(tracer.ties.count, dtype=torch.bool)
    for features in tracer.inputs.values():
        made[classes[features.ids]] = True
    for name, axis in tracer.makers:
        block = tracer.weights[name].alone(axis)
        if block is not None:
            made[classes[block.ids]] = True
    return made


def _grow(tracer: Tracer, classes: Tensor, free: Tensor) -> tuple[Tensor, dict[int, str]]:
    """Removable classes: what is read by removed channels only is removable as well, so until nothing changes."""
    gone = torch.zeros_like(free)
    while True:
        bad = torch.zeros_like(free)
        why: dict[int, str] = {}
        for read in tracer.reads:
            noticed, reason = _noticed(read, classes, gone)
            numbers = classes[read.ids[noticed]]
            bad[numbers] = True
            for number, text in zip(
                numbers.tolist(), [reason[i] for i in noticed.nonzero()[:, 0].tolist()], strict=True
            ):
                if text:
                    why.setdefault(number, text)
        new = free & ~bad
        if torch.equal(new, gone):
            return gone, why
        gone = new


def _noticed(read: Read, classes: Tensor, gone: Tensor) -> tuple[Tensor, list[str]]:
    """Atoms whose removal this read would notice, with the reason where they are constant."""
    outs = read.outs >= 0
    alive = torch.ones(len(read.outs), dtype=torch.bool)
    alive[outs] = ~gone[classes[read.outs[outs]]]
    blind = (read.weight[alive] == 0).all(2).all(0)
    silent = read.value == 0
    constant = ~read.value.isnan()
    foldable = constant & (read.bias is not None) & (not read.edge)
    text = BORDER if read.edge and read.bias is not None else CONSTANT
    noticed = ~(blind | silent | foldable)
    return noticed, [text if c else "" for c in constant.tolist()]


def _emptied(tracer: Tracer, classes: Tensor, gone: Tensor) -> int | None:
    """A class to give back because some axis of some weight would be left with nothing."""
    for layout in tracer.weights.values():
        for block in layout.blocks:
            numbers = classes[block.ids]
            if bool(gone[numbers].all()):
                return int(numbers[0])
    return None


def _odd(tracer: Tracer, classes: Tensor, gone: Tensor, round_to: int) -> list[int]:
    """Classes to give back so that every layer of units has a round number."""
    back: list[int] = []
    for layer in units_of(tracer) if round_to > 1 else []:
        member = layer.members[0]
        block = tracer.weights[member.name].alone(member.axis)
        assert block is not None
        numbers = classes[block.ids[member.indices[:, 0]]]
        lost = numbers[gone[numbers]]
        back += lost[: -(len(numbers) - len(lost)) % round_to].tolist()
    return back


def _dead(tracer: Tracer, classes: Tensor) -> set[int]:
    """Classes that emit a constant wherever they are read."""
    constant: dict[int, bool] = {}
    for read in tracer.reads:
        for number, value in zip(classes[read.ids].tolist(), read.value.isnan().tolist(), strict=True):
            constant[number] = constant.get(number, True) and not value
    return {number for number, yes in constant.items() if yes}


def _keep(tracer: Tracer, gone: Tensor) -> dict[str, dict[int, Tensor]]:
    keep: dict[str, dict[int, Tensor]] = {}
    for name, layout in tracer.weights.items():
        for block in layout.blocks:
            lost = gone[block.ids]
            if bool(lost.any()):
                keep.setdefault(name, {})[block.axes[0]] = (~lost).nonzero()[:, 0]
    return keep


def _folds(tracer: Tracer, classes: Tensor, gone: Tensor) -> dict[str, Tensor]:
    """What the removed constants contributed, per weight that takes it up."""
    folds: dict[str, Tensor] = {}
    for read in tracer.reads:
        chosen = gone[classes[read.ids]] & ~read.value.isnan() & (read.value != 0)
        if read.bias is None or not bool(chosen.any()):
            continue
        delta = read.sign * torch.einsum("onk,n->o", read.weight[:, chosen], read.value[chosen])
        folds[read.bias] = folds.get(read.bias, torch.zeros_like(delta)) + delta
    return folds


def _count(reasons: Mapping[int, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for why in reasons.values():
        counts[why] = counts.get(why, 0) + 1
    return counts


def new_shape(plan: Plan, tracer: Tracer, node: fx.Node) -> list[int | None]:
    """Per axis of a node's tensor the size it will have, None where it does not change."""
    layout = tracer.layout(node)
    kept = [plan.kept_along(layout, axis) for axis in range(len(layout.shape))]
    return [None if k is None else len(k) for k in kept]
