"""STRUCTURED: methods that take whole units out, so that the model becomes smaller; shares are of the parameters."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import winnow
from winnow.errors import WinnowError
from winnow.smaller.remove import lowest, magnitude
from winnow.units import UnitLayer, read_units, weight, zero_units

from .base import CUT, OFTEN, RATES, Made, Setting, Training, gradual, numbers
from .ours import PULLS, Ours, toward

HALVINGS = 14  # of the pruning ratio, to come down to a share of the parameters


class Units(Training):
    """Ends with a smaller model; what is counted is its parameters."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        if setting.example is None:
            raise WinnowError("methods that take units out need Setting(example=…): what the model is called with")
        self.sizes = {name: theta.numel() for name, theta in model.named_parameters()}

    def density(self) -> float:
        return sum(theta.numel() for theta in self.model.parameters()) / sum(self.sizes.values())

    def slack(self) -> float:
        return 0.0

    def layers(self) -> dict[str, float]:
        left = {name: theta.numel() for name, theta in self.model.named_parameters()}
        return {name: left.get(name, 0) / size for name, size in self.sizes.items()}

    def compact(self) -> None:
        """The zeros out."""
        self.model, _ = winnow.compact(self.model.eval(), self.setting.example)


class Held(Units):
    """Units that have gone are held at zero until the end, when they are taken out: steps are equal, so they may wait."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        self.tracer, self.units = read_units(model, setting.example)
        self.spending = winnow.Parameters().spending(self.tracer, self.units)
        self.dead: list[Tensor] | None = None

    def cut(self, scores: list[Tensor], keep: float) -> None:
        """Those of lowest score go, until this share of the parameters is left."""
        self.dead = lowest(scores, keep, self.spending)
        self.hold()

    def by_size(self, keep: float) -> None:
        """Those of smallest norm, over their layer's mean."""
        self.cut([magnitude(self.model, layer) for layer in self.units], keep)

    def hold(self) -> None:
        if self.dead is not None:
            zero_units(self.model, self.units, self.dead)

    def after(self, step: int) -> None:
        self.hold()

    def finish(self) -> None:
        self.hold()
        self.compact()


