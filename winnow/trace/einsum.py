"""Einstein sums: a linear layer where one factor is a weight, a product of activations else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from winnow.trace.contract import contract, zeroed
from winnow.trace.layout import Block, Layout
from winnow.trace.reshape import collapse, merge
from winnow.trace.tracer import Layouts, Tracer, rule


@rule("aten.einsum")
def einsum(tracer: Tracer, node: fx.Node) -> Layouts:
    """Two factors, every letter once in each; others are refused."""
    parts = letters_of(node)
    if parts is None:
        return tracer.refuse(node, "goes into aten.einsum in a way that has no rule")
    (left, right), out = parts
    a, b = node.args[1]  # type: ignore[misc, str-unpack]
    if (a in tracer.constants) != (b in tracer.constants):
        if a in tracer.constants:
            a, b, left, right = b, a, right, left
        return _linear(tracer, node, (a, left), (b, right), out)
    return _product(tracer, node, ((a, left), (b, right)), out)


def letters_of(node: fx.Node) -> tuple[tuple[str, str], str] | None:
    """(letters of both factors, letters of the result); None where a sum is not of the kind that has a rule."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if "." in equation or not isinstance(operands, (list, tuple)) or len(operands) != 2:
        return None
    given, _, out = equation.partition("->")
    left, right = given.split(",")
    if "->" not in equation:
        out = "".join(sorted(c for c in set(left + right) if (left + right).count(c) == 1))
    once = all(len(set(word)) == len(word) for word in (left, right, out))
    return ((left, right), out) if once and set(out) <= set(left + right) else None


def _linear(tracer: Tracer, node: fx.Node, source: tuple[Any, str], weight: tuple[Any, str], out: str) -> Layouts:
    """One summed letter carries labels in and one new letter carries them out; further ones are taps of the kernel."""
    (x, from_), (w, to) = source, weight
    summed = [c for c in to if c in from_ and c not in out]
    made = [c for c in to if c not in from_]
    if not summed or not made or any(c not in out for c in made) or any(c in from_ and c in out for c in to):
        return tracer.refuse(node, "goes into aten.einsum in a way that has no rule")
    n, m = summed[0], made[0]
    layout = _only(tracer, tracer.layout(x), [from_.index(c) for c in summed[1:]])
    shape = [*layout.shape]
    shape[from_.index(n)] = tracer.layout(w).shape[to.index(m)]
    virtual = contract(tracer, node, (layout, from_.index(n)), (w, to.index(n), to.index(m)), None, shape=tuple(shape))
    assert isinstance(virtual, Layout)
    made_of = _arranged(tracer, node, virtual, from_.replace(n, m), out)
    return tracer.out(node, Layout(tracer.sizes(node), made_of.blocks))


def _product(tracer: Tracer, node: fx.Node, factors: Sequence[tuple[Any, str]], out: str) -> Layouts:
    """Letters of both factors and the result (heads) are tied; a letter of one factor keeps its labels alone."""
    (_, left), (_, right) = factors
    shared = set(left) & set(right) & set(out)

    def of(x: Any, word: str) -> Layout:
        layout = _only(tracer, tracer.layout(x), [i for i, c in enumerate(word) if c not in shared])
        return _arranged(tracer, node, layout, word, out)

    a, b = (of(x, word) for x, word in factors)
    blocks = tuple(zeroed(block, (a, b)) for block in merge(a, b, tracer.ties).blocks)
    return tracer.out(node, Layout(tracer.sizes(node), blocks))


def _only(tracer: Tracer, layout: Layout, apart: Sequence[int]) -> Layout:
    """Labels over several axes, some of them `apart`, reduced to the others: what is labelled there lives or dies whole."""
    blocks: list[Block] = []
    for block in layout.blocks:
        inner = [a for a in block.axes if a in apart]
        made = collapse(block, inner, tracer.ties) if inner and len(inner) < len(block.axes) else block
        if made is not None:
            blocks.append(made)
    return Layout(layout.shape, tuple(blocks))


def _arranged(tracer: Tracer, node: fx.Node, layout: Layout, letters: str, out: str) -> Layout:
    """A layout over `letters` in the order of the result; what is summed over stays, and missing axes have length 1."""
    blocks = []
    for block in layout.blocks:
        if any(letters[a] not in out for a in block.axes):
            tracer.pin([block], "is summed over by aten.einsum")
            continue
        axes = [out.index(letters[a]) for a in block.axes]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        blocks.append(
            Block(
                tuple(sorted(axes)),
                block.ids.permute(order),
                torch.full_like(block.value, torch.nan).where(block.value != 0, block.value).permute(order),
            )
        )
    shape = [layout.shape[letters.index(c)] if c in letters else 1 for c in out]
    return Layout(tuple(shape), tuple(blocks))
