"""How labels move when a tensor is reshaped, permuted, sliced or joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from winnow.trace.layout import Block, Layout, Ties, unknown

Ids = Callable[[Tensor], Tensor]


def permute(layout: Layout, order: Sequence[int]) -> Layout:
    """The axes in a new order: out axis i was `order[i]`."""
    rank = len(layout.shape)
    where = {old % rank: new for new, old in enumerate(order)}
    blocks = []
    for block in layout.blocks:
        axes = [where[a] for a in block.axes]
        order_in = sorted(range(len(axes)), key=axes.__getitem__)
        blocks.append(Block(tuple(sorted(axes)), block.ids.permute(order_in), block.value.permute(order_in)))
    return Layout(tuple(layout.shape[o] for o in order), tuple(blocks))


def grid(block: Block, axes: Sequence[int], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The block's labels and values over all of `axes`, repeated along those it does not have."""
    shape = [sizes[i] if a in block.axes else 1 for i, a in enumerate(axes)]
    return block.ids.reshape(shape).expand(*sizes), block.value.reshape(shape).expand(*sizes)


def simplify(block: Block, ties: Ties) -> Block | None:
    """Without the axes along which nothing changes; None if that leaves none."""
    ids, value, axes = block.ids, block.value, list(block.axes)
    for i in reversed(range(len(axes))):
        first = ids.select(i, 0).unsqueeze(i)
        if len(axes) > 1 and bool((ids == first).all()):
            known = value.select(i, 0)
            same = (value == known.unsqueeze(i)).all(i)
            ids, value = ids.select(i, 0), torch.where(same, known, math.nan)
            del axes[i]
    if ids.numel() == 1 or bool((ids == ids.reshape(-1)[0]).all()):
        ties.pin(ids, "a whole axis would go")
        return None
    return Block(tuple(axes), ids, value)


def collapse(block: Block, axes: Sequence[int], ties: Ties) -> Block | None:
    """All indices along `axes` tied to the first, and dropped; a value is known where all of them share it."""
    ids, value, kept = block.ids, block.value, list(block.axes)
    for axis in sorted(axes, reverse=True):
        i = kept.index(axis)
        ties.tie(ids, ids.select(i, 0).unsqueeze(i))
        same = (value == value.select(i, 0).unsqueeze(i)).all(i)
        value = torch.where(same, value.select(i, 0), math.nan)
        ids = ids.select(i, 0)
        del kept[i]
    return simplify(Block(tuple(kept), ids, value), ties)


