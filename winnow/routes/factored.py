"""The lane of the factorised routes: the optimizer steps the factors, the weight is their product."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from winnow.factors import Factorisation
from winnow.groups import Split
from winnow.routes.base import UNDERFLOW, Lane, Motion, Move, Site, erase
from winnow.routes.moment import Moment


@final
class FactoredLane(Lane):
    """pull: factor gradients by the chain rule; the optimizer steps the factors; push: θ ← their product."""

    def __init__(self, site: Site, factorisation: Factorisation) -> None:
        super().__init__(site)
        self.factorisation = factorisation
        self.factors = {
            name: nn.Parameter(factor) for name, factor in zip(factorisation.names, self._start(), strict=True)
        }
        if not self.agrees():  # a start that draws its own weights
            self.push()

    def _start(self) -> list[Tensor]:
        """Factors of the weight as it is; float32 for half-precision weights, whose resolution λ·lr is far below."""
        theta = self.site.theta.detach()
        wide = theta.float() if theta.dtype in (torch.float16, torch.bfloat16) else theta
        with torch.no_grad():
            return self.factorisation.start(wide, self.site.groups)

    def __str__(self) -> str:
        return f"{self.factorisation!r}; {self.site.groups}"

    def coordinates(self) -> dict[str, nn.Parameter]:
        return self.factors

    def tensors(self) -> list[Tensor]:
        return [factor.detach() for factor in self.factors.values()]

    @torch.no_grad()
    def agrees(self) -> bool:
        """Whether the weight still is the product of the factors, up to rounding of the product."""
        theta, factors = self.site.theta.detach(), self.tensors()
        product = self.factorisation.product(factors, self.site.groups).to(theta.dtype)
        allowed = 64 * torch.finfo(factors[0].dtype).eps * theta.abs()
        off = (~((product - theta).abs() <= allowed)).sum()  # NaN is off as well
        return int(off.full_tensor() if hasattr(off, "full_tensor") else off) == 0

    @torch.no_grad()
    def restart(self) -> None:
        """Factors anew from the weight as it is; groups whose factors are all zero stay zero."""
        dead = self.energy() == 0
        for factor, value in zip(self.tensors(), self._start(), strict=True):
            factor.copy_(value)
        self.zero(dead, {})
        self.push()

    @torch.no_grad()
    def push(self) -> None:
        """θ ← product of the factors."""
        self.site.theta.copy_(self.factorisation.product(self.tensors(), self.site.groups))
        self.site.scatter()

    @torch.no_grad()
    def before(self, moment: Moment) -> None:
        theta, factors = self.site.theta, self.tensors()
        g = moment.whole_gradient(theta).to(factors[0].dtype)
        grads = self.factorisation.pull(g, factors, self.site.groups, moment.strength * moment.scale)
        for factor, grad in zip(self.factors.values(), grads, strict=True):
            factor.grad = grad

    def after(self, moment: Moment, state: Mapping[str, Any]) -> None:
        for factor, value in zip(self.tensors(), self.factorisation.clip(self.tensors()), strict=True):
            if value is not factor:
                factor.copy_(value)
        self.push()

    def motion(self, moment: Moment) -> Motion | None:
        return FactoredMotion(self.factorisation)

    def energy(self) -> Tensor:
        return self.factorisation.energy(self.tensors(), self.site.groups)

    def imbalance(self) -> Tensor | None:
        return self.factorisation.imbalance(self.tensors(), self.site.groups)

    def vanished(self) -> Tensor | None:
        small = self.site.groups.norm(self.site.theta.detach()) < UNDERFLOW
        idle: Tensor = self.energy() < UNDERFLOW ** (1 / 3)
        return small & idle  # a zero product of live factors is only passing through

    @torch.no_grad()
    def zero(self, dead: Tensor, state: MutableMapping[str, Any]) -> None:
        """All factors of a dead group are zeroed: a product of zeros has no gradient, so zero is absorbing."""
        groups = self.site.groups
        for name, factor in self.factors.items():
            erase({"": factor.data, **state.get(name, {})}, groups, dead, factor.shape)
        groups.split(self.site.theta.data).masked_fill_(dead, 0)
        self.site.scatter()


@final
@dataclass(frozen=True)
class FactoredMotion:
    """Pull, update every factor, clip, push."""

    factorisation: Factorisation

    def look(self, theta: Tensor, groups: Split) -> Tensor | None:
        return None

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
        pulled = self.factorisation.pull(g, xs, groups, strength)
        moved = self.factorisation.clip([move(index, grad)[0] for index, grad in enumerate(pulled)])
        return self.factorisation.product(moved, groups), moved
