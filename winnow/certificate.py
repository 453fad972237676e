"""How well F(w) = L(w) + λ·ΣΩ(‖w_g‖) was solved: optimality per group, balance of the factors, objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from winnow.routes.base import Lane, Route


@final
@dataclass(frozen=True)
class Certificate:
    """Numbers first; `str()` says them in words.

    `residual_active`: max over live groups of ‖g_j + λΩ'(‖w_j‖)·w_j/‖w_j‖‖; `residual_zero`: max over dead groups of
    (‖g_j‖ − λΩ'(0+))₊, which λΩ'(0+) = ∞ always satisfies; both in units of the largest ‖g_j‖ or λΩ' found (`scale`).
    `near_boundary`: share of groups that gradients could still tip: live ones below 1e-3 of the largest norm, dead ones
    with ‖g_j‖ within a tenth of λΩ'(0+).  `imbalance`: largest |I_j|; `misalignment`: ΣM_j = Σ(energy − Ω), zero exactly
    where the smooth objective equals F.  None where there is nothing to measure (no gradients, or no factors).
    """

    strength: float
    groups: int
    alive: int
    penalty: float
    loss: float | None
    gradients: str
    residual_active: float | None
    residual_zero: float | None
    scale: float | None
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
        lines = [f"strength λ = {self.strength:.4g}; {self.alive} of {self.groups} groups alive; λΩ = {self.penalty:.6g}"]
        if self.loss is not None:
            lines.append(f"objective L + λΩ = {self.loss:.6g} + {self.penalty:.6g} = {self.loss + self.penalty:.6g}")
        if self.residual_active is None or self.residual_zero is None:
            lines.append("optimality not measured: no gradients left; pass a closure that returns the training loss")
        else:
            lines.append(
                f"optimality ({self.gradients}): live groups off by at most {self.residual_active:.2e}, dead groups by "
                f"{self.residual_zero:.2e} of {self.scale:.3g}; {100 * (self.near_boundary or 0):.1f} % near the boundary"
            )
        if self.imbalance is not None:
            lines.append(f"factors: imbalance at most {self.imbalance:.2e}, misalignment {self.misalignment:.2e} in all")
        return "\n".join(lines)


def certify(
    lanes: Sequence[Lane], how: Route, strength: float, threshold: float, closure: Callable[[], Tensor] | None
) -> Certificate:
    """Measure; a closure's gradients are its own and leave the weights' `.grad` alone. Norms ≤ `threshold` are dead."""
    loss, grads = _gradients(lanes, closure)
    penalty = sum(float(how.penalty.value(_norm(lane)).double().sum()) * lane.site.groups.scale for lane in lanes)
    alive = [_norm(lane) > threshold for lane in lanes]
    active, zero, scale, near, total = 0.0, 0.0, 0.0, 0, 0
    if grads is not None:
        top = max(float(_norm(lane).max()) for lane in lanes)
        parts = [_optimality(lane, g, how, strength, (threshold, top)) for lane, g in zip(lanes, grads, strict=True)]
        active, zero, scale = (max(part[i] for part in parts) for i in range(3))
        near, total = sum(part[3] for part in parts), sum(a.numel() for a in alive)
    imbalances = [lane.imbalance() for lane in lanes]
    factored = all(i is not None for i in imbalances)
    gap = sum(float((lane.energy() - lane.site.groups.scale * how.penalty.value(_norm(lane))).double().sum()) for lane in lanes)
    return Certificate(
        strength=strength,
        groups=sum(a.numel() for a in alive),
        alive=sum(int(a.sum()) for a in alive),
        penalty=strength * penalty,
        loss=loss,
        gradients="none" if grads is None else "whole closure" if closure is not None else "last minibatch",
        residual_active=None if grads is None else active / max(scale, 1e-300),
        residual_zero=None if grads is None else zero / max(scale, 1e-300),
        scale=None if grads is None else scale,
        near_boundary=None if grads is None else near / total,
        imbalance=max(float(i.abs().max()) for i in imbalances if i is not None) if factored else None,
        misalignment=gap if factored else None,
    )


def _norm(lane: Lane) -> Tensor:
    from winnow.run import whole

    return whole(lane.site.groups.norm(lane.site.theta.detach()))


def _gradients(
    lanes: Sequence[Lane], closure: Callable[[], Tensor] | None
) -> tuple[float | None, list[Tensor] | None]:
    thetas = [lane.site.theta for lane in lanes]
    if closure is None:
        found = [theta.grad for theta in thetas]
        return None, None if any(g is None for g in found) else [g for g in found if g is not None]
    with torch.enable_grad():
        loss = closure()
        grads = torch.autograd.grad(loss, thetas, allow_unused=True)
    return float(loss.detach()), [torch.zeros_like(t) if g is None else g for g, t in zip(grads, thetas, strict=True)]


@torch.no_grad()
def _optimality(lane: Lane, g: Tensor, how: Route, strength: float, range_: tuple[float, float]) -> tuple[float, float, float, int]:
    """(worst live residual, worst dead residual, their unit, groups near the boundary) of one weight."""
    groups, theta = lane.site.groups, lane.site.theta.detach()
    lam = strength * groups.scale
    norm, slack = groups.norm(theta), groups.norm(g)
    threshold, top = range_
    alive = norm > threshold
    pull = lam * how.penalty.slope(torch.where(alive, norm, 1.0)) / torch.where(alive, norm, 1.0)
    residual = groups.norm(g + groups.spread(pull, theta))
    bound = lam * how.penalty.slope_at_zero if strength > 0 else 0.0
    excess = (slack - bound).clamp_min(0) if math.isfinite(bound) else torch.zeros_like(slack)
    edge = alive & (norm < 1e-3 * top)
    if math.isfinite(bound):
        edge |= ~alive & (slack > 0.9 * bound) & (slack < 1.1 * bound)
    zeros = torch.zeros_like(norm)
    worst = float(torch.where(alive, residual, zeros).max())
    unit = max(float(torch.where(alive, slack, zeros).max()), float(torch.where(alive, pull * norm, zeros).max()))
    return worst, float(torch.where(alive, zeros, excess).max()), unit, int(edge.sum())
