"""The baseline in one line: units removed by a score, without training for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from winnow.counts import Count, Spending
from winnow.errors import TraceError
from winnow.smaller.compact import compact
from winnow.smaller.proof import Proof
from winnow.trace import Example, clone
from winnow.units import UnitLayer, read_units, weight, zero_units

Score = Callable[[nn.Module, UnitLayer], Tensor]
"""(model, layer) to one number per unit, (units,); the smallest go first."""


def magnitude(model: nn.Module, layer: UnitLayer) -> Tensor:
    """Norm of each unit's slices over the mean of its layer, so that layers compare."""
    parts = [member.take(weight(model, member.name).detach()).double() for member in layer.members]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(parts, 1), dim=1)
    return norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny)


def remove(
    model: nn.Module,
    example: Example,
    *,
    keep: float,
    score: Score = magnitude,
    count: Count | None = None,
    round_to: int = 1,
) -> tuple[nn.Module, Proof]:
    """A smaller copy of the model without the units of lowest score; the proof is `compact`'s.

    `keep` is the share of units that stays, or, with `count`, of what that counts (`Parameters()`, `MACs()`): as many
    units go as it takes to come down to it.  The proof compares with the model whose other units are zero: nothing is
    trained here, so accuracy is what is left.  At least one unit per layer stays.  Raises `TraceError` for a share outside
    (0, 1] or a score of the wrong shape.
    """
    if not 0 < keep <= 1:
        raise TraceError(f"keep must lie in (0, 1], got {keep}; 0.5 keeps half of the units")
    model = clone(model)
    tracer, layers = read_units(model, example)
    scores = [score(model, layer).detach().flatten().double() for layer in layers]
    for layer, found in zip(layers, scores, strict=True):
        if len(found) != layer.count or bool(found.isnan().any()):
            raise TraceError(
                f"score gave {list(found.shape)} numbers for {layer}; it must give one per unit, and no NaN"
            )
    spending = None if count is None else count.spending(tracer, layers)
    zero_units(model, layers, lowest(scores, keep, spending))
    return compact(model, example, round_to=round_to)


def lowest(scores: Sequence[Tensor], keep: float, spending: Spending | None = None) -> list[Tensor]:
    """Which units go, a bool tensor per layer: those of lowest score, until the share `keep` is left.

    Of the units, or of what `spending` says that they cost.  The best of each layer stays, even where that is more.
    """
    flat, sizes = torch.cat([s.double() for s in scores]), [len(s) for s in scores]
    start = 0
    for size in sizes:
        flat[start + int(flat[start : start + size].argmax())] = torch.inf
        start += size
    order, free = flat.argsort(stable=True), len(flat) - len(sizes)

    def gone(n: int) -> list[Tensor]:
        marks = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        return list(torch.split(marks.index_fill_(0, order[:n], True), sizes))

    if spending is None:
        return gone(min(len(flat) - round(keep * len(flat)), free))
    enough, too_few = free, -1
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        fits = spending.share([float((~part).sum()) for part in gone(middle)]) <= keep + 1e-12
        enough, too_few = (middle, too_few) if fits else (enough, middle)
    return gone(enough)
