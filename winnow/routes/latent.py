"""HOW, latent: the optimizer steps latent weights z with the gradients at w, and w is z shrunk by a threshold T.

Dual averaging: w_g = T·prox_Ω(‖z_g‖/T)·z_g/‖z_g‖ with T = λ·Σlr/(1−μ).  No zero is final: the latent weight behind it goes on
collecting gradients and comes back on enough of them; only the last cut of a target is for good.  As z = z₀ − Σlr·g, a weight
that stays nonzero under a constant λ has a mean gradient of λ in size, and one that stays zero a smaller one: the lasso's
stationary points, whatever Ω, which only says how much a threshold takes from large weights on the way.

Source: regularized dual averaging (Xiao, JMLR 2010), as torchao's pruning-aware training has it; thresholds that grow, with
gradients straight through them: ST-3 (Vanderschueren, De Vleeschouwer, arXiv 2212.01076); the garrote: Breiman 1995.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from winnow.errors import PenaltyError
from winnow.penalties import L1, Garrote, Penalty
from winnow.penalties.base import require_penalty
from winnow.routes.base import UNDERFLOW, Lane, Route, Site, erase
from winnow.routes.moment import Moment
from winnow.schedules import Pace

REBORN = 0.01
"""What a group begins at that waits at zero when the choice falls on it, as a share of its latent weight."""


@final
@dataclass(frozen=True)
class Latent(Route):
    """Latent weights under a threshold, for any optimizer and grouping.

    `shrinkage`: the penalty whose proximal map, in units of the threshold, makes w of z: `Garrote()`, which leaves large
    weights nearly alone, or `L1`, which takes the threshold from all.  With a target the threshold follows the cuts alone,
    which come early, as none but the last is for good.

    Raises `PenaltyError` for a shrinkage without a proximal map in closed form, or with a slope other than 1 at zero.
    """

    shrinkage: Penalty = field(default=Garrote())
    penalty: Penalty = field(default=L1, init=False)

    def __post_init__(self) -> None:
        require_penalty(self.shrinkage, "try Latent(Garrote())")
        self.shrinkage.prox(torch.ones(1), 1.0)
        if self.shrinkage.slope_at_zero != 1:
            raise PenaltyError(
                f"the shrinkage must have slope 1 at zero, that T be the threshold, got {self.shrinkage} with "
                f"{self.shrinkage.slope_at_zero:g}; try Garrote() or L1"
            )

    def lane(self, site: Site, optimizer: torch.optim.Optimizer) -> Lane:
        return LatentLane(site, self)

    @property
    def pace(self) -> Pace:
        return Pace(begin=0.0, power=6.0, pull=0.0)

    @property
    def reach(self) -> float:
        """λτ at which the threshold meets a weight of 0.1."""
        return 0.1


@final
class LatentLane(Lane):
    """The optimizer steps z; after it the threshold has grown, and θ ← shrunk z."""

    def __init__(self, site: Site, route: Latent) -> None:
        super().__init__(site)
        self.route = route
        theta = site.theta.detach()
        wide = torch.float32 if theta.dtype in (torch.float16, torch.bfloat16) else theta.dtype
        self.z = nn.Parameter(theta.to(wide, copy=True))
        self.kept = torch.ones_like(site.groups.norm(theta), dtype=torch.bool)
        """Groups that are not zero for good; all, until `chosen`."""
        self.chosen = False
        self.threshold = torch.zeros((), dtype=torch.float64, device="cpu")  # in place, as a checkpoint holds it

    def __str__(self) -> str:
        return f"Latent under {self.route.shrinkage}; {self.site.groups}"

    def coordinates(self) -> dict[str, nn.Parameter]:
        return {"z": self.z}

    def keeps(self) -> dict[str, Tensor]:
        return {"kept": self.kept, "threshold": self.threshold}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        self.kept, self.threshold = kept["kept"], kept["threshold"]
        self.chosen = not bool(_number(self.kept.all()))

    def shrunk(self) -> Tensor:
        """w of the latent weights as they are."""
        groups, w, threshold = self.site.groups, self.z.detach(), float(self.threshold) * self.site.groups.scale
        if threshold > 0:
            height = self.norm().div_(max(threshold, UNDERFLOW))  # in thresholds
            lower = self.route.shrinkage.prox(height, 1.0)
            w = groups.spread(lower.div_(height.clamp_min_(torch.finfo(w.dtype).tiny)), w)
        return (groups.spread(self.kept, w) if self.chosen else w).to(self.site.theta.dtype)

    @torch.no_grad()
    def agrees(self) -> bool:
        theta, made = self.site.theta.detach(), self.shrunk()
        wrong = ~((made - theta).abs() <= 64 * torch.finfo(theta.dtype).eps * theta.abs())  # NaN is wrong as well
        off = (wrong & (theta != 0)).sum()  # a cut on the way may hold at zero what is above the threshold
        return int(off.full_tensor() if hasattr(off, "full_tensor") else off) == 0

    @torch.no_grad()
    def restart(self) -> None:
        self.z.copy_(self.site.theta)
        self.threshold.zero_()
        self.push()

    @torch.no_grad()
    def push(self) -> None:
        self.site.theta.copy_(self.shrunk())
        self.site.scatter()

    @torch.no_grad()
    def before(self, moment: Moment) -> None:
        scaled = not isinstance(moment.scale, float)  # and divided in place by the optimizer
        self.z.grad = moment.whole_gradient(self.site.theta).to(self.z.dtype, copy=scaled)

    @torch.no_grad()
    def after(self, moment: Moment, state: Mapping[str, Any]) -> None:
        self.threshold += moment.strength * moment.rate
        if self.chosen:
            self.site.groups.split(self.z).mul_(self.kept)
        self.push()

    def norm(self) -> Tensor:
        """‖z_g‖: behind a zero, how near it is to coming back."""
        return self.site.groups.norm(self.z.detach())

    def energy(self) -> Tensor:
        groups = self.site.groups
        return self.route.penalty.value(groups.norm(self.site.theta.detach())) * groups.scale

    def imbalance(self) -> Tensor | None:
        return None

    @torch.no_grad()
    def prune(self, dead: Tensor, state: MutableMapping[str, Any]) -> None:
        """The threshold rises to the largest of `dead`, though not to any group that lives."""
        groups = self.site.groups
        norm = self.norm() / groups.scale
        highest, lowest = norm.masked_fill(~dead, 0).amax(), norm.masked_fill(dead, torch.inf).amin()
        self.threshold.clamp_(min=min(_number(highest), _number(lowest) * (1 - torch.finfo(norm.dtype).eps)))
        self.push()
        groups.split(self.site.theta.data).masked_fill_(dead, 0)
        self.site.scatter()

    @torch.no_grad()
    def zero(self, dead: Tensor, state: MutableMapping[str, Any]) -> None:
        """What stays goes on from the weights as they are, under a threshold that begins at zero again.

        What waited at zero and is to stay begins at a little of its latent weight, as a zero might never leave it.
        """
        groups, theta = self.site.groups, self.site.theta.detach()
        self.kept &= ~dead
        self.chosen = True
        waiting = self.kept & (groups.norm(theta) == 0)
        groups.split(self.z).copy_(torch.where(waiting, REBORN * groups.split(self.z), groups.split(theta)))
        self.threshold.zero_()
        erase({"": self.z.data, **state.get("z", {})}, groups, dead, self.z.shape)
        self.push()


def _number(x: Tensor) -> float:
    """A reduced tensor, over all its shards."""
    return float(x.full_tensor() if hasattr(x, "full_tensor") else x)
