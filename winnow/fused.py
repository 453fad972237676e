"""The fast path: pull, step and push as one compiled pass per weight, for SGD, Adam and AdamW.

Memory traffic is what an optimizer step costs.  Done one after the other, the chain rule, the optimizer's arithmetic
and the product read and write every tensor several times; `torch.compile` fuses them into one pass.  The arithmetic is
the lane's own `motion`, built of the same functions that the plain path calls, around the optimizer's update rule
written out here; tests hold both paths equal.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from winnow.errors import AttachError, warn
from winnow.groups import Groups, Split
from winnow.routes.base import Lane, Motion
from winnow.routes.moment import Moment

WORTH = 2_000_000
"""Penalised weights from which compiling, tens of seconds once, is repaid within a few thousand steps."""

Stepped = tuple[Tensor, Tensor, Tensor, list[Tensor]]
Update = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor]], Stepped]
Numbers = tuple[float, ...]


def sgd(x: Tensor, g: Tensor, h: Tensor, states: Sequence[Tensor]) -> Stepped:
    """torch.optim.SGD's update, `h` = (lr, flow rate, μ, 1−dampening, a, b, …), the step lr·(a·buffer + b·g).

    Returns x', flow rate, ρ, new states.
    """
    if not states:
        return x - h[0] * g, h[1], h[1], []
    buffer = h[2] * states[0] + h[3] * g
    return x - h[0] * (h[4] * buffer + h[5] * g), h[1], h[1], [buffer]


def adam(x: Tensor, g: Tensor, h: Tensor, states: Sequence[Tensor]) -> Stepped:
    """torch.optim.Adam's without decay, `h` = (lr, lr/(1−β₁ᵗ), 1−β₁, β₂, 1−β₂, 1/√(1−β₂ᵗ), ε, …). ρ = lr/(√v̂+ε).

    One division and one root per entry: on a CPU these, not the memory, are what the step would wait for.
    """
    first = states[0] + h[2] * (g - states[0])
    second = h[3] * states[1] + h[4] * (g * g)
    inverse = 1 / (second.sqrt() * h[5] + h[6])
    return x - (h[1] * first) * inverse, h[0], h[0] * inverse, [first, second]


@final
@dataclass(frozen=True, eq=False)
class Fused:
    """Compiled steps, made when first met, one per kind of lane, update rule and number of axes."""

    compiled: dict[Any, Any] = field(default_factory=dict)
    kept: dict[int, _Kept] = field(default_factory=dict)

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
        warn(f"{text}. Going on with the plain step, which is slower")
        return None

    def fits(self, lane: Lane, moment: Moment) -> bool:
        """Whether this lane's coming step can be fused."""
        theta = lane.site.theta
        g = theta.grad
        if lane.site.shares and lane.coordinates().get("w") is theta:
            return False  # put together of several weights, and stepped itself
        if g is None or hasattr(theta, "placements") or not (theta.is_contiguous() and g.is_contiguous()):
            return False
        motion, kept = lane.motion(moment), self.kept.setdefault(id(lane), _Kept())
        moving, kept.motion = kept.motion not in (None, motion), motion  # one that changes is not worth compiling
        wide = theta.dtype in (torch.float32, torch.float64) and g.dtype == theta.dtype
        return wide and motion is not None and not moving

    @torch.no_grad()
    def step(self, lane: Lane, moment: Moment, state: Mapping[str, Any]) -> None:
        """Do what the lane's `before`, the optimizer and the lane's `after` would do."""
        theta, groups, kept = lane.site.theta.detach(), lane.site.groups, self.kept[id(lane)]
        motion = kept.motion
        assert motion is not None and lane.site.theta.grad is not None
        xs = list(lane.coordinates().values())
        inner = [state[name] for name in lane.coordinates()] or [state]
        rule, read = (adam, _adam_states) if "betas" in moment.group else (sgd, _sgd_states)
        numbers, states = read(xs or [theta], inner, moment, kept)
        h = _tensor((*numbers, moment.ridge, moment.strength * groups.scale), theta.dtype, theta.device)
        at, per = kept.look_up(groups, xs, states)
        rank = len(groups.view) if groups.inside else 1
        kind = (motion, rule, bool(moment.ridge), groups.inside, rank, len(per[0]), len(xs))
        whole, gates = self.compiled[kind] = _passes(*kind)
        theta, g = _view(groups, theta), _view(groups, lane.site.theta.grad)
        ready = gates(theta, g, at, per, h) if gates else []
        whole(motion.look(theta, _plain(groups.inside)), theta, g, at, per, h, ready)
        torch.autograd.graph.increment_version(lane.site.theta)


@functools.cache
def _compiler_problem() -> str | None:
    """What keeps torch.compile from working here; None if nothing does. Found out before the training starts."""
    try:
        torch.compile(lambda x: x * x + 1, fullgraph=True)(torch.ones(8))
    except Exception as error:  # whatever the backend raises, the answer is the same
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


@functools.lru_cache(maxsize=64)
def _tensor(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A step's numbers, one tensor for all lanes that share them; read only."""
    h = torch.tensor(numbers, dtype=dtype).to(device)
    torch._dynamo.mark_static(h)  # its length is not to be taken for that of a weight
    return h


@functools.cache
def _passes(
    motion: Motion, rule: Update, ridged: bool, inside: tuple[int, ...], rank: int, states: int, factors: int
) -> tuple[Callable[..., None], Callable[..., list[Tensor]] | None]:
    """The compiled weight's pass and, where gates are shared by a group, the gates' pass before it; for every run."""
    split = _plain(inside)
    gates = _compile(_gates(motion, rule, split, ridged)) if inside and factors > 1 else None
    return _compile(_pass(motion, rule, split, ridged)), gates


def _view(groups: Groups, x: Tensor) -> Tensor:
    """A tensor of the weight's shape as its groups see it, or flat where every entry is one; gates as they are."""
    if tuple(x.shape) != groups.shape:
        return x
    return groups.split(x) if groups.inside else x.view(-1)


def _plain(inside: tuple[int, ...]) -> Split:
    """Groups without their weight, which `h` has in the strength; an int, as a float would become an argument."""
    return Split(inside, 1)


def _compile(run: Callable[..., Any]) -> Callable[..., Any]:
    """For all lengths at once. With a code object of its own, as torch keeps no more than eight versions of one and
    then gives up; without a second check of sizes, which torch has looked at to choose the version."""
    own = types.FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)
    return torch.compile(own, dynamic=True, options={"size_asserts": False})


