"""The fast path: pull, step and push as one compiled pass per weight, for SGD, Adam and AdamW.

Memory traffic is what an optimizer step costs.  Done one after the other, the chain rule, the optimizer's arithmetic
and the product read and write every tensor several times; `torch.compile` fuses them into one pass.  The arithmetic is
the lane's own `motion`, built of the same functions that the plain path calls, around the optimizer's update rule
written out here; tests hold both paths equal.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from winnow.errors import AttachError, WinnowWarning
from winnow.groups import Split
from winnow.routes.base import Lane, Moment, Motion

WORTH = 2_000_000
"""Penalised weights from which compiling, tens of seconds once, is repaid within a few thousand steps."""

Stepped = tuple[Tensor, Tensor, Tensor, list[Tensor]]
Update = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor]], Stepped]


def sgd(x: Tensor, g: Tensor, h: Tensor, states: Sequence[Tensor]) -> Stepped:
    """torch.optim.SGD's update, `h` = (lr, flow rate, μ, dampening, nesterov); returns x', flow rate, ρ, new states."""
    if not states:
        return x - h[0] * g, h[1], h[1], []
    buffer = h[2] * states[0] + (1 - h[3]) * g
    return x - h[0] * torch.where(h[4] > 0, g + h[2] * buffer, buffer), h[1], h[1], [buffer]


def adam(x: Tensor, g: Tensor, h: Tensor, states: Sequence[Tensor]) -> Stepped:
    """torch.optim.Adam's without decay, `h` = (lr, β₁, β₂, ε, 1−β₁ᵗ, √(1−β₂ᵗ)). ρ = lr/(√v̂+ε), per entry."""
    first = states[0] + (1 - h[1]) * (g - states[0])
    second = h[2] * states[1] + (1 - h[2]) * g * g
    rho = h[0] / (second.sqrt() / h[5] + h[3])
    return x - rho * (first / h[4]), h[0], rho, [first, second]


@final
@dataclass(frozen=True, eq=False)
class Fused:
    """Compiled steps, made when first met, one per kind of lane, update rule and number of axes."""

    compiled: dict[Any, Callable[..., None]] = field(default_factory=dict)

    @staticmethod
    def choose(want: bool | None, optimizer: Optimizer, size: int) -> Fused | None:
        """`None`: where it pays; raises `AttachError` if insisted on and impossible."""
        able = type(optimizer) in (SGD, Adam, AdamW) and not any(
            group.get(key)
            for group in optimizer.param_groups
            for key in ("amsgrad", "maximize", "capturable", "differentiable")
        )
        if want and not able:
            raise AttachError(
                "fused=True knows plain SGD, Adam and AdamW (no amsgrad, maximize, capturable, differentiable), got "
                f"{type(optimizer).__name__}; use fused=None or fused=False"
            )
        if not want and not (want is None and able and size >= WORTH):
            return None
        problem = _compiler_problem()
        if problem is None:
            return Fused()
        text = f"the fused step needs a working torch.compile ({problem}); install a C++ compiler, or say fused=False"
        if want:
            raise AttachError(text)
        warnings.warn(f"{text}. Going on with the plain step, which is slower", WinnowWarning, stacklevel=3)
        return None

    def fits(self, lane: Lane, moment: Moment) -> bool:
        """Whether this lane's coming step can be fused."""
        theta = lane.site.theta
        g = theta.grad
        if g is None or hasattr(theta, "placements") or not (theta.is_contiguous() and g.is_contiguous()):
            return False
        wide = theta.dtype in (torch.float32, torch.float64) and g.dtype == theta.dtype
        return wide and lane.motion(moment) is not None

    @torch.no_grad()
    def step(self, lane: Lane, moment: Moment, state: Mapping[str, Any]) -> None:
        """Do what the lane's `before`, the optimizer and the lane's `after` would do."""
        motion, theta, groups = lane.motion(moment), lane.site.theta, lane.site.groups
        assert motion is not None and theta.grad is not None
        names = list(lane.coordinates())
        xs = [lane.coordinates()[name].detach() for name in names]
        inner = [state[name] for name in names] or [state]
        rule, read = (adam, _adam_states) if "betas" in moment.group else (sgd, _sgd_states)
        h, states = read(xs or [theta.detach()], inner, moment)

        def view(x: Tensor) -> Tensor:
            if x.shape != theta.shape:
                return x
            return groups.split(x) if groups.inside else x.view(-1)

        key = (motion, rule, groups.inside, groups.scale, len(states[0]), len(groups.view) if groups.inside else 1)
        if key not in self.compiled:
            self.compiled[key] = torch.compile(_pass(motion, rule, Split(groups.inside, groups.scale)), dynamic=True)
        strength = torch.tensor(moment.strength, dtype=h.dtype).to(theta.device)
        seen = motion.look(view(theta.detach()), Split(groups.inside, groups.scale))
        self.compiled[key](
            seen, view(theta.detach()), view(theta.grad), [view(x) for x in xs], [[view(s) for s in per] for per in states],
            h.to(theta.device), strength,
        )
        torch.autograd.graph.increment_version(theta)


