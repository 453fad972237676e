"""Operators that sum over channels: linear, convolution, matrix products, attention. Here channels are made and read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from winnow.trace.layout import Block, Layout, unknown
from winnow.trace.reshape import collapse, merge
from winnow.trace.tracer import Layouts, Read, Tracer, argument, operator, rule


def contract(
    tracer: Tracer,
    node: fx.Node,
    source: tuple[Layout, int],
    weight: tuple[Any, int, int],
    bias: Any,
    padded: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Layouts:
    """`source` (layout, axis) summed against `weight` (node, in axis, out axis); the output's axis takes the source's place.

    `shape` is the output's, where it is not the node's.
    """
    x, w = source[0], tracer.layout(weight[0])
    axis = source[1] % len(x.shape)
    inner, made = w.alone(weight[1]), w.alone(weight[2])
    matrix = tracer.constants.get(weight[0])
    shape = tracer.sizes(node) if shape is None else shape
    incoming = x.at(axis)
    rest = tuple(b.varying() for b in x.blocks if axis not in b.axes)
    count = shape[axis]
    if matrix is None or (incoming is not None and len(incoming.axes) > 1):
        tracer.pin([incoming, inner, made], f"goes into {operator(node)} in a way that has no rule")
        return Layout(shape)
    effect = matrix.detach().double().movedim((weight[2], weight[1]), (0, 1)).unsqueeze(-1).flatten(2)
    value = unknown(torch.empty(count))
    offset = tracer.constants.get(bias)
    start = torch.zeros(count, dtype=torch.float64) if offset is None else offset.double()
    known = incoming.value if incoming is not None and inner is not None else unknown(torch.empty(effect.shape[1]))
    value = _outcome(effect, known, start, padded)
    if incoming is not None and inner is not None:
        tracer.ties.tie(incoming.ids, inner.ids)
        outs = made.ids if made is not None else torch.full((count,), -1)
        name, sign = _absorber(tracer, node, bias)
        tracer.reads.append(Read(node, incoming.ids, incoming.value, outs, effect, name, sign, padded))
    else:
        tracer.pin([incoming, inner], f"meets a tensor without labels in {operator(node)}")
    ends = {weight[1] % len(w.shape), weight[2] % len(w.shape)}
    tracer.pin([b for b in w.blocks if not set(b.axes) & ends], "is an axis of a kernel")
    if made is None:
        return Layout(shape, rest)
    _mark(tracer, weight[0], weight[2])
    own = tracer.layout(bias).alone(0) if bias is not None else None
    if own is not None:
        tracer.ties.tie(made.ids, own.ids)
        _mark(tracer, bias, 0)
    return Layout(shape, (*rest, Block((axis,), made.ids, value)))


def _outcome(effect: Tensor, known: Tensor, start: Tensor, padded: bool) -> Tensor:
    """What each output is for every input, or NaN."""
    open_ = known.isnan()
    varies = (effect[:, open_] != 0).flatten(1).any(1)
    closed = effect[:, ~open_]
    fixed = torch.einsum("onk,n->o", closed, known[~open_])
    if padded:
        varies |= ((closed != 0) & (known[~open_] != 0)[:, None]).flatten(1).any(1)
    return torch.where(varies, math.nan, start + fixed)


def _absorber(tracer: Tracer, node: fx.Node, bias: Any) -> tuple[str | None, float]:
    """Where a constant contribution can go: the bias, or the running mean behind."""
    if bias is not None:
        return tracer.name(bias), 1.0
    users = list(node.users)
    if len(users) == 1 and "batch_norm" in operator(users[0]):
        return tracer.name(users[0].args[3]), -1.0
    return None, 1.0


def _mark(tracer: Tracer, node: Any, axis: int) -> None:
    name = tracer.name(node)
    if name is not None:
        tracer.makers.add((name, axis))


@rule("aten.linear")
def linear(tracer: Tracer, node: fx.Node) -> Layouts:
    return contract(tracer, node, (tracer.layout(node.args[0]), -1), (node.args[1], 1, 0), argument(node, 2, "bias"))


@rule("aten.addmm")
def addmm(tracer: Tracer, node: fx.Node) -> Layouts:
    """bias + x @ W, W of shape (in, out): the convolution-like linear of GPT-2."""
    plain = argument(node, 3, "beta", 1) == 1 and argument(node, 4, "alpha", 1) == 1
    if not plain or node.args[2] not in tracer.constants:
        return tracer.refuse(node, "goes into aten.addmm in a way that has no rule")
    return contract(tracer, node, (tracer.layout(node.args[1]), -1), _matrix(tracer, node.args[2]), node.args[0])


def _matrix(tracer: Tracer, node: Any) -> tuple[Any, int, int]:
    """(weight, in axis, out axis) of a second factor; a transposed weight is looked through, so that it counts as made."""
    if operator(node) in ("aten.t", "aten.transpose", "aten.permute") and tracer.name(node.args[0]) is not None:
        return node.args[0], 1, 0
    return node, 0, 1


@rule("aten.mm", "aten.matmul", "aten.bmm")
def matmul(tracer: Tracer, node: fx.Node) -> Layouts:
    """A product with a weight is a linear layer; one of two activations ties their batch axes (heads)."""
    a, b = node.args[0], node.args[1]
    left, right = tracer.layout(a), tracer.layout(b)
    if b in tracer.constants and len(right.shape) == 2 and a not in tracer.constants:
        return contract(tracer, node, (left, -1), _matrix(tracer, b), None)
    if len(left.shape) < 2 or len(right.shape) < 2:
        return tracer.refuse(node, f"goes into {operator(node)} in a way that has no rule")
    rank, shape = len(tracer.sizes(node)), tracer.sizes(node)
    left, right = _whole_heads(tracer, left, -1), _whole_heads(tracer, right, -2)
    outer = {"left": rank - 2, "right": rank - 1}
    heads = merge(_batch(left), _batch(right), tracer.ties)
    blocks = [Block(b.axes, b.ids, unknown(b.ids)) for b in heads.blocks]
    for layout, side in ((left, "left"), (right, "right")):
        block = layout.alone(-2 if side == "left" else -1)
        if block is not None:
            blocks.append(Block((outer[side],), block.ids, unknown(block.ids)))
    if len(left.shape) == len(right.shape):  # a head whose values are all zero gives zero
        blocks = [zeroed(b, (left, right)) for b in blocks]
    return tracer.out(node, Layout(shape, tuple(blocks)))


def zeroed(block: Block, factors: tuple[Layout, Layout]) -> Block:
    """Nought wherever one of two factors is, along a batch axis that they share."""
    value = block.value
    for layout in factors:
        for other in layout.blocks:
            if other.axes == block.axes and other.ids.shape == block.ids.shape:
                value = torch.where(other.value == 0, other.value, value)
    return Block(block.axes, block.ids, value)


def _batch(layout: Layout) -> Layout:
    rank = len(layout.shape)
    kept = tuple(b for b in layout.blocks if all(a < rank - 2 for a in b.axes))
    return Layout((*layout.shape[:-2], 1, 1), kept)


def _whole_heads(tracer: Tracer, layout: Layout, summed: int) -> Layout:
    """Labels over (head, entry) reduced to the head, which lives or dies whole; the summed axis may not shrink alone."""
    rank, blocks = len(layout.shape), []
    for block in layout.blocks:
        matrix = [a for a in block.axes if a >= rank - 2]
        if not matrix:
            blocks.append(block)
        elif len(matrix) == len(block.axes):
            if summed % rank in matrix:
                tracer.pin([block], "is summed over between two activations")
            else:
                blocks.append(block)
        else:
            whole = collapse(block, matrix, tracer.ties)
            if whole is not None:
                blocks.append(whole)
    return Layout(layout.shape, tuple(blocks))


@rule("aten.scaled_dot_product_attention")
def attention(tracer: Tracer, node: fx.Node) -> Layouts:
    """Heads are tied over Q, K and V (several of Q to one of K and V under grouped queries); a head lives or dies whole."""
    q, k, v = (tracer.layout(a) for a in node.args[:3])
    shape, mask = tracer.sizes(node), argument(node, 3, "attn_mask")
    bias = tracer.layout(mask)
    per_head = len(bias.shape) > 2 and bias.shape[-3] > 1
    if len(shape) != 4 or (per_head and bias.alone(-3) is None):
        return tracer.refuse(node, "goes into attention with a mask per head that has no labels")
    heads: list[Block | None] = []
    for layout in (q, k, v):
        others = [b for b in layout.blocks if 1 not in b.axes]
        tracer.pin(others, "is an axis of attention other than the heads")
        block = layout.at(1)
        inner = [] if block is None else [a for a in block.axes if a != 1]
        heads.append(None if block is None else collapse(block, inner, tracer.ties) if inner else block)
    if any(h is None or h.axes != (1,) for h in heads):
        tracer.pin([*heads, q.at(1), k.at(1), v.at(1)], "a head's Q, K and V are not all labelled")
        return tracer.plain(node)
    first, *rest = (h.ids for h in heads if h is not None)
    if per_head:
        rest.append(bias.at(-3).ids)  # type: ignore[union-attr]
    for ids in rest:
        tracer.ties.tie(first, ids.repeat_interleave(len(first) // len(ids)))
    values = heads[2]
    assert values is not None
    value = values.value.repeat_interleave(len(first) // len(values.ids))
    zero = torch.where(value == 0, value, math.nan) if mask is not None else value  # a masked-out row is not a mean
    return tracer.out(node, Layout(shape, (Block((1,), first, zero),)))


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(tracer: Tracer, node: fx.Node) -> Layouts:
    padding, groups = argument(node, 4, "padding", 0), int(argument(node, 6, "groups", 1))
    padded = (isinstance(padding, str) and padding != "valid") or (not isinstance(padding, str) and _any(padding))
    if groups == 1:
        return contract(
            tracer, node, (tracer.layout(node.args[0]), 1), (node.args[1], 1, 0), argument(node, 2, "bias"), padded
        )
    return _grouped(tracer, node, groups, padded)


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed(tracer: Tracer, node: fx.Node) -> Layouts:
    if int(argument(node, 6, "groups", 1)) != 1:
        return tracer.refuse(node, "goes into a grouped transposed convolution, which has no rule")
    # how many taps meet at a pixel depends on the pixel, so a constant is treated as if there were a border
    return contract(
        tracer, node, (tracer.layout(node.args[0]), 1), (node.args[1], 0, 1), argument(node, 2, "bias"), True
    )


def _any(padding: Any) -> bool:
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _grouped(tracer: Tracer, node: fx.Node, groups: int, padded: bool) -> Layouts:
    """Depthwise and grouped convolutions: a group's inputs and outputs live or die together."""
    x, w = tracer.layout(node.args[0]), tracer.layout(node.args[1])
    shape, bias = tracer.sizes(node), argument(node, 2, "bias")
    incoming, made = x.alone(1), w.alone(0)
    matrix = tracer.constants.get(node.args[1])  # type: ignore[arg-type]
    if incoming is None or made is None or matrix is None:
        tracer.pin([x.at(1), made, w.at(1)], "goes into a grouped convolution without labels")
        return Layout(shape)
    tracer.pin([b for b in w.blocks if 0 not in b.axes], "is inside a group of a grouped convolution")
    inputs, outputs = incoming.ids.view(groups, -1), made.ids.view(groups, -1)
    tracer.ties.tie(inputs, inputs[:, :1])
    tracer.ties.tie(outputs, inputs[:, :1])
    effect = matrix.double().flatten(1).view(groups, outputs.shape[1], inputs.shape[1], -1)
    known, offset = incoming.value.view(groups, -1), tracer.constants.get(bias)
    start = torch.zeros(shape[1], dtype=torch.float64) if offset is None else offset.double()
    value = torch.cat([_outcome(effect[g], known[g], start.view(groups, -1)[g], padded) for g in range(groups)])
    _mark(tracer, node.args[1], 0)
    own = tracer.layout(bias).alone(0) if bias is not None else None
    if own is not None:
        tracer.ties.tie(made.ids, own.ids)
        _mark(tracer, bias, 0)
    rest = tuple(b.varying() for b in x.blocks if 1 not in b.axes)
    return tracer.out(node, Layout(shape, (*rest, Block((1,), made.ids, value))))


@rule("aten.embedding")
def embedding(tracer: Tracer, node: fx.Node) -> Layouts:
    """One row per token: the rows stay, the columns are channels."""
    w, shape = tracer.layout(node.args[0]), tracer.sizes(node)
    tracer.pin([w.at(0)], "is a row of an embedding")
    made, table = w.alone(1), tracer.constants.get(node.args[0])  # type: ignore[arg-type]
    if made is None or table is None:
        return tracer.plain(node)
    _mark(tracer, node.args[0], 1)
    value = torch.where((table == table[0]).all(0), table[0].double(), math.nan)
    return Layout(shape, (Block((len(shape) - 1,), made.ids, value),))
