"""HOW, masking: w = m ⊙ v with m² − v² = β at the start (PILoT, Jacobs and Burkholz, arXiv 2408.09966).

L2 of strength λ_t on both factors is a mirror flow whose potential slides from L2 to L1 as the dose Λ = ∫λ grows:
m² − v² = β·exp(−2Λ).  A strength that decays leaves the sparse bias and takes the penalty away; a constant one is
the lasso.  The strength as a function of time is the schedule's (`schedules.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import final

import torch

from winnow.errors import AttachError, PenaltyError
from winnow.factors import Product
from winnow.penalties import Lp, Penalty
from winnow.routes.base import Lane, Route, Site
from winnow.routes.factored import FactoredLane
from winnow.starts import Gap


@final
@dataclass(frozen=True)
class Masking(Route):
    """PILoT's product m ⊙ v of single entries; `beta` ≥ 0 is the initial gap (1 in the paper, 0 is balanced spred)."""

    beta: float = 1.0
    penalty: Penalty = field(default=Lp(1.0), init=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.beta, Real) and math.isfinite(self.beta) and self.beta >= 0):
            raise PenaltyError(f"beta must be a finite number >= 0, got {self.beta!r}; the paper uses 1.0")

    def check(self, site: Site, optimizer: torch.optim.Optimizer) -> None:
        if site.groups.size > 1:
            raise AttachError(
                f"masking acts on single entries, as a mask per group is no mirror flow, but {site.name!r} has "
                f"{site.groups}; use where=Elements(), or how=Gating(depth=2) for groups"
            )

    def lane(self, site: Site, optimizer: torch.optim.Optimizer) -> Lane:
        return FactoredLane(site, Product(2, Gap(self.beta)))

    @property
    def holds_zero(self) -> bool:
        return self.beta == 0

    @property
    def reach(self) -> float:
        return 8.0


@torch.no_grad()
def rebalance(lane: Lane, beta: float) -> None:
    """Set m² − v² = β again at an unchanged product (Sign-In's reset); zeros whose factors are both zero stay dead."""
    if not (isinstance(lane, FactoredLane) and isinstance(lane.factorisation, Product) and len(lane.factors) == 2):
        raise AttachError(
            f"only two full-size factors have a gap to set, but {lane.site.name!r} is {lane}; attach how=Masking()"
        )
    m, v = lane.tensors()
    alive = (m != 0) | (v != 0)
    new_m, new_v = Gap(beta)(m * v, 2)
    m.copy_(torch.where(alive, new_m, 0))
    v.copy_(torch.where(alive, new_v, 0))