@functools.cache
def _compiler_problem() -> str | None:
    """What keeps torch.compile from working here; None if nothing does. Found out before the training starts."""
    try:
        torch.compile(lambda x: x * x + 1, fullgraph=True)(torch.ones(8))
    except Exception as error:  # whatever the backend raises, the answer is the same
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def _pass(motion: Motion, rule: Update, split: Split) -> Callable[..., None]:
    def run(
        seen: Tensor | None, theta: Tensor, g: Tensor, xs: list[Tensor], states: list[list[Tensor]], h: Tensor,
        strength: Tensor,
    ) -> None:
        at = xs or [theta]  # the same tensor must not be passed twice
        fresh: dict[int, list[Tensor]] = {}

        def move(index: int, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            moved, rate, rho, fresh[index] = rule(at[index], gradient, h, states[index])
            return moved, rate, rho

        weight, moved = motion(seen, theta, g, at, split, strength, move)
        for index, per in fresh.items():
            for old, new in zip(states[index], per, strict=True):
                old.copy_(new)
        for old, new in zip(xs, moved, strict=False):
            old.copy_(new)
        theta.copy_(weight)

    return run


def _adam_states(xs: list[Tensor], inner: list[dict[str, Any]], moment: Moment) -> tuple[Tensor, list[list[Tensor]]]:
    """Adam's own state entries, made as torch makes them, and this step's numbers."""
    group = moment.group
    for x, state in zip(xs, inner, strict=True):
        if "step" not in state:
            device = x.device if group.get("fused") else torch.device("cpu")
            state.update(step=torch.zeros((), dtype=torch.float32, device=device))
            state.update(exp_avg=torch.zeros_like(x), exp_avg_sq=torch.zeros_like(x))
        state["step"] += 1
    t = float(inner[0]["step"])
    beta1, beta2 = (float(b) for b in group["betas"])
    h = [float(group["lr"]), beta1, beta2, float(group["eps"]), 1 - beta1**t, math.sqrt(1 - beta2**t)]
    return torch.tensor(h, dtype=xs[0].dtype), [[state["exp_avg"], state["exp_avg_sq"]] for state in inner]


def _sgd_states(xs: list[Tensor], inner: list[dict[str, Any]], moment: Moment) -> tuple[Tensor, list[list[Tensor]]]:
    """SGD's momentum buffers (the first step copies the gradient) and this step's numbers."""
    group = moment.group
    mu, dampening = float(group["momentum"]), float(group["dampening"])
    if mu:
        for x, state in zip(xs, inner, strict=True):
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(x)
                dampening = 0.0
    h = [float(group["lr"]), moment.rate, mu, dampening, float(bool(group["nesterov"]))]
    return torch.tensor(h, dtype=xs[0].dtype), [[state["momentum_buffer"]] if mu else [] for state in inner]
