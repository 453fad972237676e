"""How well F(w) = L(w) + λ·ΣΩ(‖w_g‖) was solved: optimality per group, balance of the factors, objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from winnow.cut import whole
from winnow.errors import GradientError
from winnow.routes.base import Lane, Route


@final
@dataclass(frozen=True)
class Certificate:
    """Numbers first; `str()` says them in words.

    `residual_active`: max over live groups of ‖g_j + λΩ'(‖w_j‖)·w_j/‖w_j‖‖; `residual_zero`: max over dead groups of
    (‖g_j‖ − λ₀Ω'(0+))₊, which λ₀Ω'(0+) = ∞ always satisfies; both are gradient norms, to be held against `pull`, the
    largest λ₀Ω'(‖w_j‖) of a live group.  λ₀ is `chosen_at`, the last strength before a schedule switched the penalty off
    to heal (else λ): the zeros were chosen under it, while what lives then solves L alone.
    `near_boundary`: share of groups that gradients could still tip: live ones below 1e-3 of the largest norm, dead ones
    with ‖g_j‖ within a tenth of λΩ'(0+).  `imbalance`: largest |I_j|; `misalignment`: ΣM_j = Σ(energy − Ω), zero exactly
    where the smooth objective equals F.  None where there is nothing to measure (no gradients, or no factors).
    """

    strength: float
    chosen_at: float
    groups: int
    alive: int
    penalty: float
    loss: float | None
    gradients: str
    residual_active: float | None
    residual_zero: float | None
    pull: float | None
    near_boundary: float | None
    imbalance: float | None
    misalignment: float | None

    @property
    def objective(self) -> float | None:
        """L + λΩ."""
        return None if self.loss is None else self.loss + self.penalty

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for records."""
        return {**asdict(self), "objective": self.objective}

    def __str__(self) -> str:
        healed = f", zeros chosen at λ₀ = {self.chosen_at:.4g}" if self.chosen_at != self.strength else ""
        lines = [
            f"strength λ = {self.strength:.4g}{healed}; {self.alive} of {self.groups} groups alive; λΩ = {self.penalty:.6g}"
        ]
        if self.loss is not None:
            lines.append(f"objective L + λΩ = {self.loss:.6g} + {self.penalty:.6g} = {self.loss + self.penalty:.6g}")
        if self.residual_active is None or self.residual_zero is None:
            lines.append("optimality not measured: no gradients left; pass a closure that returns the training loss")
        else:
            healed_too = self.strength == 0 < self.chosen_at
            live = (
                "live groups feel no penalty any more, their gradients are" if healed_too else "live groups are off by"
            )
            under = "under λ₀, which" if healed_too else "where the penalty"
            lines.append(
                f"optimality ({self.gradients}): {live} at most {self.residual_active:.2e}; dead groups are off by "
                f"{self.residual_zero:.2e} {under} pulls with up to {self.pull:.2e}; "
                f"{100 * (self.near_boundary or 0):.1f} % near the boundary"
            )
        if self.imbalance is not None and self.strength > 0:  # without a penalty nothing balances factors
            lines.append(
                f"factors: imbalance at most {self.imbalance:.2e}, misalignment {self.misalignment:.2e} in all"
            )
        return "\n".join(lines)


def certify(
    lanes: Sequence[Lane],
    how: Route,
    strengths: tuple[float, float],
    threshold: float,
    closure: Callable[[], Tensor] | None,
    ridges: Sequence[float],
) -> Certificate:
    """Measure at `strengths` = (λ now, λ₀ under which the zeros were chosen); norms ≤ `threshold` are dead.

    A closure's gradients are its own and leave the weights' `.grad` alone.  `ridges`: per lane, the strength of the
    optimizer's own L2, which belongs to L.
    """
    strength, chosen = strengths
    loss, grads = _with_ridges(lanes, ridges, *_gradients(lanes, closure))
    penalty = sum(float(how.penalty.value(_norm(lane)).double().sum()) * lane.site.groups.scale for lane in lanes)
    alive = [_norm(lane) > threshold for lane in lanes]
    active, zero, pull, near, total = 0.0, 0.0, 0.0, 0, 0
    if grads is not None:
        top = max(float(_norm(lane).max()) for lane in lanes)
        parts = [_optimality(lane, g, how, strengths, (threshold, top)) for lane, g in zip(lanes, grads, strict=True)]
        active, zero, pull = (max(part[i] for part in parts) for i in range(3))
        near, total = sum(part[3] for part in parts), sum(a.numel() for a in alive)
    imbalances = [lane.imbalance() for lane in lanes]
    factored = all(i is not None for i in imbalances)
    gap = sum(
        float((lane.energy() - lane.site.groups.scale * how.penalty.value(_norm(lane))).double().sum())
        for lane in lanes
    )
    return Certificate(
        strength=strength,
        chosen_at=chosen,
        groups=sum(a.numel() for a in alive),
        alive=sum(int(a.sum()) for a in alive),
        penalty=strength * penalty,
        loss=loss,
        gradients="none" if grads is None else "whole closure" if closure is not None else "last minibatch",
        residual_active=None if grads is None else active,
        residual_zero=None if grads is None else zero,
        pull=None if grads is None else pull,
        near_boundary=None if grads is None else near / total,
        imbalance=max(float(i.abs().max()) for i in imbalances if i is not None) if factored else None,
        misalignment=gap if factored else None,
    )


def _norm(lane: Lane) -> Tensor:
    return whole(lane.site.groups.norm(lane.site.theta.detach()))


def _gradients(lanes: Sequence[Lane], closure: Callable[[], Tensor] | None) -> tuple[float | None, list[Tensor] | None]:
    weights = [weight for lane in lanes for weight in lane.site.weights]
    loss: Tensor | None = None
    found: Sequence[Tensor | None] = [weight.grad for weight in weights]
    if closure is not None:
        with torch.enable_grad():
            loss = closure() if callable(closure) else None
            if not (isinstance(loss, Tensor) and loss.requires_grad):
                raise GradientError(
                    "certificate takes a closure that returns the whole training loss, a tensor with a gradient, got "
                    f"{closure if loss is None else loss!r}; without one it takes the last gradients"
                )
            found = torch.autograd.grad(loss, weights, allow_unused=True)
    left = iter(found)
    grads = [lane.site.assemble([next(left) for _ in lane.site.weights]) for lane in lanes]
    if loss is None:
        return None, None if any(g is None for g in grads) else [g for g in grads if g is not None]
    whole_grads = zip(grads, lanes, strict=True)
    return float(loss.detach()), [torch.zeros_like(lane.site.theta) if g is None else g for g, lane in whole_grads]


@torch.no_grad()
def _with_ridges(
    lanes: Sequence[Lane], ridges: Sequence[float], loss: float | None, grads: list[Tensor] | None
) -> tuple[float | None, list[Tensor] | None]:
    """L and its gradients with λ₂/2·‖w‖² of every weight."""
    thetas = [lane.site.theta.detach() for lane in lanes]
    if loss is not None:
        loss += sum(r / 2 * float(theta.double().square().sum()) for r, theta in zip(ridges, thetas, strict=True) if r)
    if grads is not None:
        grads = [g + r * theta if r else g for g, r, theta in zip(grads, ridges, thetas, strict=True)]
    return loss, grads


@torch.no_grad()
def _optimality(
    lane: Lane, g: Tensor, how: Route, strengths: tuple[float, float], limits: tuple[float, float]
) -> tuple[float, float, float, int]:
    """(worst live residual, worst dead residual, largest pull at λ₀, groups near the boundary) of one weight."""
    groups, theta = lane.site.groups, lane.site.theta.detach()
    strength, chosen = (value * groups.scale for value in strengths)
    threshold, top = limits
    norm, slack = groups.norm(theta), groups.norm(g)
    alive, zeros = norm > threshold, torch.zeros_like(norm)
    safe = torch.where(alive, norm, torch.ones_like(norm))
    slope = torch.where(alive, how.penalty.slope(safe), zeros)
    residual = torch.where(alive, groups.norm(g + groups.spread(strength * slope / safe, theta)), zeros)
    edge = alive & (norm < 1e-3 * top)
    excess, bound = zeros, chosen * how.penalty.slope_at_zero if chosen > 0 else 0.0
    if math.isfinite(bound):
        excess = torch.where(alive, zeros, (slack - bound).clamp_min(0))
        edge |= ~alive & (slack > 0.9 * bound) & (slack < 1.1 * bound)
    return float(residual.max()), float(excess.max()), float(chosen * slope.max()), int(edge.sum())
