"""Which groups go when a density is asked for: the smallest by norm, over all weights together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from winnow.counts import Spending
from winnow.routes.base import Lane

FREE = 1e-9
"""Least price of a group: what costs nothing is not worth infinitely much."""


def whole(x: Tensor) -> Tensor:
    """A sharded tensor gathered; any other as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


@torch.no_grad()
def smallest(lanes: Sequence[Lane], density: float, spending: Spending | None = None) -> list[Tensor]:
    """Gate-shaped masks of the groups to go, so that at most `density` of all entries (or of what is spent) stays.

    One group per weight stays in any case.

    Single weights are ranked by magnitude, over all layers.  Larger groups are ranked by `worth` for what they cost: norms of
    different layers do not compare, and a layer that has become thin should not become thinner at the price of a wide one.
    """
    norms = [whole(lane.norm()) for lane in lanes]
    if any(lane.site.groups.size > 1 for lane in lanes):
        prices = [lane.site.entries for lane in lanes] if spending is None else spending.prices
        norms = [worth(norm) / math.sqrt(max(price, FREE)) for norm, price in zip(norms, prices, strict=True)]
    sizes = [lane.site.entries for lane in lanes]
    flat = torch.cat([norm.flatten().float() for norm in norms])
    starts = [0, *itertools.accumulate(norm.numel() for norm in norms)]
    for start, norm in zip(starts, norms, strict=False):  # no weight may vanish altogether
        flat[start + int(norm.argmax())] = math.inf
    if spending is not None:
        return _masks(_affordable(flat, norms, density, spending), flat, norms)
    flat = _ordered(flat, [lane.site.groups.last(norm) for lane, norm in zip(lanes, norms, strict=True)], norms)
    budget = round(density * sum(norm.numel() * size for norm, size in zip(norms, sizes, strict=True)))
    if len(set(sizes)) == 1:  # no need to sort
        kept = flat.topk(max(budget // sizes[0], len(lanes)), sorted=False).indices
    else:
        order = flat.argsort(descending=True, stable=True)
        each = torch.cat([torch.full((n.numel(),), s, device=flat.device) for n, s in zip(norms, sizes, strict=True)])
        kept = order[(each[order].cumsum(0) <= budget) | flat[order].isinf()]
    return _masks(kept, flat, norms)


def worth(norm: Tensor) -> Tensor:
    """Root of the share that each group holds of its layer's Σr², were all smaller ones gone: 1 for the largest."""
    square = norm.flatten().square()
    order = norm.flatten().argsort(descending=True, stable=True)
    left = torch.zeros_like(square).scatter_(0, order, square[order].cumsum(0))
    return (norm.flatten() / left.sqrt().clamp_min(torch.finfo(norm.dtype).tiny)).view(norm.shape)


def _ordered(flat: Tensor, last: Sequence[Tensor | None], norms: Sequence[Tensor]) -> Tensor:
    """The scores, those of `last` above all others; unchanged where there are none."""
    if all(marks is None for marks in last):
        return flat
    late = torch.cat(
        [
            (torch.zeros_like(norm, dtype=torch.bool) if marks is None else marks & (norm > 0)).flatten()
            for marks, norm in zip(last, norms, strict=True)
        ]
    )
    place = flat.argsort(stable=True).argsort().double()
    return torch.where(flat.isinf(), math.inf, place + len(flat) * late)


def _affordable(flat: Tensor, norms: Sequence[Tensor], density: float, spending: Spending) -> Tensor:
    """The longest head of the ranking that costs no more than `density` of the whole."""
    order = flat.argsort(descending=True, stable=True)
    layer = torch.cat([torch.full((n.numel(),), i) for i, n in enumerate(norms)])[order.cpu()]
    least, most = len(norms), len(order)  # one of each layer comes first, at any price
    while least < most:
        middle = (least + most + 1) // 2
        alive = layer[:middle].bincount(minlength=len(norms)).tolist()
        least, most = (middle, most) if spending.share(alive) <= density else (least, middle - 1)
    return order[:least]


def _masks(kept: Tensor, flat: Tensor, norms: Sequence[Tensor]) -> list[Tensor]:
    """What is not kept, or zero already, in the shape of each weight's gates."""
    alive = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, kept, True)
    parts = torch.split(alive, [norm.numel() for norm in norms])
    return [~part.view(norm.shape) | (norm == 0) for part, norm in zip(parts, norms, strict=True)]
