"""HOW, variational dropout: every weight is drawn from N(w, σ²); the mean loss is trained together with λ·ΣKL, λ = 1/N.

Molchanov, Ashukha, Vetrov, arXiv 1701.05369; the case study of dropout as a penalty (LeJeune et al., arXiv 2106.07769,
section 3.1 of spec/adaptive_dropout.md).  With a = σ²/w² and η = 1/a, the KL to the log-uniform prior is f(η)/2, f the
dual of `VariationalDropout`.  Where the loss has curvature h, the best σ leaves λ·Ω(√(h/λ)·|w|): (1/N)·Ω(√(Nh)·|w|).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from winnow.errors import AttachError, PenaltyError, warn
from winnow.noise import ForwardNoise
from winnow.penalties import VariationalDropout, VariationalDropoutFit
from winnow.routes.base import Lane, Route, Site, WeightLane, erase
from winnow.routes.moment import Moment

LIMIT = 10.0
"""|log σ| (additive) or |log a| (multiplicative) go no further: a weight without gradient would drift for ever."""

Deviation = Callable[[Tensor], Tensor]
"""σ of every entry, given the weight; its sign does not matter."""


class Form(ABC):
    """Where the noise is drawn."""

    def check(self, site: Site) -> None:  # noqa: B027 - optional
        """Raise `AttachError` if the weight's modules cannot take the noise."""

    @abstractmethod
    def hang(self, site: Site, deviation: Deviation) -> ForwardNoise | OutputNoise:
        """Put the noise into the forward pass, in training mode, until it is removed."""


@final
@dataclass(frozen=True)
class WeightNoise(Form):
    """w + σξ: one draw of the weights in each forward pass, for any module."""

    def hang(self, site: Site, deviation: Deviation) -> ForwardNoise | OutputNoise:
        return ForwardNoise(site.owners, lambda theta: theta + deviation(theta) * torch.randn_like(theta))


@final
@dataclass(frozen=True)
class Local(Form):
    """Local reparametrisation: draws pre-activations, N(Wx, σ²x²), of linear and convolutional layers.

    The same marginal law as noise on the weights, drawn for every example and pixel by itself: gradients of far less
    variance, for a second product (Kingma, Salimans, Welling, arXiv 1506.02557).
    """

    def check(self, site: Site) -> None:
        for module, name in site.owners:
            if name != "weight" or _product(module) is None:
                raise AttachError(
                    "local reparametrisation draws the output of nn.Linear, nn.Conv1d, nn.Conv2d and nn.Conv3d, but "
                    f"{site.name!r} is the {name} of a {type(module).__name__}; use form=WeightNoise(), or leave it "
                    "out of where="
                )

    def hang(self, site: Site, deviation: Deviation) -> ForwardNoise | OutputNoise:
        return OutputNoise(site.owners, deviation)


