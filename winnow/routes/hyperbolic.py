"""HOW, hyperbolic: any optimizer steps, then w ← w·exp(−ρ(α·sign(w)·g + λ)): a sparse bias without further parameters.

HAM (Jacobs, Gadhikar, Rubio-Madrigal, Burkholz, "Hyperbolic Aware Minimization", arXiv 2506.02630); its β is λ.  In the
flow dw = −(1 + α|w|)·g dτ − λw dτ: large weights move faster, none stalls at zero, and the stationary points are those
of L + λΩ with Ω = `Fair(1/α)`, which tends to L2 as α → 0 and to an L1-like bias as α grows.  It makes no zeros by itself:
give it a target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from winnow.errors import AttachError, PenaltyError
from winnow.penalties import Fair, Lp, Penalty
from winnow.routes.base import Lane, Route, Site, WeightLane
from winnow.routes.moment import Moment

LIMIT = 5.0
"""Largest exponent in size, as in the authors' code: a noisy gradient must not multiply a weight by more than e⁵."""


@final
@dataclass(frozen=True)
class Hyperbolic(Route):
    """HAM's step after the optimizer's own, on single entries; α = 200 and λ = 1e-3 are the paper's for ImageNet.

    `rescale`: under momentum μ take lr/(1−μ) for ρ, which keeps λ's meaning; the paper takes lr.
    """

    alpha: float = 200.0
    rescale: bool = True
    penalty: Penalty = field(init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise PenaltyError(f"alpha must be a finite number >= 0, got {self.alpha}; the paper uses 200")
        object.__setattr__(self, "penalty", Fair(1 / self.alpha) if self.alpha else Lp(2.0))

    def check(self, site: Site, optimizer: torch.optim.Optimizer) -> None:
        if site.groups.size > 1:
            raise AttachError(
                f"the hyperbolic step acts on single entries, but {site.name!r} has {site.groups}; use where=Elements(), "
                "or how=Gating(depth=3) for groups"
            )

    def lane(self, site: Site, optimizer: torch.optim.Optimizer) -> Lane:
        return HyperbolicLane(site, self)


@final
class HyperbolicLane(WeightLane):
    """Remembers the gradient from before the step."""

    def __init__(self, site: Site, route: Hyperbolic) -> None:
        super().__init__(site)
        self.route = route
        self.penalty = route.penalty
        self.gradient: Tensor | None = None

    def before(self, moment: Moment) -> None:
        self.gradient = moment.whole_gradient(self.site.theta) / moment.scale

    @torch.no_grad()
    def after(self, moment: Moment, state: Mapping[str, Any]) -> None:
        theta, g = self.site.theta, self.gradient
        assert g is not None
        rate = moment.rate if self.route.rescale else float(moment.group["lr"])
        drive = self.route.alpha * theta.sign() * g + moment.strength
        theta.mul_(torch.as_tensor(-rate * drive).clamp(-LIMIT, LIMIT).exp())
        self.gradient = None
