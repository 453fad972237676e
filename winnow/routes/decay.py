"""HOW, decay: any optimizer steps, then w_g ← w_g·η/(η + lr·λ), η = η̂(‖w_g‖) from the weights *before* the step.

Lp is p-norm weight decay (pWD, Outmezguine and Levi, arXiv 2404.10824); any other subquadratic penalty works alike:
the factor is the proximal map of the η-trick's quadratic (adaptive proximal, LeJeune et al., arXiv 2106.07769).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from winnow.errors import AttachError, PenaltyError
from winnow.groups import Split
from winnow.penalties import Lp, Penalty
from winnow.penalties.base import require_penalty
from winnow.routes.base import UNDERFLOW, Lane, Motion, Move, Route, Site, WeightLane
from winnow.routes.moment import Moment


@final
@dataclass(frozen=True)
class Decay(Route):
    """Decoupled decay toward λΩ, for any optimizer.

    `metric="plain"`: pWD, ρ = lr; `"adaptive"`: ρ = lr/(√v̂+ε) of an Adam-like optimizer, so that λ keeps its meaning
    under Adam (pWD's own is relative to the gradient's RMS).  `rescale`: under momentum μ use lr/(1−μ) for ρ, without
    which heavy ball solves for (1−μ)λ.  `ridge`: elastic net's λ₂.  `anneal`: steps over which p goes from 2 to its
    value, so that small initial weights are not killed.  `refresh`: steps between updates of η (the η-trick's
    interval).
    """

    penalty: Penalty = field(default=Lp(0.5))
    metric: Literal["plain", "adaptive"] = "plain"
    rescale: bool = True
    ridge: float = 0.0
    anneal: int = 0
    refresh: int = 1

    def __post_init__(self) -> None:
        require_penalty(self.penalty, "try Decay(Lp(0.5))")
        if self.metric not in ("plain", "adaptive"):
            raise PenaltyError(f'metric must be "plain" or "adaptive", got {self.metric!r}')
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise PenaltyError(f"ridge must be a finite number >= 0, got {self.ridge}; 0 switches it off")
        if self.anneal < 0 or self.refresh < 1:
            raise PenaltyError(f"need anneal >= 0 and refresh >= 1 steps, got {self.anneal} and {self.refresh}")
        if self.anneal and not isinstance(self.penalty, Lp):
            raise PenaltyError(f"anneal lowers p from 2, so it needs an Lp penalty, got {self.penalty}; set anneal=0")

    def check(self, site: Site, optimizer: torch.optim.Optimizer) -> None:
        if site.theta.dtype in (torch.float16, torch.bfloat16):
            raise AttachError(
                f"{site.name!r} is {site.theta.dtype}, in which a factor like 1 − 1e-4 rounds to 1 and the decay is lost; "
                "keep float32 weights and use autocast, or use Gating, whose factors are float32"
            )
        if self.metric == "adaptive" and not any("betas" in group for group in optimizer.param_groups):
            raise AttachError(
                f'metric="adaptive" needs an optimizer with second moments (Adam, AdamW), got '
                f'{type(optimizer).__name__}; use metric="plain", whose strength is that of SGD already'
            )

    def lane(self, site: Site, optimizer: torch.optim.Optimizer) -> Lane:
        return DecayLane(site, self)

    def at(self, step: int) -> Penalty:
        """The penalty in force at `step` (p falls linearly from 2 while it is annealed)."""
        if not self.anneal or step >= self.anneal:
            return self.penalty
        assert isinstance(self.penalty, Lp)
        return replace(self.penalty, p=2 + (self.penalty.p - 2) * step / self.anneal)

    @property
    def holds_zero(self) -> bool:
        return self.penalty.eta_at_zero == 0 and not self.anneal

    @property
    def reach(self) -> float:
        """Extinction time of a weight of 0.1 without gradient, r^(2−p)/(2−p) in λτ (pwd section 4)."""
        p = self.penalty.p if isinstance(self.penalty, Lp) else 1.0
        return 0.1 ** (2 - p) / (2 - p) if p <= 1 else math.inf


@final
class DecayLane(WeightLane):
    """Remembers the group norms from before the step and shrinks by them after it."""

    def __init__(self, site: Site, route: Decay) -> None:
        super().__init__(site)
        self.route = route
        self.penalty = route.penalty
        self.seen: Tensor | None = None

    def keeps(self) -> dict[str, Tensor]:
        return {"norm": self.seen} if self.route.refresh > 1 and self.seen is not None else {}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        self.seen = kept.get("norm")

    @torch.no_grad()
    def before(self, moment: Moment) -> None:
        if self.seen is None or moment.step % self.route.refresh == 0:
            self.seen = self.norm()

    @torch.no_grad()
    def after(self, moment: Moment, state: Mapping[str, Any]) -> None:
        assert self.seen is not None
        rate, strength = self._rate(moment, state), moment.strength * self.site.groups.scale
        if moment.strength == 0 == self.route.ridge or moment.rate == 0:
            return  # at ρλ = 0 an exactly zero weight's factor would be 0/0
        view = self.site.groups.split(self.site.theta)
        view.mul_(shrinkage(self.route.at(moment.step), self.seen, rate, strength, self.route.ridge))

    def _rate(self, moment: Moment, state: Mapping[str, Any]) -> float | Tensor:
        if self.route.metric == "plain":
            return moment.rate if self.route.rescale else float(moment.group["lr"])
        return adam_rate(moment.group, state, self.site)

    def motion(self, moment: Moment) -> Motion | None:
        route = self.route
        if route.refresh > 1 or moment.strength == 0 or moment.rate == 0:
            return None
        plain = route.metric == "plain" and not route.rescale
        if plain and moment.rate != float(moment.group["lr"]):
            return None
        return DecayMotion(route.at(moment.step), route.metric == "adaptive", route.ridge)

    def vanished(self) -> Tensor | None:
        if not (isinstance(self.penalty, Lp) and self.penalty.p <= 1):
            return None
        norm = self.norm()
        return (norm < UNDERFLOW) & (norm > 0)


@final
@dataclass(frozen=True)
class DecayMotion:
    """Norms before the step, the optimizer's update, the factor after it."""

    penalty: Penalty
    adaptive: bool
    ridge: float

    def look(self, theta: Tensor, groups: Split) -> Tensor | None:
        return groups.norm(theta) if groups.inside else None

    def __call__(
        self,
        seen: Tensor | None,
        theta: Tensor,
        g: Tensor,
        xs: Sequence[Tensor],
        groups: Split,
        strength: Tensor,
        move: Move,
    ) -> tuple[Tensor, list[Tensor]]:
        norm = groups.norm(theta) if seen is None else seen
        moved, rate, rho = move(0, g)
        rate = rho if self.adaptive else rate
        shrunk = moved * shrinkage(self.penalty, norm, rate, strength * groups.scale, self.ridge)
        return shrunk, [shrunk]


def shrinkage(penalty: Penalty, norm: Tensor, rate: float | Tensor, strength: float | Tensor, ridge: float) -> Tensor:
    """X/(X(1+ρλ₂)+ρλ), X = η̂(‖w_g‖) from before the step: one factor per group (per entry for a rate per entry)."""
    stretch = 1 + rate * ridge
    return penalty.keep(norm, rate * strength / stretch) / stretch


def adam_rate(group: Mapping[str, Any], state: Mapping[str, Any], site: Site) -> Tensor:
    """ρ = lr/(√v̂+ε) per entry, in the grouped view: Adam's own metric, ε included, so fixed points are those of F."""
    if "exp_avg_sq" not in state:
        raise AttachError(f'metric="adaptive" found no exp_avg_sq for {site.name!r}; use metric="plain"')
    correction = 1 - float(group["betas"][1]) ** float(state["step"])
    second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    root: Tensor = (site.groups.split(second) / correction).sqrt_()
    return float(group["lr"]) / root.add_(float(group["eps"]))