def _product(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """(x, w) ↦ the module's output without bias, if it is one that is known (subclasses with a forward are not)."""
    forward = type(module).forward
    if forward is nn.Linear.forward:
        return F.linear
    if forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
        return lambda x, w: module._conv_forward(x, w, None)  # type: ignore[operator]
    return None


@final
class OutputNoise:
    """Adds noise of variance σ²x² to the output of every module that holds the weight."""

    def __init__(self, owners: tuple[tuple[nn.Module, str], ...], deviation: Deviation) -> None:
        self.fired = False
        self._handles = [self._hang(module, name, deviation) for module, name in owners]

    def _hang(self, module: nn.Module, name: str, deviation: Deviation) -> Any:
        product = _product(module)
        assert product is not None

        def add(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor) -> Tensor:
            theta = module._parameters[name]
            if not module.training or theta is None:
                return output
            self.fired = True
            x = args[0] if args else kwargs["input"]
            variance = product(x.square(), deviation(theta).square())
            live = variance > 0  # √ has no slope at 0
            return output + torch.where(live, variance, 1.0).sqrt() * live * torch.randn_like(output)

        return module.register_forward_hook(add, with_kwargs=True)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@final
@dataclass(frozen=True)
class Variational(Route):
    """Variational dropout for single weights; strength λ = 1/N for a mean loss over N training examples.

    `form`: where the noise is drawn, `Local()` or `WeightNoise()`.  `additive` trains log σ² beside w, else log a, the
    noise multiplying the weight.  `start`: log σ, or log a, at the beginning.  `tolerance`: weights of keep probability
    α = 1/(1+a) below it count as zero: log a > log((1−tol)/tol).  `penalty`: the exact KL, or the published fit.

    The stationary points of w are those of L + λΩ(√(h/λ)·|w|), which depends on the loss's curvature h: what a
    certificate says of λΩ is exact at h = λ only.
    """

    form: Form = field(default=Local())
    additive: bool = True
    tolerance: float = 0.05
    start: float = -5.0
    penalty: VariationalDropout | VariationalDropoutFit = field(default=VariationalDropout())

    def __post_init__(self) -> None:
        if not isinstance(self.form, Form):
            raise PenaltyError(f"form must be Local() or WeightNoise(), got {self.form!r}")
        if not isinstance(self.penalty, VariationalDropout | VariationalDropoutFit):
            raise PenaltyError(f"penalty must be VariationalDropout() or VariationalDropoutFit(), got {self.penalty!r}")
        if not 0 < self.tolerance < 1:
            raise PenaltyError(f"tolerance must lie in (0, 1), got {self.tolerance}; 0.05 is the paper's")
        if not -LIMIT <= self.start <= LIMIT:
            raise PenaltyError(f"start must lie in [{-LIMIT:g}, {LIMIT:g}], got {self.start}; -5 is the paper's")

    def check(self, site: Site, optimizer: torch.optim.Optimizer) -> None:
        if site.groups.size > 1:
            raise AttachError(
                f"variational dropout gives every single weight its own noise, but {site.name!r} has {site.groups}; "
                "use where=Elements(), or how=Dropout(VariationalDropout(), Gaussian()) for groups"
            )
        ranks = torch.distributed
        several = ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1
        if several or hasattr(site.theta, "placements"):
            raise AttachError(
                "variational dropout trains its deviations beside the model, where no wrapper averages their gradients "
                "over ranks; train in one process, or use how=Dropout(VariationalDropout(), Gaussian())"
            )
        self.form.check(site)

    def lane(self, site: Site, optimizer: torch.optim.Optimizer) -> Lane:
        return VariationalLane(site, self)


@final
class VariationalLane(WeightLane):
    """The optimizer steps the mean w and, as a coordinate beside it, log σ² or log a."""

    def __init__(self, site: Site, route: Variational) -> None:
        super().__init__(site)
        self.route = route
        self.penalty = route.penalty
        self.name, self.unit = ("log_sigma2", 2.0) if route.additive else ("log_a", 1.0)
        theta = site.theta.detach()
        wide = torch.float32 if theta.dtype in (torch.float16, torch.bfloat16) else theta.dtype
        self.trained = nn.Parameter(torch.full_like(theta, self.unit * route.start, dtype=wide))
        self.twin = _Twin(site.theta, self.trained)
        self.noise = route.form.hang(site, self.deviation)

    def __str__(self) -> str:
        return f"{super().__str__()}; {self.route.form}, {self.name}"

    def coordinates(self) -> dict[str, nn.Parameter]:
        return {self.name: self.trained}

    @property
    def steps_weight(self) -> bool:
        return True

    def deviation(self, theta: Tensor) -> Tensor:
        """σ, up to its sign; an exact zero is certain."""
        half = (self.trained / 2).exp().to(theta.dtype)
        return half * (theta != 0) if self.route.additive else half * theta

    def ratio(self) -> tuple[Tensor, Tensor]:
        """(num, den) with η = 1/a = num/den."""
        den = self.trained.detach().exp()
        return (self.site.theta.detach().to(den.dtype).square() if self.route.additive else torch.ones_like(den)), den

    def before(self, moment: Moment) -> None:
        if not self.noise.fired and moment.step == 0:
            warn(
                f"{self.site.name!r} saw no noise in the forward pass: its module was not called in training mode "
                "(call model.train(), or leave this weight out of where=)"
            )
        self.twin.align()
        with torch.no_grad():
            self._add_kl(moment.strength * self.site.groups.scale * moment.scale)

    def _add_kl(self, strength: float | Tensor) -> None:
        """∂KL/∂log = −ηf'(η)/2 on what is trained; additive noise has ∂KL/∂w = f'(η)·w/σ² as well."""
        theta, trained = self.site.theta, self.trained
        num, den = self.ratio()
        slope = self.penalty.dual_slope_ratio(num, den)  # f'(η)/den²
        pull = -strength / 2 * num * den * slope
        trained.grad = pull if trained.grad is None else trained.grad + pull
        if self.route.additive and theta.grad is not None:
            pull = (strength * theta * den * slope).to(theta.dtype)
            theta.grad = theta.grad + pull  # a new tensor: the host puts the loss's own back

    @torch.no_grad()
    def after(self, moment: Moment, state: Mapping[str, Any]) -> None:
        self.trained.grad = None
        self.trained.clamp_(-self.unit * LIMIT, self.unit * LIMIT)

    def energy(self) -> Tensor:
        """KL of every weight, up to the constant that makes it 0 at w = 0."""
        return self.penalty.dual_ratio(*self.ratio()) / 2 * self.site.groups.scale

    @torch.no_grad()
    def zero(self, dead: Tensor, state: MutableMapping[str, Any]) -> None:
        super().zero(dead, state)
        erase(state.get(self.name, {}), self.site.groups, dead, self.trained.shape)

    def doomed(self, strength: float) -> Tensor:
        num, den = self.ratio()
        tolerance = self.route.tolerance
        return num * (1 - tolerance) < tolerance * den

    def close(self) -> None:
        self.noise.remove()
        self.twin.remove()


@final
class _Twin:
    """Does to one tensor's gradient what the user does to the weight's: zero_grad, unscaling, clipping.

    The user's loop, gradient scalers and clipping know the weight only.  A weight's gradient that was not there, or not
    as we left it, when a backward pass reaches it starts a new sum; the share by which its norm has changed since the
    last backward pass is the factor that the other one must be multiplied by.
    """

    def __init__(self, theta: nn.Parameter, other: nn.Parameter) -> None:
        self.theta, self.other = theta, other
        self.norm: Tensor | None = None
        self.mark = self._now()
        self._handles = [
            theta.register_hook(self._renew),  # type: ignore[no-untyped-call]
            other.register_hook(self._renew),  # type: ignore[no-untyped-call]
            theta.register_post_accumulate_grad_hook(self._stamp),  # type: ignore[no-untyped-call]
        ]

    def _now(self) -> tuple[int, int] | None:
        grad = self.theta.grad
        return None if grad is None else (grad.data_ptr(), grad._version)

    def _renew(self, _: Tensor) -> None:
        """Before a backward pass adds to either gradient (in either order)."""
        if self._now() != self.mark:
            self.other.grad, self.mark = None, self._now()

    def _stamp(self, _: Tensor) -> None:
        self.mark, self.norm = self._now(), self._size()

    def _size(self) -> Tensor:
        grad = self.theta.grad
        assert grad is not None
        size: Tensor = torch.linalg.vector_norm(grad.detach(), dtype=torch.promote_types(grad.dtype, torch.float32))
        return size

    @torch.no_grad()
    def align(self) -> None:
        """Unscale and clip the other gradient as the weight's was."""
        if self.norm is None or self.other.grad is None or self.theta.grad is None:
            return
        share = self._size() / self.norm  # not asked of `mark`: a gradient scaler's kernel leaves no trace in versions
        if math.isfinite(float(share)) and float(share) != 1.0:
            self.other.grad = self.other.grad * share

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