def _pass(motion: Motion, rule: Update, split: Split, ridged: bool) -> Callable[..., None]:
    def run(
        seen: Tensor | None,
        theta: Tensor,
        g: Tensor,
        xs: list[Tensor],
        states: list[list[Tensor]],
        h: Tensor,
        ready: list[Tensor],
    ) -> None:
        at = xs or [theta]  # the same tensor must not be passed twice
        g = g + h[-2] * theta if ridged else g
        fresh: dict[int, list[Tensor]] = {}

        def move(index: int, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if index and ready:
                return ready[index - 1], h[0], h[0]
            moved, rate, rho, fresh[index] = rule(at[index], gradient, h, states[index])
            return moved, rate, rho

        weight, moved = motion(seen, theta, g, at, split, h[-1], move)
        _write(states, fresh)
        for old, new in zip(xs, moved, strict=False):
            old.copy_(new)
        theta.copy_(weight)

    return run


def _gates(motion: Motion, rule: Update, split: Split, ridged: bool) -> Callable[..., list[Tensor]]:
    """The small factors' new values, in a pass of their own: their gradient needs a sum over the group, and the
    weight's pass, which needs them, is then one loop. What concerns the weight is dropped by the compiler."""

    def run(theta: Tensor, g: Tensor, xs: list[Tensor], states: list[list[Tensor]], h: Tensor) -> list[Tensor]:
        fresh: dict[int, list[Tensor]] = {}
        g = g + h[-2] * theta if ridged else g

        def move(index: int, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            if not index:
                return xs[0], h[0], h[0]
            moved, rate, rho, fresh[index] = rule(xs[index], gradient, h, states[index])
            return moved, rate, rho

        _, moved = motion(None, theta, g, xs, split, h[-1], move)
        _write(states, fresh)
        return moved[1:]

    return run


def _write(states: list[list[Tensor]], fresh: Mapping[int, list[Tensor]]) -> None:
    for index, per in fresh.items():
        for old, new in zip(states[index], per, strict=True):
            old.copy_(new)


@dataclass(eq=False)
class _Kept:
    """What one lane's last step looked up and the next need not: its tensors, their views, the optimizer's count."""

    own: list[Tensor] = field(default_factory=list)
    views: tuple[list[Tensor], list[list[Tensor]]] = ([], [])
    counter: tuple[Tensor | None, int] = (None, 0)
    steps: float = 0.0
    motion: Motion | None = None

    def look_up(
        self, groups: Groups, xs: Sequence[Tensor], states: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Views of the stepped tensors and their states, made anew only if one has been replaced."""
        own = [*xs, *(s for per in states for s in per)]
        if len(own) != len(self.own) or any(a is not b for a, b in zip(own, self.own, strict=True)):
            self.own = own
            at = [_view(groups, x.detach()) for x in xs]
            self.views = at, [[_view(groups, s) for s in per] for per in states]
        return self.views

    def count(self, step: Tensor) -> float:
        """The value of `step`, read (on a GPU: waited for) only if somebody else has changed it."""
        known, version = self.counter
        self.steps = self.steps + 1 if known is step and step._version == version + 1 else float(step)
        self.counter = (step, step._version)
        return self.steps


def _adam_states(
    xs: Sequence[Tensor], inner: list[dict[str, Any]], moment: Moment, kept: _Kept
) -> tuple[Numbers, list[list[Tensor]]]:
    """This step's numbers, and Adam's own state entries, made as torch makes them."""
    group = moment.group
    for x, state in zip(xs, inner, strict=True):
        if "step" not in state:
            device = x.device if group.get("fused") else torch.device("cpu")
            state.update(step=torch.zeros((), dtype=torch.float32, device=device))
            state.update(exp_avg=torch.zeros_like(x.detach()), exp_avg_sq=torch.zeros_like(x.detach()))
        state["step"] += 1
    t, lr = kept.count(inner[0]["step"]), float(group["lr"])
    beta1, beta2 = (float(b) for b in group["betas"])
    late = 1 / math.sqrt(1 - beta2**t)
    numbers = (lr, lr / (1 - beta1**t), 1 - beta1, beta2, 1 - beta2, late, float(group["eps"]))
    return numbers, [[state["exp_avg"], state["exp_avg_sq"]] for state in inner]


def _sgd_states(
    xs: Sequence[Tensor], inner: list[dict[str, Any]], moment: Moment, kept: _Kept
) -> tuple[Numbers, list[list[Tensor]]]:
    """This step's numbers, and SGD's momentum buffers (the first step copies the gradient)."""
    group = moment.group
    mu, dampening = float(group["momentum"]), float(group["dampening"])
    if mu:
        for x, state in zip(xs, inner, strict=True):
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(x.detach())
                dampening = 0.0
    mix = (mu, 1.0) if group["nesterov"] else (1.0, 0.0)
    numbers = (float(group["lr"]), moment.rate, mu, 1 - dampening, *mix)
    return numbers, [[state["momentum_buffer"]] if mu else [] for state in inner]