class Smaller(Held):
    """Random units go before the first step: a smaller model from scratch."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        dice = setting.dice()
        self.cut([torch.rand(layer.count, generator=dice) for layer in self.units], setting.keep)


class OneShot(Held):
    """Dense, then the smallest units go at once, then fine-tuning."""

    def after(self, step: int) -> None:
        if step == round(CUT * self.setting.steps):
            self.by_size(self.setting.keep)
        self.hold()


class Gradual(Held):
    """The smallest units go, a few at a time, on a cubic schedule of the parameters left."""

    def after(self, step: int) -> None:
        if (keep := gradual(step, self.setting)) is not None:
            self.by_size(keep)
        self.hold()


class GroupLasso(Held):
    """Proximal steps on λ Σ √size ‖unit‖ (Yuan and Lin 2006); then the smallest units go, and the rest trains on."""

    @torch.no_grad()
    def after(self, step: int) -> None:
        cut = round(CUT * self.setting.steps)
        if step < cut:
            by = float(self.optimizer.param_groups[0]["lr"]) * self.setting.number
            for layer in self.units:
                self._shrink(layer, by)
        if step == cut:
            self.by_size(self.setting.keep)
        self.hold()

    def _shrink(self, layer: UnitLayer, by: float) -> None:
        """Block soft thresholding of every unit over all weights that make it."""
        thetas = [weight(self.model, member.name) for member in layer.members]
        parts = torch.cat([member.take(theta) for member, theta in zip(layer.members, thetas, strict=True)], 1)
        norm = torch.linalg.vector_norm(parts, dim=1).clamp_min(torch.finfo(parts.dtype).tiny)
        factors = (1 - by * parts.shape[1] ** 0.5 / norm).clamp_min(0)
        for member, theta in zip(layer.members, thetas, strict=True):
            theta.copy_(member.scale(theta, factors))


class GroupNorm(Units):
    """Torch-Pruning's group-norm pruner (Fang et al. 2023): its regulariser, one cut by its importance, fine-tuning.

    Its ratio is of channels; it is halved to until the share of parameters is reached.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        import torch_pruning

        self.tp: Any = torch_pruning
        self.pruner = self._pruner(model, 0.5)

    def before(self, step: int) -> None:
        if step <= round(CUT * self.setting.steps):
            if step % max(1, self.setting.steps // OFTEN) == 1:
                self.pruner.update_regularizer()
            self.pruner.regularize(self.model)

    def after(self, step: int) -> None:
        if step == round(CUT * self.setting.steps):
            self.model = self._pruned(self._ratio())
            self.optimizer = _again(self.optimizer, self.model)

    def _pruner(self, model: nn.Module, ratio: float) -> Any:
        example = self.setting.example
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = self.tp.DependencyGraph().build_dependency(model, example, verbose=False)
            last = [module for module, node in graph.module2node.items() if not node.outputs]
            pruner = self.tp.pruner.GroupNormPruner(
                model, example, self.tp.importance.GroupMagnitudeImportance(p=2), reg=self.setting.number, global_pruning=True,
                pruning_ratio=ratio, ignored_layers=last,
                root_module_types=[nn.modules.conv._ConvNd, nn.Linear],
            )  # fmt: skip
        pruner.update_regularizer()
        return pruner

    def _pruned(self, ratio: float) -> nn.Module:
        model = copy.deepcopy(self.model)
        self._pruner(model, ratio).step()
        return model

    def _ratio(self) -> float:
        """The smallest that leaves no more than was asked for."""
        enough, too_small = 1.0, 0.0
        whole = sum(self.sizes.values())
        for _ in range(HALVINGS):
            middle = (enough + too_small) / 2
            left = sum(theta.numel() for theta in self._pruned(middle).parameters())
            enough, too_small = (middle, too_small) if left <= self.setting.keep * whole else (enough, middle)
        return enough


def _again(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The same kind, with the same options, for another model."""
    kind: Any = type(optimizer)
    taken = inspect.signature(kind).parameters
    fresh: torch.optim.Optimizer = kind(
        model.parameters(), **{k: v for k, v in optimizer.defaults.items() if k in taken}
    )
    return fresh


class Attached(Units):
    """A run of Winnow's on whole units that steers itself to a share of the parameters."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting, how: winnow.Route) -> None:
        super().__init__(model, optimizer, setting)
        where = winnow.Channels(setting.example, count=winnow.Parameters())
        when = toward(setting)
        self.run = winnow.attach(model, optimizer, how=how, where=where, when=when)

    def slack(self) -> float:
        """One unit's share, at which a target may stop."""
        return self.run.grain

    def finish(self) -> None:
        self.run.settle()
        self.compact()


METHODS = (
    Made("dense", "everything stays; same steps", RATES, Training),
    Made("smaller from scratch", "random units out at the start", RATES, Smaller),
    Made("one-shot magnitude", "dense, one cut of units, fine-tuning", RATES, OneShot),
    Made("gradual magnitude", "units on a cubic schedule", RATES, Gradual),
    Made("group lasso", "proximal steps on units, one cut, fine-tuning", numbers(3e-3, 1e-3, 1e-2), GroupLasso),
    Made(
        "group norm",
        "Torch-Pruning's pruner, one cut, fine-tuning",
        numbers(5e-4, 1e-4, 2e-3),
        GroupNorm,
        "torch_pruning",
    ),
    Ours("gating, D = 3", "a gate of depth 3 on every unit", PULLS, Attached, winnow.Gating(depth=3)),
    Ours("gating, D = 2", "a gate of depth 2 on every unit", PULLS, Attached, winnow.Gating(depth=2)),
    Ours("decay, p = 1/2", "p-norm decay of units", PULLS, Attached, winnow.Decay(winnow.Lp(0.5))),
    Ours("decay, LogSum", "the η-trick for LogSum(2) on units", PULLS, Attached, winnow.Decay(winnow.LogSum(2.0))),
    Ours("latent, garrote", "latent units under the garrote", RATES, Attached, winnow.Latent()),
)
