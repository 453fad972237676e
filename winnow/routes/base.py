"""HOW, in general: a `Route` is a frozen description; its `Lane` walks one weight down it, one optimizer step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from winnow.groups import Groups, Split
from winnow.penalties import Penalty
from winnow.routes.moment import Moment
from winnow.schedules import Pace
from winnow.units import Member

UNDERFLOW = 1e-30
"""Group norms below this are set to exact zero, factors and optimizer state with them: they are far below every
threshold in use, cannot come back in any training of finite length, and would turn into denormals, on which a CPU is
ten times slower."""


@final
@dataclass(frozen=True, eq=False)
class Site:
    """One penalised weight: its name in the model, the tensor, and its groups."""

    name: str
    theta: nn.Parameter
    groups: Groups
    owners: tuple[tuple[nn.Module, str], ...] = field(default=(), repr=False)
    """Every (module, attribute) that holds the tensor: more than one for tied weights."""
    shares: tuple[Share, ...] = field(default=(), repr=False)
    """Where `theta` is put together from slices of several weights, one row per unit: those slices."""
    cost: int = 0
    """Entries of the model that go with a group, where they are more than those that are penalised."""

    @property
    def entries(self) -> int:
        """What a group counts for in a density."""
        return self.cost or self.groups.size

    @property
    def anchor(self) -> nn.Parameter:
        """The weight that the optimizer holds, and under which what belongs to the site is kept."""
        return self.shares[0].weight if self.shares else self.theta

    @property
    def version(self) -> int:
        """Changes whenever somebody writes to the model's weights."""
        return sum(share.weight._version for share in self.shares) if self.shares else self.theta._version

    @torch.no_grad()
    def gather(self) -> None:
        """Slices of the model's weights into `theta`."""
        if self.shares:
            self.theta.copy_(torch.cat([share.member.take(share.weight) for share in self.shares], 1))

    @property
    def weights(self) -> list[nn.Parameter]:
        """The model's weights behind `theta`, itself if there is nothing to put together."""
        return [share.weight for share in self.shares] or [self.theta]

    @torch.no_grad()
    def assemble(self, grads: Sequence[Tensor | None]) -> Tensor | None:
        """The gradient of `theta` from those of `weights`; None if none of them has one."""
        if not self.shares:
            return grads[0]
        if all(g is None for g in grads):
            return None
        pairs = zip(self.shares, grads, strict=True)
        return torch.cat([s.member.take(torch.zeros_like(s.weight) if g is None else g) for s, g in pairs], 1)

    def collect(self) -> None:
        """The gradient of `theta` from what backward has left."""
        if self.shares:
            self.theta.grad = self.assemble([weight.grad for weight in self.weights])

    @torch.no_grad()
    def scatter(self) -> None:
        """`theta` back into the model's weights."""
        if not self.shares:
            return
        for share, part in zip(self.shares, self.cut(self.theta), strict=True):
            share.member.put(share.weight, part)

    def cut(self, x: Tensor) -> Sequence[Tensor]:
        """A tensor of the shape of `theta` in the parts that belong to `shares`."""
        return torch.split(x, [share.width for share in self.shares], 1)


@final
@dataclass(frozen=True, eq=False)
class Share:
    """One weight's slices in a site that is put together of several."""

    member: Member
    weight: nn.Parameter
    width: int
    """Entries per unit."""
    whole: bool
    """Whether the units take all of the weight, so that nothing of it is left for the optimizer to step."""
    owners: tuple[tuple[nn.Module, str], ...] = field(default=(), repr=False)


class Motion(Protocol):
    """One step as a pure function, hashable by what it computes, so that it can be compiled once and fused.

    Given the weight, its gradient and the stepped tensors `xs` (grouped views), and `move(index, gradient)` that gives
    xs[index] after the optimizer's update, the flow rate and the rate in the optimizer's own metric, returns
    (new weight, new xs).  `look` is what must be reduced from the weight beforehand, in a pass of its own.
    """

    def look(self, theta: Tensor, groups: Split) -> Tensor | None: ...

    def __call__(
        self,
        seen: Tensor | None,
        theta: Tensor,
        g: Tensor,
        xs: Sequence[Tensor],
        groups: Split,
        strength: Tensor,
        move: Move,
    ) -> tuple[Tensor, list[Tensor]]: ...

    def __hash__(self) -> int: ...


Move = Callable[[int, Tensor], tuple[Tensor, Tensor, Tensor]]


