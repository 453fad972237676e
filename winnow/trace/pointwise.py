"""Operators entry by entry, normalisations, reductions and pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from winnow.trace.layout import Block, Layout
from winnow.trace.reshape import grid, merge
from winnow.trace.tracer import Layouts, Tracer, argument, combine, dims, operator, rule

UNARY = """
abs alias clamp clamp_min clamp_max clone contiguous cos detach dropout elu erf exp expm1 gelu hardshrink
hardsigmoid hardswish hardtanh leaky_relu lift_fresh_copy log log1p log_sigmoid mish neg reciprocal relu relu6
rsqrt selu sigmoid silu sin softplus softshrink softsign sqrt square tanh threshold to _to_copy
feature_dropout alpha_dropout celu positive sign floor ceil round logical_not isnan native_dropout type_as
""".split()  # noqa: SIM905 - a table, not a line per word
BINARY = """
add sub mul div pow maximum minimum rsub eq ne lt le gt ge logical_and logical_or bitwise_and atan2 fmod
remainder floor_divide true_divide where masked_fill lerp addcmul addcdiv
""".split()  # noqa: SIM905 - a table, not a line per word


@rule(*(f"aten.{name}" for name in UNARY))
def unary(tracer: Tracer, node: fx.Node) -> Layouts:
    x = tracer.layout(node.args[0])
    others = [a for a in node.all_input_nodes if a is not node.args[0] and tracer.labelled(a)]
    if others or not isinstance(node.args[0], fx.Node):
        return tracer.refuse(node, f"goes into {operator(node)} in a way that has no rule")
    quiet = operator(node) in (
        "aten.type_as",
        "aten.to",
        "aten._to_copy",
        "aten.dropout",
        "aten.native_dropout",
        "aten.feature_dropout",
        "aten.alpha_dropout",
        "aten.contiguous",
        "aten.clone",
        "aten.alias",
    )

    def apply(value: Tensor) -> Tensor:
        if quiet:
            return value
        return combine(lambda v: node.target(v, *node.args[1:], **node.kwargs), value)  # type: ignore[operator]

    simple = not any(isinstance(a, fx.Node) for a in node.args[1:]) and node.meta["val"].is_floating_point()
    blocks = tuple(Block(b.axes, b.ids, apply(b.value)) if simple else b.varying() for b in x.blocks)
    return tracer.out(node, Layout(x.shape, blocks))


@rule(*(f"aten.{name}" for name in BINARY))
def binary(tracer: Tracer, node: fx.Node) -> Layouts:
    """Labels of all operands are tied; a known value survives next to a number, another known value, or times zero."""
    parts = [a for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), Tensor)]
    layouts = [tracer.layout(a) for a in parts]
    joined = layouts[0]
    for other in layouts[1:]:
        joined = merge(joined, other, tracer.ties)
    if operator(node) in ("aten.add", "aten.sub"):
        for part, layout in zip(parts, layouts, strict=True):
            added(tracer, part, layout, len(joined.shape), joined)
    blocks = tuple(Block(b.axes, b.ids, _value(tracer, node, b, parts, layouts, joined)) for b in joined.blocks)
    return tracer.out(node, Layout(joined.shape, blocks))


def added(tracer: Tracer, part: fx.Node, layout: Layout, rank: int, joined: Layout) -> None:
    """A weight that is added to a channel (a position embedding) makes it: it has to be zero too for the channel to vanish."""
    name, lag = tracer.name(part), rank - len(layout.shape)
    if name is None or part not in tracer.constants:
        return
    axes = {a for block in joined.blocks for a in block.axes}
    tracer.makers.update((name, b.axes[0]) for b in layout.blocks if len(b.axes) == 1 and b.axes[0] + lag in axes)


def _even(const: Tensor, axis: int) -> Tensor:
    """Per index of an axis, the one value that a weight has there, or NaN if it has several."""
    rows = const.double().movedim(axis, 0).flatten(1)
    return torch.where((rows == rows[:, :1]).all(1), rows[:, 0], math.nan)


def _value(
    tracer: Tracer, node: fx.Node, block: Block, parts: list[fx.Node], layouts: list[Layout], joined: Layout
) -> Tensor:
    sizes = [joined.shape[a] for a in block.axes]
    seen: list[Tensor | None] = []
    for part, layout in zip(parts, layouts, strict=True):
        lag = len(joined.shape) - len(layout.shape)
        own = [b for b in layout.blocks if {a + lag for a in b.axes} <= set(block.axes)]
        whole = len(own) == 1 == len(layout.blocks)
        const = tracer.constants.get(part)
        if own and whole:
            moved = Block(tuple(a + lag for a in own[0].axes), own[0].ids, own[0].value)
            seen.append(grid(moved, block.axes, sizes)[1])
        elif const is not None and const.numel() == 1:
            seen.append(const.double().reshape([1] * len(sizes)).expand(sizes))
        else:
            seen.append(None)
        if const is not None and own and whole and const.numel() == math.prod(own[0].ids.shape):
            spread = const.double().reshape(own[0].ids.shape)
            moved = Block(tuple(a + lag for a in own[0].axes), own[0].ids, spread)
            seen[-1] = grid(moved, block.axes, sizes)[1]
        elif const is not None and len(own) == 1 and len(own[0].axes) == 1:
            moved = Block((own[0].axes[0] + lag,), own[0].ids, _even(const, own[0].axes[0]))
            seen[-1] = grid(moved, block.axes, sizes)[1]
    name = operator(node)
    if name == "aten.mul":  # nought times anything finite is nought
        known = [s for s in seen if s is not None]
        zero = torch.stack([s == 0 for s in known]).any(0) if known else torch.zeros(sizes, dtype=torch.bool)
    else:
        zero = torch.zeros(sizes, dtype=torch.bool)
    if any(s is None for s in seen) or name in ("aten.where", "aten.masked_fill"):
        return torch.where(zero, torch.zeros((), dtype=torch.float64), math.nan)
    args = iter(seen)
    filled = [next(args) if a in parts else a for a in node.args]
    made = combine(lambda *v: node.target(*v, **node.kwargs), *filled)  # type: ignore[operator, arg-type]
    return torch.where(zero, 0.0, made)


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(tracer: Tracer, node: fx.Node) -> Layouts:
    x, w = tracer.layout(node.args[0]), tracer.layout(node.args[1])
    block, own = x.alone(1), w.alone(0)
    if block is not None and own is not None:
        tracer.ties.tie(block.ids, own.ids)
    else:
        tracer.pin([own, block], "goes into aten.prelu without labels")
    return Layout(x.shape, tuple(Block(b.axes, b.ids, torch.where(b.value == 0, b.value, math.nan)) for b in x.blocks))


# ---- normalisations ----------------------------------------------------------------------------------------------


@rule("aten._native_batch_norm_legit_no_training", "aten.batch_norm", "aten._native_batch_norm_legit")
def batch_norm(tracer: Tracer, node: fx.Node) -> Layouts:
    """In eval mode, an affine map per channel; its weight and bias are what to penalise, as what is in front is rescaled."""
    x, eps = tracer.layout(node.args[0]), float(node.args[-1 if operator(node) != "aten.batch_norm" else -2])  # type: ignore[arg-type]
    weights, block = node.args[1:5], x.alone(1)
    for arg in weights:
        own = tracer.layout(arg).alone(0)
        if own is not None and block is not None:
            tracer.ties.tie(block.ids, own.ids)
        else:
            tracer.pin([own, x.at(1)], "goes into a batch normalisation without labels")
    layouts = [tracer.plain_of(v) for v in _values(node)]
    if block is None or any(a is not None and a not in tracer.constants for a in weights):
        return tuple(layouts) if len(layouts) > 1 else layouts[0]
    w, b, mean, var = (None if a is None else tracer.constants[a].double() for a in weights)  # type: ignore[index]
    _scaled(tracer, node, weights)
    scale = torch.ones_like(block.value) if w is None else w
    shift = torch.zeros_like(block.value) if b is None else b
    if mean is None or var is None or (operator(node) == "aten.batch_norm" and node.args[5]):  # of each batch its own
        value = torch.where(scale == 0, shift, math.nan)
    else:
        value = torch.where(scale == 0, shift, (block.value - mean) * (var + eps).rsqrt() * scale + shift)
    rest = tuple(o.varying() for o in x.blocks if o is not block)
    layouts[0] = Layout(x.shape, (*rest, Block((1,), block.ids, value)))
    return tuple(layouts) if len(layouts) > 1 else layouts[0]


def _values(node: fx.Node) -> list[Any]:
    value = node.meta["val"]
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _scaled(tracer: Tracer, node: fx.Node, weights: Any) -> None:
    """Remember what scales here, and whose scale is lost here."""
    for arg in weights[:2]:
        name = tracer.name(arg)
        if name is not None:
            tracer.makers.add((name, 0))
            tracer.scales.add(name)
    source = node.args[0]
    if (
        isinstance(source, fx.Node)
        and source.op == "call_function"
        and len(source.users) == 1
        and weights[0] is not None
    ):
        for arg in source.args[1:3]:
            name = tracer.name(arg)
            if name is not None and ("aten.conv" in operator(source) or operator(source) == "aten.linear"):
                tracer.normalised.add(name)


@rule("aten.instance_norm")
def instance_norm(tracer: Tracer, node: fx.Node) -> Layouts:
    x = tracer.layout(node.args[0])
    block = x.alone(1)
    for arg in node.args[1:5]:
        own = tracer.layout(arg).alone(0)
        if own is not None and block is not None:
            tracer.ties.tie(block.ids, own.ids)
        else:
            tracer.pin([own, x.at(1)], "goes into an instance normalisation without labels")
    return Layout(x.shape, tuple(b.varying() for b in x.blocks))


@rule("aten.layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def layer_norm(tracer: Tracer, node: fx.Node) -> Layouts:
    """A mean over channels changes with their number: the channels it is taken over stay."""
    x = tracer.layout(node.args[0])
    shape = argument(node, 1, "normalized_shape")
    over = range(len(x.shape) - len(shape), len(x.shape))
    why = f"is normalised over by {operator(node)}, whose mean depends on the number of channels"
    tracer.pin([b for b in x.blocks if set(b.axes) & set(over)], why)
    for arg in node.args[2:4]:
        tracer.pin(tracer.layout(arg).blocks, why)
    return tracer.out(node, Layout(x.shape, tuple(b.varying() for b in x.blocks if not set(b.axes) & set(over))))


@rule("aten.group_norm")
def group_norm(tracer: Tracer, node: fx.Node) -> Layouts:
    """Whole groups may go; one alone is a mean over all channels, whose number may not change."""
    x, groups = tracer.layout(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    weights = (argument(node, 2, "weight"), argument(node, 3, "bias"))
    block = x.alone(1)
    if groups == 1 or block is None:
        return tracer.refuse(
            node, "is normalised over by aten.group_norm, whose mean depends on the number of channels"
        )
    ids = block.ids.view(groups, -1)
    tracer.ties.tie(ids, ids[:, :1])
    for arg in weights:
        own = tracer.layout(arg).alone(0)
        if own is not None:
            tracer.ties.tie(block.ids, own.ids)
        elif arg is not None:
            tracer.pin([block], "goes into a group normalisation without labels")
    scale, shift = (None if a is None else tracer.constants.get(a) for a in weights)
    _scaled(tracer, node, weights)
    value = torch.full_like(block.value, math.nan)
    if scale is not None:
        value = torch.where(scale.double() == 0, 0.0 if shift is None else shift.double(), value)
    rest = tuple(b.varying() for b in x.blocks if b is not block)
    return tracer.out(node, Layout(x.shape, (*rest, Block((1,), block.ids, value))))


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.cumsum", "aten.sort", "aten.flip")
def along(tracer: Tracer, node: fx.Node) -> Layouts:
    """Something over whole axes; labels along others pass, those along these stay."""
    x = tracer.layout(node.args[0])
    over = set(dims(node, 1, len(x.shape)))
    tracer.pin([b for b in x.blocks if set(b.axes) & over], f"is an axis that {operator(node)} goes along")
    return tracer.out(node, Layout(x.shape, tuple(b.varying() for b in x.blocks if not set(b.axes) & over)))


# ---- reductions and pooling --------------------------------------------------------------------------------------


@rule("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.var", "aten.std", "aten.norm", "aten.linalg_vector_norm")
def reduction(tracer: Tracer, node: fx.Node) -> Layouts:
    """Over axes without labels; a mean or a maximum of a constant is the constant."""
    x, name = tracer.layout(node.args[0]), operator(node)
    position = 2 if name in ("aten.norm", "aten.linalg_vector_norm") else 1
    over = set(dims(node, position, len(x.shape)))
    keep = len(tracer.sizes(node)) == len(x.shape)
    tracer.pin([b for b in x.blocks if set(b.axes) & over], f"is summed over by {name}")
    stays = name in ("aten.mean", "aten.amax", "aten.amin")
    blocks = []
    for block in x.blocks:
        if set(block.axes) & over:
            continue
        axes = block.axes if keep else tuple(a - sum(o < a for o in over) for a in block.axes)
        value = block.value if stays else torch.where(block.value == 0, block.value, math.nan)
        blocks.append(Block(axes, block.ids, value))
    return tracer.out(node, Layout(tracer.sizes(node), tuple(blocks)))


POOLS = """
max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d max_pool2d_with_indices
_adaptive_avg_pool2d
""".split()  # noqa: SIM905 - a table, not a line per word


@rule(*(f"aten.{name}" for name in POOLS))
def pooling(tracer: Tracer, node: fx.Node) -> Layouts:
    """Per channel, so labels pass; a mean over padding sees zeros, a bicubic weight sum only rounds to one."""
    x, shape = tracer.layout(node.args[0]), tuple(tracer.plain_of(_values(node)[0]).shape)
    padding = argument(node, 3, "padding", 0) if "aten.avg_pool" in operator(node) else 0
    exact = not (any(padding) if isinstance(padding, (list, tuple)) else padding)
    exact &= "aten.avg_pool" not in operator(node) or argument(node, 6, "divisor_override") is None
    space = set(range(2, len(shape)))
    tracer.pin([b for b in x.blocks if set(b.axes) & space], "is an axis that is pooled")
    blocks = []
    for block in x.blocks:
        if not set(block.axes) & space:
            value = block.value if exact else torch.where(block.value == 0, block.value, math.nan)
            blocks.append(Block(block.axes, block.ids, value))
    made = [Layout(shape, tuple(blocks)) for _ in _values(node)]
    return made[0] if len(made) == 1 else tuple(made)
