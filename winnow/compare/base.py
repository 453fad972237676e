"""METHOD: one way to train a model to a density, in the same loop and the same number of steps as every other."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from winnow.errors import WinnowError

CUT = 0.6
"""Share of the steps after which the methods that cut once do so; the rest heals, as `Toward`'s default has it."""
OFTEN = 100  # cuts in a run
OWN = 7_777_777
"""Added to a seed for a method's own random numbers: the model's weights were drawn from the seed itself."""


@dataclass(frozen=True)
class Trial:
    """One point of a method's tuning: the factor of the task's learning rate, and the method's own number if it has one."""

    rate: float = 1.0
    number: float | None = None


def rates(*factors: float) -> tuple[Trial, ...]:
    """The trials of a method that tunes its learning rate alone; the first wins a tie."""
    return tuple(Trial(rate) for rate in factors)


def numbers(usual: float, *others: float) -> tuple[Trial, ...]:
    """The trials of a method with a number of its own: three of it, and two more learning rates; the first wins a tie."""
    return (*(Trial(1.0, x) for x in (usual, *others)), Trial(0.3, usual), Trial(3.0, usual))


RATES = rates(1.0, 0.3, 3.0, 0.5, 2.0)


@dataclass(frozen=True)
class Setting:
    """What a method is given: the density to reach, the optimizer steps there are, and what is tuned."""

    keep: float
    steps: int
    trial: Trial = Trial()
    seed: int = 0
    example: Any = None
    """What the model is called with; needed by the methods that take units out."""

    @property
    def number(self) -> float:
        """The method's own; raises `WinnowError` where it was not given one."""
        if self.trial.number is None:
            raise WinnowError("this method needs its own number: Setting(…, trial=Trial(number=…)), as in its trials")
        return self.trial.number

    def dice(self) -> torch.Generator:
        """Random numbers of the method's own, which have nothing to do with the initial weights."""
        return torch.Generator().manual_seed(self.seed + OWN)


class Training:
    """A method at work on one model; the loop calls these. All weights of two or more dimensions are counted and cut.

    A method may put a smaller model, and an optimizer of that, in the place of `model` and `optimizer`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        self.model, self.optimizer, self.setting = model, optimizer, setting
        self.weights = weights_of(model)

    def extra(self) -> Tensor | float:
        """Added to the loss."""
        return 0.0

    def before(self, step: int) -> None:
        """The gradients are there, the optimizer has not stepped; steps count from 1."""

    def step(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()

    def after(self, step: int) -> None:
        """The optimizer has stepped."""

    def finish(self) -> None:
        """All steps are taken: leave plain weights with exact zeros."""

    def density(self) -> float:
        """The share obtained, of what `Setting.keep` is a share of."""
        return density(self.weights)

    def slack(self) -> float:
        """By how much that may be above the share asked for: one entry of each weight has to stay."""
        return len(self.weights) / sum(w.numel() for w in self.weights)

    def layers(self) -> dict[str, float]:
        """The same of each weight."""
        names = {id(theta): name for name, theta in self.model.named_parameters()}
        return {names[id(w)]: density([w]) for w in self.weights}


class Masked(Training):
    """Weights under masks: what is masked stays zero, whatever the optimizer remembers."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        self.masks: list[Tensor] | None = None

    def hold(self, masks: list[Tensor]) -> None:
        """From now on these."""
        self.masks = masks
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        if self.masks is not None:
            for w, mask in zip(self.weights, self.masks, strict=True):
                w.mul_(mask)

    def after(self, step: int) -> None:
        self.apply()


@dataclass(frozen=True)
class Method(ABC):
    """`trials` are what is tried in tuning: as many for every method, so that the budget is equal."""

    name: str
    about: str
    trials: Sequence[Trial]

    @abstractmethod
    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> Training:
        """Take hold of a fresh model."""

    def check(self) -> None:  # noqa: B027 - optional
        """Raise `WinnowError` where a library that it needs is missing."""


@dataclass(frozen=True)
class Made(Method):
    """A method whose training is a class; `needs` names a module of the extra's that it cannot do without."""

    make: Callable[[nn.Module, torch.optim.Optimizer, Setting], Training]
    needs: str = ""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> Training:
        return self.make(model, optimizer, setting)

    def check(self) -> None:
        if self.needs and importlib.util.find_spec(self.needs) is None:
            raise WinnowError(f'{self.name} needs {self.needs}: pip install "torch-winnow[compare]"')


def weights_of(model: nn.Module) -> list[Tensor]:
    """What `where=Elements()` penalises: every weight of two or more dimensions, tied ones once."""
    return [theta for theta in dict.fromkeys(model.parameters()) if theta.dim() >= 2]


@torch.no_grad()
def largest(scores: Sequence[Tensor], keep: float) -> list[Tensor]:
    """Masks of the share `keep` with the largest scores, over all tensors; at least one entry of each."""
    flat = torch.cat([score.flatten() for score in scores]).float()
    sizes = [score.numel() for score in scores]
    start = 0
    for size in sizes:
        flat[start + int(flat[start : start + size].argmax())] = torch.inf
        start += size
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(max(round(keep * len(flat)), len(sizes))).indices] = True
    return [part.view_as(score) for part, score in zip(torch.split(chosen, sizes), scores, strict=True)]


def cubic(step: int, first: int, last: int, keep: float) -> float:
    """Zhu and Gupta's (2017) density at a step: from 1 at `first` to `keep` at `last`."""
    left = min(1.0, max(0.0, (last - step) / max(last - first, 1)))
    return keep + (1 - keep) * left**3


def gradual(step: int, setting: Setting) -> float | None:
    """The density that a gradual method cuts to after this step, a hundred times in a run; None for "not now"."""
    first, last = round(0.1 * setting.steps), round(CUT * setting.steps)
    now = first < step <= last and (step % max(1, setting.steps // OFTEN) == 0 or step == last)
    return cubic(step, first, last, setting.keep) if now else None


def density(weights: Sequence[Tensor]) -> float:
    """Share of entries that are not exactly zero."""
    return sum(int(torch.count_nonzero(w)) for w in weights) / sum(w.numel() for w in weights)
