"""No silent failure: what is said, as a `WinnowWarning`, while training runs and when it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from winnow.errors import GradientError, warn
from winnow.groups import Groups
from winnow.routes.base import Lane, Route, Site
from winnow.units import ATTACHED

FIRST = 3  # steps whose gradients are looked at
EARLY = 200  # steps before which mass death is suspicious


@final
@dataclass
class Watch:
    """Remembers what it has said, so that every warning comes once."""

    how: Route
    adaptive: bool = False
    """Whether the optimizer has second moments, under which the dose does not tell how far weights have shrunk."""
    said: set[str] = field(default_factory=set)
    invariant: dict[str, int] = field(default_factory=dict)

    def say(self, key: str, text: str) -> None:
        if key not in self.said:
            self.said.add(key)
            warn(text)

    def start(self, sites: Sequence[Site], target: float | None, floor: float) -> None:
        """What can be told before the first step; `floor` is the smallest density there is."""
        if target is not None and target < floor:
            self.say(
                "floor",
                f"a density of {target:g} cannot be reached: one group of every weight stays, and what cannot be removed, "
                f"together {floor:.3g}. Ask for more, or choose other weights with where=",
            )
        twice = [site.name for site in sites if any(hasattr(theta, ATTACHED) for theta in site.weights)]
        if twice:
            self.say(
                "twice",
                f"{_some(twice)} carried a run before, which was neither settled nor released: should its optimizer still "
                "step, both would change these weights. Call settle() or release() on the earlier run",
            )
        if self.how.penalty.slope_at_zero == 0:
            self.say(
                "smooth",
                f"{self.how.penalty} is flat at zero, so it shrinks weights but makes no zeros; zeros come only from a "
                "target, when=Toward(density=…, steps=…). For sparsity take Lp(p) with p <= 1, LogSum or MCP",
            )
        still = [site.name for site in sites if self.how.holds_zero and not bool(site.theta.detach().any())]
        if still:
            self.say(
                "still",
                f"{_some(still)} start at zero, where this route keeps them for ever: initialise them to small random "
                "values, leave them out of where=, or use Gating with its own start, which leaves zero",
            )

    def gradients(self, lanes: Sequence[Lane], step: int) -> None:
        """Is there any? On the first steps: is a weight scale-invariant? Then ⟨g, w⟩ = 0 per output, on every batch."""
        if not lanes:
            self.say(
                "idle",
                f"no penalised weight has a gradient at step {step}, which counts for schedules and targets all the same: "
                "call loss.backward() before optimizer.step(), and zero_grad() after it or before backward",
            )
        if step >= FIRST:
            return
        for lane in lanes:
            if lane.site.groups.size > 1 and not lane.site.shares and _invariant(lane):
                self.invariant[lane.site.name] = self.invariant.get(lane.site.name, 0) + 1
        names = [name for name, count in self.invariant.items() if count == FIRST]
        if names:
            self.say(
                "invariant",
                f"{_some(names)}: a normalisation follows, so the loss does not change with their scale, so a penalty shrinks "
                "useful and useless groups alike and only the normalisation's ε and finite steps tell them apart. "
                "Penalise the affine weight behind the normalisation instead: where=Channels(example) does, for whole units",
            )

    def replaced(self, sites: Sequence[Site]) -> None:
        """Weights that are in the model no more."""
        held = [(s.name, x.weight, x.owners) for s in sites for x in s.shares] or [
            (s.name, s.theta, s.owners) for s in sites
        ]
        names = [name for name, theta, owners in held if any(getattr(m, a, None) is not theta for m, a in owners)]
        if names:
            self.say(
                "replaced",
                f"{_some(names)}: the model has another tensor there than the one that was attached and trained (a parameter "
                "set anew, or load_state_dict(assign=True)); this run cannot touch it. Copy into it instead",
            )

    def layers(self, rows: Sequence[tuple[str, int, int]], step: int, target: float | None) -> None:
        """(name, groups alive, groups) per weight, now and then."""
        gone = [name for name, alive, _ in rows if alive == 0]
        if gone:
            self.say(
                f"collapse {gone}",
                f"at step {step} no group of {_some(gone)} is left: this layer is constant now, and zero does not come "
                "back. Lower the strength, or leave the layer out of where=",
            )
        alive, total = sum(row[1] for row in rows), sum(row[2] for row in rows)
        if step <= EARLY and alive < 0.1 * total * (1.0 if target is None else target):
            self.say(
                "early",
                f"{total - alive} of {total} groups are dead after only {step} steps, before they could learn. "
                "Lower the strength or the learning rate, ramp it up (when=Ramp(strength, steps)), or give Toward more steps",
            )

    def end(
        self, dose: float, strength: float, groups: tuple[int, int], density: tuple[float, float | None, float]
    ) -> None:
        """After settling: groups (alive, all), and the density (obtained, asked for, one group's share)."""
        reach, (alive, total), (obtained, target, grain) = self.how.reach, groups, density
        if target is not None and abs(obtained - target) > grain + 1e-6:
            self.say("missed", f"a density of {target:g} was asked for, {obtained:.4g} is left")
        if target is None and self.adaptive and dose > 0 and alive == total:
            self.say(
                "none",
                f"none of {total} groups reached zero under {strength:g}: raise the strength, train longer, or ask for a "
                "target: when=Toward(density=…, steps=…)",
            )
        if target is None and not self.adaptive and math.isfinite(reach) and 0 < dose < reach and alive > 0.9 * total:
            self.say(
                "dose",
                f"only {total - alive} of {total} groups reached zero: strength × accumulated learning rate λ·Σlr/(1−μ) was "
                f"{dose:.3g}, and zeros need about {reach:.3g}. Raise the strength to about "
                f"{strength * reach / dose:.2g}, train longer, or ask for a target: when=Toward(density=…, steps=…)",
            )


@torch.no_grad()
def check_finite(lanes: Sequence[Lane], step: int) -> None:
    """Raise `GradientError` before anything of this step is done, if a gradient is not finite; on all ranks alike."""
    sums = [_whole_sum(lane.site.theta.grad) for lane in lanes]
    if not sums or bool(torch.isfinite(torch.stack(sums)).all()):
        return
    for lane in lanes:
        grad = lane.site.theta.grad
        assert grad is not None
        if float(_whole_sum((~torch.isfinite(grad)).float())):
            raise GradientError(
                f"the gradient of {lane.site.name!r} is not finite at step {step}; the step was not taken, weights, "
                "factors and optimizer state are as before it. Lower the learning rate, clip gradients, or skip this "
                "batch with optimizer.zero_grad()"
            )


def _whole_sum(x: Tensor | None) -> Tensor:
    """The sum over all ranks' shards, so that every rank decides alike."""
    assert x is not None
    total = x.sum(dtype=torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None)
    return total.full_tensor() if hasattr(total, "full_tensor") else total


@torch.no_grad()
def _invariant(lane: Lane) -> bool:
    """Whether the loss ignores the weight's scale, per output row (batch norm) or as a whole (layer norm)."""
    theta, g = lane.site.theta.detach(), lane.site.theta.grad
    if g is None or theta.ndim < 2 or theta.shape[0] < 2 or hasattr(theta, "placements"):
        return False
    rows = Groups(tuple(theta.shape), tuple(theta.shape), tuple(range(1, theta.ndim)))
    size = rows.norm(g) * rows.norm(theta)
    if not bool((size > 0).any()):
        return False
    inner = rows.total(g * theta)
    by_row = inner[size > 0].abs() / size[size > 0]
    whole = inner.sum().abs() / (g.norm() * theta.norm())
    return bool(by_row.mean() < 1e-3 * min(1.0, 30 / math.sqrt(theta[0].numel()))) or bool(whole < 1e-6)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more weights"
