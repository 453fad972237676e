"""Operators that move entries about: views, permutations, slices, joins."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from winnow.trace import reshape
from winnow.trace.layout import Block, Layout, unknown
from winnow.trace.tracer import Layouts, Tracer, argument, hint, operator, rule


@rule(
    "aten.view",
    "aten.reshape",
    "aten.flatten",
    "aten.unflatten",
    "aten._unsafe_view",
    "aten.squeeze",
    "aten.unsqueeze",
    "aten.view_as",
    "aten.reshape_as",
)
def view(tracer: Tracer, node: fx.Node) -> Layouts:
    return reshape.view(tracer.layout(node.args[0]), tracer.sizes(node), tracer.ties)


@rule("aten.permute", "aten.transpose", "aten.t", "aten.movedim", "aten.swapaxes", "aten.numpy_T")
def permute(tracer: Tracer, node: fx.Node) -> Layouts:
    x = tracer.layout(node.args[0])
    rank, name = len(x.shape), operator(node)
    order = list(range(rank))
    if name == "aten.permute":
        order = [int(a) % rank for a in node.args[1]]  # type: ignore[union-attr, arg-type]
    elif name in ("aten.transpose", "aten.swapaxes"):
        i, j = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
        order[i], order[j] = j, i
    elif name in ("aten.t", "aten.numpy_T"):
        order.reverse()
    else:
        return tracer.refuse(node, f"goes into {name}, which has no rule")
    return reshape.permute(x, order)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(tracer: Tracer, node: fx.Node) -> Layouts:
    """Axes of length one are repeated, and new ones put in front; labels stay with their axes."""
    x, shape = tracer.layout(node.args[0]), tracer.sizes(node)
    lag = len(shape) - len(x.shape)
    return Layout(shape, tuple(Block(tuple(a + lag for a in b.axes), b.ids, b.value) for b in x.blocks))


@rule("aten.repeat", "aten.tile")
def repeat(tracer: Tracer, node: fx.Node) -> Layouts:
    x, shape = tracer.layout(node.args[0]), tracer.sizes(node)
    lag = len(shape) - len(x.shape)
    blocks = []
    for block in x.blocks:
        times = [shape[a + lag] // x.shape[a] for a in block.axes]
        moved = tuple(a + lag for a in block.axes)
        blocks.append(Block(moved, block.ids.repeat(times), block.value.repeat(times)))
    return Layout(shape, tuple(blocks))


@rule("aten.repeat_interleave")
def repeat_interleave(tracer: Tracer, node: fx.Node) -> Layouts:
    times, axis = argument(node, 1, "repeats"), argument(node, 2, "dim")
    x = tracer.layout(node.args[0])
    if not isinstance(times, int) or axis is None:
        return tracer.refuse(node, "goes into aten.repeat_interleave in a way that has no rule")
    pick = torch.arange(x.shape[axis % len(x.shape)]).repeat_interleave(times)
    return tracer.out(node, reshape.index(x, axis, pick, tracer.ties))


@rule("aten.cat", "aten.concat")
def cat(tracer: Tracer, node: fx.Node) -> Layouts:
    parts = [tracer.layout(a) for a in node.args[0]]  # type: ignore[union-attr]
    parts = [p for p in parts if p.shape != (0,)]
    return tracer.out(node, reshape.cat(parts, int(argument(node, 1, "dim", 0)), tracer.ties))


@rule("aten.stack")
def stack(tracer: Tracer, node: fx.Node) -> Layouts:
    parts = [tracer.layout(a) for a in node.args[0]]  # type: ignore[union-attr]
    axis = int(argument(node, 1, "dim", 0)) % (len(parts[0].shape) + 1)
    lifted = []
    for part in parts:
        shape = (*part.shape[:axis], 1, *part.shape[axis:])
        blocks = tuple(Block(tuple(a + (a >= axis) for a in b.axes), b.ids, b.value) for b in part.blocks)
        lifted.append(Layout(shape, blocks))
    return tracer.out(node, reshape.cat(lifted, axis, tracer.ties))


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind", "aten.tensor_split")
def split(tracer: Tracer, node: fx.Node) -> Layouts:
    x, name = tracer.layout(node.args[0]), operator(node)
    sizes = [tuple(hint(n) for n in v.shape) for v in node.meta["val"]]
    axis = int(argument(node, 1 if name == "aten.unbind" else 2, "dim", 0)) % len(x.shape)
    made, start = [], 0
    for i, shape in enumerate(sizes):
        pick: Any = i if name == "aten.unbind" else torch.arange(start, start + shape[axis])
        start += 1 if name == "aten.unbind" else shape[axis]
        made.append(reshape.index(x, axis, pick, tracer.ties))
    return tuple(made)


@rule("aten.select")
def select(tracer: Tracer, node: fx.Node) -> Layouts:
    x, axis, pick = tracer.layout(node.args[0]), int(node.args[1]), node.args[2]  # type: ignore[arg-type]
    if not isinstance(pick, int):
        return tracer.refuse(node, "is picked from by an index that depends on the input")
    size = x.shape[axis % len(x.shape)]
    return tracer.out(node, reshape.index(x, axis, pick % size, tracer.ties))


@rule("aten.slice", "aten.narrow")
def cut(tracer: Tracer, node: fx.Node) -> Layouts:
    x, axis = tracer.layout(node.args[0]), int(argument(node, 1, "dim", 0))
    size, shape = x.shape[axis % len(x.shape)], tracer.sizes(node)
    if shape == x.shape:
        return x
    start, step = argument(node, 2, "start", 0) or 0, argument(node, 4, "step", 1)
    if not isinstance(start, int) or not isinstance(step, int):
        return x if x.at(axis) is None else tracer.refuse(node, "is cut at a place that depends on the input")
    start = min(start + size if start < 0 else start, size)
    pick = start + step * torch.arange(shape[axis % len(shape)])
    return tracer.out(node, reshape.index(x, axis, pick, tracer.ties))


@rule("aten.index_select")
def index_select(tracer: Tracer, node: fx.Node) -> Layouts:
    x, axis = tracer.layout(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    tracer.pin([x.at(axis)], "is picked from by an index")
    blocks = tuple(b for b in x.blocks if axis % len(x.shape) not in b.axes)
    return tracer.out(node, Layout(tracer.sizes(node), blocks))


@rule("aten.constant_pad_nd", "aten.pad")
def pad(tracer: Tracer, node: fx.Node) -> Layouts:
    """New entries along a labelled axis stay; a constant keeps its value only if the padding has the same."""
    x, shape = tracer.layout(node.args[0]), tracer.sizes(node)
    mode, fill = "constant", float(argument(node, 2, "value", 0.0) or 0.0) if operator(node) != "aten.pad" else 0.0
    if operator(node) == "aten.pad":
        mode, fill = argument(node, 2, "mode", "constant"), float(argument(node, 3, "value", 0.0) or 0.0)
    widths = list(argument(node, 1, "pad"))
    blocks = []
    for block in x.blocks:
        grown = [a for a in block.axes if shape[a] != x.shape[a]]
        if grown and (len(block.axes) > 1 or mode != "constant"):
            tracer.pin([block], "is padded along an axis that is labelled together with another")
            continue
        if not grown:
            value = block.value if mode != "constant" else torch.where(block.value == fill, block.value, math.nan)
            blocks.append(Block(block.axes, block.ids, value))
            continue
        axis = block.axes[0]
        before = widths[2 * (len(shape) - 1 - axis)]
        after = shape[axis] - x.shape[axis] - before
        if before < 0 or after < 0:
            return tracer.refuse(node, "is cut by a negative padding")
        ends = []
        for count in (before, after):
            ids = tracer.ties.fresh(count)
            tracer.ties.pin(ids, "is padding")
            ends.append((ids, torch.full_like(unknown(ids), fill)))
        (left, low), (right, high) = ends
        blocks.append(Block(block.axes, torch.cat([left, block.ids, right]), torch.cat([low, block.value, high])))
    return tracer.out(node, Layout(shape, tuple(blocks)))


@rule(
    "aten.sym_size",
    "aten.arange",
    "aten.zeros",
    "aten.ones",
    "aten.full",
    "aten.scalar_tensor",
    "aten.eye",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.empty",
    "aten._assert_tensor_metadata",
)
def fresh(tracer: Tracer, node: fx.Node) -> Layouts:
    """Made from nothing: no labels. (Its size, if it follows a labelled axis, is caught where the two meet.)"""
    return tracer.plain_of(node.meta["val"])


@rule("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like")
def like(tracer: Tracer, node: fx.Node) -> Layouts:
    x = tracer.layout(node.args[0])
    return Layout(x.shape, tuple(b.varying() for b in x.blocks))
