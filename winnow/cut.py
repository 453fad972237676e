"""Which groups go when a density is asked for: the smallest by norm, over all weights together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from winnow.routes.base import Lane


def whole(x: Tensor) -> Tensor:
    """A sharded tensor gathered; any other as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


@torch.no_grad()
def smallest(lanes: Sequence[Lane], density: float) -> list[Tensor]:
    """Gate-shaped masks of the groups to go, so that at most `density` of all entries stay, but one group per weight.

    Single weights are ranked by magnitude, over all layers.  Larger groups are ranked relative to the mean of their
    layer's living ones: a norm grows with the size of its group, and small groups are not less worth for being small.
    """
    norms = [whole(lane.site.groups.norm(lane.site.theta.detach())) for lane in lanes]
    if any(lane.site.groups.size > 1 for lane in lanes):
        norms = [norm / norm[norm > 0].mean() if bool((norm > 0).any()) else norm for norm in norms]
    sizes = [lane.site.entries for lane in lanes]
    flat = torch.cat([norm.flatten().float() for norm in norms])
    starts = [0, *itertools.accumulate(norm.numel() for norm in norms)]
    for start, norm in zip(starts, norms, strict=False):  # no weight may vanish altogether
        flat[start + int(norm.argmax())] = math.inf
    budget = round(density * sum(norm.numel() * size for norm, size in zip(norms, sizes, strict=True)))
    if len(set(sizes)) == 1:  # no need to sort
        kept = flat.topk(max(budget // sizes[0], len(lanes)), sorted=False).indices
    else:
        order = flat.argsort(descending=True, stable=True)
        each = torch.cat([torch.full((n.numel(),), s, device=flat.device) for n, s in zip(norms, sizes, strict=True)])
        kept = order[(each[order].cumsum(0) <= budget) | flat[order].isinf()]
    alive = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, kept, True)
    spans = zip(starts, norms, strict=False)
    return [~alive[start : start + norm.numel()].view(norm.shape) | (norm == 0) for start, norm in spans]
