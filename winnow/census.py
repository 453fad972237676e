"""CENSUS: what is alive, per weight and in all; the numbers that users read and schedules steer by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from winnow.counts import Spending
from winnow.cut import whole
from winnow.routes.base import Lane, Route


@final
@dataclass(frozen=True)
class Layer:
    """One penalised weight's share: groups alive of `groups`, entries nonzero of `size`.

    For `Channels`, a layer of units: entries are all that would go with a unit, what reads it included, so that a connection
    between two such layers counts in both.
    """

    name: str
    alive: int
    groups: int
    nonzero: int
    size: int


@final
@dataclass(frozen=True, eq=False)
class Census:
    """Counts over the lanes of one run.

    Every count takes the strength in force, under which a route may hold groups for dead whose weights are not zero yet;
    None after the run, when the weights are the user's and count as they are.
    """

    lanes: Sequence[Lane]
    how: Route
    spending: Spending | None
    """What densities are shares of, where `Channels` says so; else entries."""
    adaptive: bool
    """Whether the optimizer has second moments."""

    @property
    def threshold(self) -> float:
        """Group norms at or below this count as zero: float resolution of the weights (D-Gating section 2.4)."""
        return max(torch.finfo(lane.site.theta.dtype).eps for lane in self.lanes)

    @property
    def grain(self) -> float:
        """Largest share that one group holds: a density cannot be met any finer."""
        if self.spending is not None:
            return self.spending.grain
        sites = [lane.site for lane in self.lanes]
        return max(site.entries for site in sites) / sum(site.groups.count * site.entries for site in sites)

    @property
    def floor(self) -> float:
        """The smallest density there is: one group of every weight stays."""
        if self.spending is not None:
            return self.spending.share([1] * len(self.lanes))
        sites = [lane.site for lane in self.lanes]
        return sum(site.entries for site in sites) / sum(site.groups.count * site.entries for site in sites)

    def density(self, strength: float | None) -> float:
        """Share of all entries (or of what is spent) that lies in nonzero groups."""
        layers = self.layers(strength)
        if self.spending is not None:
            return self.spending.share([layer.alive for layer in layers])
        return sum(layer.nonzero for layer in layers) / sum(layer.size for layer in layers)

    def layers(self, strength: float | None) -> list[Layer]:
        """Per penalised weight, what is alive."""
        found = []
        for lane in self.lanes:
            site, alive = lane.site, int((~self.dead(lane, strength)).sum())
            count, entries = site.groups.count, site.entries
            found.append(Layer(site.name, alive, count, alive * entries, count * entries))
        return found

    @torch.no_grad()
    def masks(self, strength: float | None) -> dict[nn.Parameter, Tensor]:
        """Per penalised weight, True at the entries whose group counts as nonzero."""
        found: dict[nn.Parameter, Tensor] = {}
        for lane in self.lanes:
            site, dead = lane.site, as_local(lane, self.dead(lane, strength))
            mask = torch.ones_like(site.theta, dtype=torch.bool)
            site.groups.split(mask).masked_fill_(dead, False)
            if not site.shares:
                found[site.theta] = mask
                continue
            for share, part in zip(site.shares, site.cut(mask), strict=True):
                all_of_it = found.setdefault(share.weight, torch.ones_like(share.weight, dtype=torch.bool))
                share.member.put(all_of_it, share.member.take(all_of_it) & part)
        return found

    @torch.no_grad()
    def dead(self, lane: Lane, strength: float | None, threshold: float | None = None) -> Tensor:
        """One weight's groups at or below the threshold, gate-shaped, whole on every rank."""
        lane.site.gather()  # somebody may have written to the model, as load_state_dict does
        norm = whole(lane.site.groups.norm(lane.site.theta.detach()))
        dead = norm <= (self.threshold if threshold is None else threshold)
        return dead if strength is None else dead | whole(lane.doomed(strength))

    @torch.no_grad()
    def balance(self) -> float:
        """λ at which the penalty's pull on the median live group equals the last gradients': the natural unit of λ.

        A tenth of it for optimizers with a second moment, whose steps do not shrink with the gradient (measured: the
        same accuracy needs about a tenth of the strength there).
        """
        norms, slacks = [], []
        for lane in self.lanes:
            theta, groups = lane.site.theta, lane.site.groups
            if theta.grad is None:
                continue
            norm, slack = whole(groups.norm(theta.detach())), whole(groups.norm(theta.grad))
            live = (norm > self.threshold) & (slack > 0)
            norms.append(norm[live] / groups.scale)
            slacks.append(slack[live] / groups.scale)
        if not norms or not sum(n.numel() for n in norms):
            return 0.0
        middle, slack = torch.cat(norms).median(), torch.cat(slacks).median()
        pull = float(self.how.penalty.slope(middle))
        share = 0.1 if self.adaptive else 1.0
        return share * float(slack) / pull if 0 < pull < math.inf else 0.0


def as_local(lane: Lane, dead: Tensor) -> Tensor:
    """A whole mask as the weight's own sharding needs it."""
    like = lane.site.groups.norm(lane.site.theta.detach())
    if not hasattr(like, "device_mesh"):
        return dead
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(dead, like.device_mesh, like.placements)  # type: ignore[attr-defined]
