"""The baseline in one line: units removed by a score, without training for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from winnow.errors import TraceError
from winnow.smaller.compact import compact
from winnow.smaller.proof import Proof
from winnow.trace import Example, clone
from winnow.units import UnitLayer, find_units, weight, zero_units

Score = Callable[[nn.Module, UnitLayer], Tensor]
"""(model, layer) to one number per unit, (units,); the smallest go first."""


def magnitude(model: nn.Module, layer: UnitLayer) -> Tensor:
    """Norm of each unit's slices over the mean of its layer, so that layers compare."""
    parts = [member.take(weight(model, member.name).detach()).double() for member in layer.members]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(parts, 1), dim=1)
    return norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny)


def remove(
    model: nn.Module, example: Example, *, keep: float, score: Score = magnitude, round_to: int = 1
) -> tuple[nn.Module, Proof]:
    """A smaller copy of the model with the share `keep` of its units, those of highest score; the proof is `compact`'s.

    The proof compares with the model whose other units are zero: nothing is trained here, so accuracy is what is left.
    At least one unit per layer stays.  Raises `TraceError` for a share outside (0, 1] or a score of the wrong shape.
    """
    if not 0 < keep <= 1:
        raise TraceError(f"keep must lie in (0, 1], got {keep}; 0.5 keeps half of the units")
    model = clone(model)
    layers = find_units(model, example)
    scores = [score(model, layer).detach().flatten().double() for layer in layers]
    for layer, found in zip(layers, scores, strict=True):
        if len(found) != layer.count or bool(found.isnan().any()):
            raise TraceError(
                f"score gave {list(found.shape)} numbers for {layer}; it must give one per unit, and no NaN"
            )
        found[found.argmax()] = torch.inf
    flat = torch.cat(scores)
    kept = flat.topk(max(round(keep * len(flat)), len(layers))).indices
    alive = torch.zeros(len(flat), dtype=torch.bool).index_fill_(0, kept, True)
    zero_units(model, layers, [~part for part in torch.split(alive, [layer.count for layer in layers])])
    return compact(model, example, round_to=round_to)
