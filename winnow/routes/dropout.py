"""HOW, dropout: drop group g with probability λ/(η+λ), η = η̂(‖w_g‖); in expectation the loss gains λΩ.

Adaptive dropout (LeJeune, Javadi, Baraniuk, "The Flip Side of the Reweighted Coin", arXiv 2106.07769): a mask of mean 1
and variance λ/η adds ½Σ h·(λ/η)·w², one subproblem of the η-trick, h the loss's curvature.  The only route that changes
what the forward pass sees, as the method itself does.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from winnow.errors import PenaltyError, warn
from winnow.noise import ForwardNoise
from winnow.penalties import Penalty
from winnow.penalties.base import require_penalty
from winnow.routes.base import Lane, Route, Site, WeightLane
from winnow.routes.moment import Moment


class Mask(ABC):
    """The law of the multiplicative noise: mean 1, variance (1−α)/α."""

    @abstractmethod
    def draw(self, keep: Tensor) -> Tensor:
        """One mask, given keep probabilities α."""

    def gradient(self, variance: Tensor, w: Tensor) -> Tensor | None:
        """What to add to the gradient instead of noise; None for none. `variance` (1−α)/α broadcasts to `w`."""
        return None


@final
@dataclass(frozen=True)
class Bernoulli(Mask):
    """0 with probability 1−α, else 1/α."""

    def draw(self, keep: Tensor) -> Tensor:
        return torch.bernoulli(keep) / keep


@final
@dataclass(frozen=True)
class Gaussian(Mask):
    """N(1, (1−α)/α)."""

    def draw(self, keep: Tensor) -> Tensor:
        return 1 + torch.randn_like(keep) * ((1 - keep) / keep).sqrt()


@final
@dataclass(frozen=True)
class Expected(Mask):
    """No noise but its mean effect for unit curvature, the gradient w(1−α)/α = λΩ'(w): AdaTikhonov."""

    def draw(self, keep: Tensor) -> Tensor:
        return torch.ones_like(keep)

    def gradient(self, variance: Tensor, w: Tensor) -> Tensor:
        return w * variance


@final
@dataclass(frozen=True)
class Dropout(Route):
    """Adaptive dropout for any penalty and groups.

    `mask`: the noise's law.  `floor`: smallest keep probability (the mask's variance is its inverse).  `curvature`: h
    of the loss, so that the effective penalty is λΩ rather than λhΩ.  `tolerance`: at the end, groups with α below it
    are zero.
    """

    penalty: Penalty
    mask: Mask = field(default_factory=Bernoulli)
    floor: float = 0.05
    curvature: float = 1.0
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        require_penalty(self.penalty, "try Dropout(LogSum(1.0))")
        if not isinstance(self.mask, Mask):
            raise PenaltyError(f"mask must be Bernoulli(), Gaussian() or Expected(), got {self.mask!r}")
        if not 0 < self.floor < 1 or not 0 < self.tolerance < 1:
            raise PenaltyError(f"floor and tolerance must lie in (0, 1), got {self.floor} and {self.tolerance}")
        if not (math.isfinite(self.curvature) and self.curvature > 0):
            raise PenaltyError(f"curvature must be a finite number > 0, got {self.curvature}; 1.0 is the paper's")
        if isinstance(self.mask, Expected) and self.curvature != 1:
            raise PenaltyError(f"Expected() adds the penalty's own gradient, without a curvature, got {self.curvature}")

    def keep(self, norm: Tensor, strength: float) -> Tensor:
        """α = η/(η + λ/h) per group, not yet raised to the floor."""
        return self.penalty.keep(norm, strength / self.curvature)

    def lane(self, site: Site, optimizer: torch.optim.Optimizer) -> Lane:
        return DropoutLane(site, self)


@final
class DropoutLane(WeightLane):
    """Draws a fresh mask from the current weights in every forward pass in training mode."""

    def __init__(self, site: Site, route: Dropout) -> None:
        super().__init__(site)
        self.route = route
        self.penalty = route.penalty
        self.strength = 0.0
        self.noises: list[ForwardNoise] = []
        self.mask, self.served = torch.empty(0), set[int]()
        if isinstance(route.mask, Expected):
            return
        if site.shares:
            pairs = enumerate(site.shares)
            self.noises = [ForwardNoise(s.owners, functools.partial(self.perturb_slice, i)) for i, s in pairs]
        else:
            self.noises = [ForwardNoise(site.owners, self.perturb)]

    def keep(self) -> Tensor:
        """α per group."""
        return self.route.keep(self.norm(), self.strength)

    def variance(self) -> Tensor:
        """(1−α)/α = λ/(hη) per group, where 1 − α would lose a λ below rounding; 0 for a group that is zero."""
        num, den = self.penalty.eta_ratio(self.norm())
        variance = torch.as_tensor(self.strength / self.route.curvature * den / num)
        return variance.masked_fill(variance.isinf(), 0.0)

    def perturb(self, theta: Tensor) -> Tensor:
        if self.strength == 0:
            return theta
        norm = self.site.groups.norm(theta.detach())  # of what is seen here: FSDP unshards it
        keep = self.route.keep(norm, self.strength)
        return self.site.groups.spread(self.route.mask.draw(keep.clamp_min(self.route.floor)), theta)

    def perturb_slice(self, index: int, theta: Tensor) -> Tensor:
        """One weight's slices of units that go through several weights: all of a forward pass see the same mask."""
        if self.strength == 0:
            return theta
        if not self.served or index in self.served:
            self.served.clear()
            keep = self.route.keep(self.norm(), self.strength)
            self.mask = self.route.mask.draw(keep.clamp_min(self.route.floor)).flatten()
        self.served.add(index)
        return self.site.shares[index].member.scale(theta, self.mask)

    def open(self, moment: Moment) -> None:
        self.strength = moment.strength * self.site.groups.scale

    @torch.no_grad()
    def before(self, moment: Moment) -> None:
        theta = self.site.theta
        if self.noises and not all(noise.fired for noise in self.noises) and moment.step == 0:
            warn(
                f"{self.site.name!r} was not dropped in the forward pass: its module was not called in training mode "
                "(call model.train(), or leave this weight out of where=)"
            )
        if self.strength and theta.grad is not None:
            extra = self.route.mask.gradient(self.variance(), self.site.groups.split(theta.detach()))
            if extra is not None:
                theta.grad = theta.grad + (extra * moment.scale).view(theta.shape)  # the host puts the loss's own back

    def after(self, moment: Moment, state: Mapping[str, Any]) -> None:
        pass

    def doomed(self, strength: float) -> Tensor:
        norm = self.norm()
        strength *= self.site.groups.scale
        return self.route.keep(norm, strength) < self.route.tolerance if strength > 0 else norm < 0

    def close(self) -> None:
        self.strength = 0.0  # a compiled model may not notice that hooks have gone
        for noise in self.noises:
            noise.remove()