def _spans(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes with equal products, before and after a reshape."""
    spans, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        left, right, a, b = [], [], 1, 1
        if i < len(before):
            left.append(i)
            a, i = before[i], i + 1
        if j < len(after):
            right.append(j)
            b, j = after[j], j + 1
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * before[i], i + 1
            else:
                right.append(j)
                b, j = b * after[j], j + 1
        spans.append((left, right))
    return spans


def view(layout: Layout, shape: Sequence[int], ties: Ties) -> Layout:
    """Row-major reshape."""
    spans = _spans(layout.shape, shape)
    touched = [[k for k, (left, _) in enumerate(spans) if set(left) & set(b.axes)] for b in layout.blocks]
    blocks: list[Block] = []
    for block, mine in zip(layout.blocks, touched, strict=True):
        if any(other is not mine and set(other) & set(mine) for other in touched):
            ties.pin(block.ids, "a reshape merges two labelled axes")
            continue
        left = [a for k in mine for a in spans[k][0]]
        right = [a for k in mine for a in spans[k][1]]
        ids, value = grid(block, left, [layout.shape[a] for a in left])
        sizes = [shape[a] for a in right]
        keep = [i for i, n in enumerate(sizes) if n > 1]
        new = [sizes[i] for i in keep]
        made = Block(tuple(right[i] for i in keep), ids.reshape(new), value.reshape(new))
        simple = simplify(made, ties) if keep else None
        if simple is not None:
            blocks.append(simple)
    return Layout(tuple(shape), tuple(blocks))


def index(layout: Layout, axis: int, pick: Tensor | int, ties: Ties) -> Layout:
    """Some indices of one axis (a tensor of them), or a single one, which removes the axis."""
    axis %= len(layout.shape)
    gone = isinstance(pick, int)
    size = 0 if isinstance(pick, int) else len(pick)
    shape = (
        tuple(n for a, n in enumerate(layout.shape) if a != axis)
        if gone
        else (*layout.shape[:axis], size, *layout.shape[axis + 1 :])
    )
    shift = {a: a - (gone and a > axis) for a in range(len(layout.shape))}
    blocks = []
    for block in layout.blocks:
        if axis not in block.axes:
            blocks.append(Block(tuple(shift[a] for a in block.axes), block.ids, block.value))
            continue
        i = block.axes.index(axis)
        axes = tuple(shift[a] for a in block.axes if not (gone and a == axis))
        if isinstance(pick, int):
            ids, value = block.ids.select(i, pick), block.value.select(i, pick)
        else:
            ids, value = block.ids.index_select(i, pick), block.value.index_select(i, pick)
        if gone and not axes:
            ties.pin(block.ids, "a single index is taken out of a labelled axis")
            continue
        simple = simplify(Block(axes, ids, value), ties)
        if simple is not None:
            blocks.append(simple)
    return Layout(shape, tuple(blocks))


def cat(parts: Sequence[Layout], axis: int, ties: Ties) -> Layout:
    """One after the other along `axis`; the other axes are tied across the parts."""
    rank = len(parts[0].shape)
    axis %= rank
    shape = list(parts[0].shape)
    shape[axis] = sum(p.shape[axis] for p in parts)
    pieces: list[tuple[Tensor, Tensor]] = []
    labelled = any(p.at(axis) is not None for p in parts)
    inside = [p.at(axis) for p in parts]
    first = inside[0]
    if first is not None and len(first.axes) > 1 and all(b is not None and b.axes == first.axes for b in inside):
        return _cat_grids(parts, axis, shape, ties)
    for part in parts:
        block = part.at(axis)
        if block is not None and len(block.axes) > 1:
            ties.pin(block.ids, "joined along an axis that is labelled together with another")
            block = None
        if block is None and labelled:
            ids = ties.fresh(part.shape[axis])
            ties.pin(ids, "joined to something without labels")
            pieces.append((ids, unknown(ids)))
        elif block is not None:
            pieces.append((block.ids, block.value))
    blocks = [Block((axis,), *(torch.cat(side) for side in zip(*pieces, strict=True)))] if pieces else []
    rest = [Layout(p.shape, tuple(b for b in p.blocks if axis not in b.axes)) for p in parts]
    joined = rest[0]
    for other in rest[1:]:
        joined = merge(joined, other, ties, skip=axis)
    return Layout(tuple(shape), (*blocks, *(b.varying() for b in joined.blocks)))


def _cat_grids(parts: Sequence[Layout], axis: int, shape: Sequence[int], ties: Ties) -> Layout:
    """Pieces that are labelled together along the same axes, the joined one among them: halves of a head, say."""
    blocks = [b for p in parts if (b := p.at(axis)) is not None]
    i = blocks[0].axes.index(axis)
    joined = Block(blocks[0].axes, torch.cat([b.ids for b in blocks], i), torch.cat([b.value for b in blocks], i))
    for part in parts:
        for other in part.blocks:
            if axis not in other.axes:
                ties.pin(other.ids, "joined next to labels along several axes")
    return Layout(tuple(shape), (joined,))


def merge(a: Layout, b: Layout, ties: Ties, skip: int | None = None) -> Layout:
    """Labels of an operation entry by entry with broadcasting; values are not combined here.

    Where one side has a label and the other an axis of full length without one, the label is pinned.
    """
    rank = max(len(a.shape), len(b.shape))
    a, b = _lift(a, rank), _lift(b, rank)
    shape = tuple(max(m, n) for m, n in zip(a.shape, b.shape, strict=True))
    left, blocks = list(b.blocks), []
    for block in a.blocks:
        meets = [other for other in left if set(other.axes) & set(block.axes)]
        if len(meets) == 1 and (set(meets[0].axes) >= set(block.axes) or set(meets[0].axes) <= set(block.axes)):
            other = meets[0]
            left.remove(other)
            big, small = (other, block) if len(other.axes) > len(block.axes) else (block, other)
            joined = _meet(big, small, shape, ties)
            if joined is not None:
                blocks.append(joined)
        elif meets:
            for other in meets:
                left.remove(other)
                ties.pin(other.ids, "meets labels along other axes")
            ties.pin(block.ids, "meets labels along other axes")
        elif _free(block, b, skip):
            blocks.append(block)
        else:
            ties.pin(block.ids, "meets a tensor without labels")
    for other in left:
        if _free(other, a, skip):
            blocks.append(other)
        else:
            ties.pin(other.ids, "meets a tensor without labels")
    return Layout(shape, tuple(blocks))


def _meet(big: Block, small: Block, shape: Sequence[int], ties: Ties) -> Block | None:
    """Two labels of the same entries. Where a grid (heads × entries) meets something that has the entries only (a rotary
    table), heads live or die whole and the entries stay."""
    if small.axes[0] != big.axes[0]:
        ties.pin(small.ids, "is shared by all heads")
        return collapse(big, small.axes, ties)
    ties.tie(big.ids, grid(small, big.axes, [shape[x] for x in big.axes])[0])
    return big


def _free(block: Block, other: Layout, skip: int | None) -> bool:
    return all(other.shape[a] == 1 or a == skip for a in block.axes)


def _lift(layout: Layout, rank: int) -> Layout:
    """With leading axes of length one."""
    more = rank - len(layout.shape)
    if not more:
        return layout
    blocks = tuple(Block(tuple(a + more for a in b.axes), b.ids, b.value) for b in layout.blocks)
    return Layout((1,) * more + layout.shape, blocks)