class Lane(ABC):
    """One weight's way: what steps in its place, and what happens right before and after the optimizer's step."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def coordinates(self) -> dict[str, nn.Parameter]:
        """The tensors that the optimizer steps instead of the weight; empty if it steps the weight itself."""
        return {}

    @property
    def steps_weight(self) -> bool:
        """Whether the optimizer steps the weight itself."""
        return not self.coordinates()

    def keeps(self) -> dict[str, Tensor]:
        """Further tensors that a checkpoint must hold."""
        return {}

    def restore(self, kept: Mapping[str, Tensor]) -> None:  # noqa: B027 - optional
        """Take back what `keeps` gave."""

    def open(self, moment: Moment) -> None:  # noqa: B027 - optional
        """Before training's next forward pass: the strength in force from now on."""

    @abstractmethod
    def before(self, moment: Moment) -> None:
        """The weight's gradient is known, the step not yet taken."""

    @abstractmethod
    def after(self, moment: Moment, state: Mapping[str, Any]) -> None:
        """The optimizer has stepped; `state` is its state for the weight."""

    def motion(self, moment: Moment) -> Motion | None:
        """The coming step as a pure function for the fast path; None if it is not one."""
        return None

    def norm(self) -> Tensor:
        """What a cut goes by: ‖θ_g‖ unless the route knows better."""
        return self.site.groups.norm(self.site.theta.detach())

    @abstractmethod
    def energy(self) -> Tensor:
        """Smooth penalty per group (equal to Ω where the route has no factors)."""

    @abstractmethod
    def imbalance(self) -> Tensor | None:
        """Per group, zero at stationary points; None where the route has no factors."""

    def vanished(self) -> Tensor | None:
        """Groups that have underflowed on their own and can be zeroed; None where that cannot be told."""
        return None

    @abstractmethod
    def zero(self, dead: Tensor, state: MutableMapping[str, Any]) -> None:
        """Set the groups marked in `dead` (gate-shaped, bool) to zero for good, the optimizer's memory of them too."""

    def doomed(self, strength: float) -> Tensor:
        """Groups that count as zero at the end though their norm is not: none, unless the route says so."""
        return torch.zeros_like(self.site.groups.norm(self.site.theta.detach()), dtype=torch.bool)

    def prune(self, dead: Tensor, state: MutableMapping[str, Any]) -> None:
        """The same before the choice of what stays is final: for good as well, unless the route lets groups come back."""
        self.zero(dead, state)

    def agrees(self) -> bool:
        """Whether the weight still is what the coordinates make of it, up to rounding."""
        return True

    def restart(self) -> None:  # noqa: B027 - optional
        """Coordinates anew from the weight as it is; what is zero for good stays so."""

    def push(self) -> None:  # noqa: B027 - optional
        """θ ← what the coordinates make of it."""

    def close(self) -> None:  # noqa: B027 - optional
        """Leave the model as it was found."""


def erase(state: MutableMapping[str, Any], groups: Groups, dead: Tensor, like: torch.Size) -> None:
    """Zero the tensors of an optimizer's state that mirror a weight or its gates, where `dead`."""
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == like:
            view = groups.split(value) if tuple(like) == groups.shape else value
            view.masked_fill_(dead, 0)


class WeightLane(Lane):
    """A lane on which the optimizer steps the weight itself."""

    penalty: Penalty

    def __str__(self) -> str:
        return f"{type(self).__name__.removesuffix('Lane')} of {self.penalty}; {self.site.groups}"

    def coordinates(self) -> dict[str, nn.Parameter]:
        """None, but that a weight put together from several is no weight the optimizer has."""
        return {"w": self.site.theta} if self.site.shares else {}

    def energy(self) -> Tensor:
        return self.penalty.value(self.norm()) * self.site.groups.scale

    def imbalance(self) -> Tensor | None:
        return None

    @torch.no_grad()
    def zero(self, dead: Tensor, state: MutableMapping[str, Any]) -> None:
        groups = self.site.groups
        groups.split(self.site.theta.data).masked_fill_(dead, 0)
        erase(state, groups, dead, self.site.theta.shape)
        self.site.scatter()


class Route(ABC):
    """A way down F(w) = L(w) + λ·ΣΩ(‖w_g‖). Frozen; `lane` opens it for one weight."""

    penalty: Penalty
    """The Ω whose stationary points the route reaches."""

    @abstractmethod
    def lane(self, site: Site, optimizer: Optimizer) -> Lane:
        """Open the route for one weight; raises `AttachError` where it is not defined, before anything is changed."""

    def check(self, site: Site, optimizer: Optimizer) -> None:  # noqa: B027 - optional
        """Raise `AttachError` if the route is not defined for this weight or optimizer; touches nothing."""

    @property
    def pace(self) -> Pace:
        """How `Toward` goes about it on this route where nothing else is asked for."""
        return Pace()

    @property
    def holds_zero(self) -> bool:
        """Whether a weight that starts at exactly zero stays there for ever."""
        return False

    @property
    def reach(self) -> float:
        """λτ that a group of norm one, without gradient, needs to fall to float32's resolution."""
        return 0.0
