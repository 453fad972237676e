"""RIVALS: what people use instead, in the same loop: masks, dynamic sparse training, proximal L1, learnt thresholds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from winnow.errors import WinnowError

from .base import CUT, OFTEN, RATES, Made, Masked, Method, Setting, Training, gradual, largest, numbers

REGROWN, UNTIL = 0.3, 0.75
"""RigL's share of connections moved at first, and the share of the steps after which it stops (Evci et al. 2020)."""


class Dense(Training):
    """Everything stays."""


class Random(Masked):
    """A random mask from the start, the same share in every weight."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        dice = setting.dice()
        self.hold(largest([torch.rand(w.shape, generator=dice) for w in self.weights], setting.keep))


class OneShot(Masked):
    """Dense, then the smallest weights go at once, then fine-tuning."""

    def after(self, step: int) -> None:
        if step == round(CUT * self.setting.steps):
            self.hold(largest([w.detach().abs() for w in self.weights], self.setting.keep))
        self.apply()


class Gradual(Masked):
    """The smallest weights go, a few at a time, on a cubic schedule (Zhu and Gupta 2017); what is gone may not come back."""

    def after(self, step: int) -> None:
        if (keep := gradual(step, self.setting)) is not None:
            self.hold(largest([w.detach().abs() for w in self.weights], keep))
        self.apply()


class RigL(Masked):
    """Sparse from the start: now and then the smallest weights go and those of largest gradient come (Evci et al. 2020).

    Densities per weight by the Erdős–Rényi rule (kernels included), a cosine share of `REGROWN` moved every hundredth of
    the run until `UNTIL` of it; what comes starts at zero.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        dice = setting.dice()
        self.shares = erdos_renyi([tuple(w.shape) for w in self.weights], setting.keep)
        pairs = zip(self.weights, self.shares, strict=True)
        self.hold([largest([torch.rand(w.shape, generator=dice)], share)[0] for w, share in pairs])
        self.grads: list[Tensor] | None = None

    def _moves(self, step: int) -> bool:
        every = max(1, self.setting.steps // OFTEN)
        return step % every == 0 and step < UNTIL * self.setting.steps

    def before(self, step: int) -> None:
        """The gradients of what is masked are what this method looks at; the optimizer must not see them."""
        if self._moves(step):
            self.grads = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in self.weights]
        assert self.masks is not None
        for w, mask in zip(self.weights, self.masks, strict=True):
            if w.grad is not None:
                w.grad.mul_(mask)

    @torch.no_grad()
    def after(self, step: int) -> None:
        if self._moves(step) and self.grads is not None and self.masks is not None:
            share = 0.5 * REGROWN * (1 + math.cos(math.pi * step / (UNTIL * self.setting.steps)))
            self.masks = [self._move(*each, share) for each in zip(self.weights, self.grads, self.masks, strict=True)]
            self.grads = None
        self.apply()

    @torch.no_grad()
    def _move(self, w: Tensor, grad: Tensor, mask: Tensor, share: float) -> Tensor:
        alive = int(mask.sum())
        moved = min(round(share * alive), mask.numel() - alive)
        if not moved:
            return mask
        size = torch.where(mask, w.abs(), torch.inf).flatten()
        new = torch.where(mask, -1.0, grad.abs()).flatten()
        out = mask.flatten().clone()
        out[size.topk(moved, largest=False).indices] = False
        grown = new.topk(moved).indices
        out[grown] = True
        w.view(-1)[grown] = 0
        for state in self.optimizer.state.get(w, {}).values():
            if isinstance(state, Tensor) and state.shape == w.shape:
                state.view(-1)[grown] = 0
        return out.view_as(mask)


def erdos_renyi(shapes: list[tuple[int, ...]], keep: float) -> list[float]:
    """Densities ∝ Σ dims / Π dims, at most 1, that add up to the share `keep` of all entries."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    full: set[int] = set()
    while True:
        budget = keep * sum(sizes) - sum(sizes[i] for i in full)
        free = [i for i in range(len(shapes)) if i not in full]
        scale = budget / sum(raw[i] * sizes[i] for i in free) if free else 0.0
        over = {i for i in free if scale * raw[i] > 1}
        if not over:
            return [1.0 if i in full else max(scale * raw[i], 1 / sizes[i]) for i in range(len(shapes))]
        full |= over


class Proximal(Masked):
    """Soft thresholding by lr·λ after every step; then the smallest go, and the rest trains on without."""

    @torch.no_grad()
    def after(self, step: int) -> None:
        cut = round(CUT * self.setting.steps)
        if step < cut:
            by = float(self.optimizer.param_groups[0]["lr"]) * self.setting.number
            for w in self.weights:
                w.copy_(w.sign() * (w.abs() - by).clamp_min(0))
        if step == cut:
            self.hold(largest([w.detach().abs() for w in self.weights], self.setting.keep))
        self.apply()


class Threshold(nn.Module):
    """STR's map (Kusupati et al. 2020): sign(w)·relu(|w| − σ(s)), one s per weight."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(-8.0))

    def forward(self, w: Tensor) -> Tensor:
        out: Tensor = w.sign() * torch.relu(w.abs() - self.s.sigmoid())
        return out


class STR(Masked):
    """Soft threshold reparametrisation: weight decay on w and s drives the thresholds up; at the end of the first part the
    smallest go to the density asked for, and the rest trains on."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        self.owners = [
            (module, name)
            for module in model.modules()
            for name, theta in module.named_parameters(recurse=False)
            if any(theta is w for w in self.weights)
        ]
        if len(self.owners) > len(self.weights):
            raise WinnowError("STR's maps cannot be laid over tied weights")
        for module, name in self.owners:
            nn.utils.parametrize.register_parametrization(module, name, Threshold())
        self.thresholds = [module.parametrizations[name][0].s for module, name in self.owners]  # type: ignore[index, union-attr]
        optimizer.add_param_group({"params": self.thresholds})
        self.folded = False

    def extra(self) -> Tensor | float:
        if self.folded:
            return 0.0
        latent = [module.parametrizations[name].original for module, name in self.owners]  # type: ignore[index, union-attr]
        cost = torch.stack([w.square().sum() for w in latent]).sum() + torch.stack(self.thresholds).square().sum()
        return 0.5 * self.setting.number * cost

    def after(self, step: int) -> None:
        if step == round(CUT * self.setting.steps):
            self._fold()
            self.hold(largest([w.detach().abs() for w in self.weights], self.setting.keep))
        self.apply()

    def _fold(self) -> None:
        """The same parameters again, holding what the maps gave."""
        for module, name in self.owners:
            nn.utils.parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        self.folded = True
        found = [getattr(module, name) for module, name in self.owners]
        assert all(any(a is b for b in found) for a in self.weights)


class PAT(Masked):
    """torchao's prototype.pat: its lasso on single weights around the optimizer, then the smallest go and the rest heals."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting) -> None:
        super().__init__(model, optimizer, setting)
        from torchao.prototype.pat.optim import PruneOptimizer

        held = {id(w) for w in self.weights}
        self.groups = optimizer.param_groups
        first = self.groups[0]
        ours = {**first, "params": list(self.weights), "prox_type": "ProxLasso", "group_type": "ElemGrouper"}
        rest = {**first, "params": [p for p in first["params"] if id(p) not in held]}
        optimizer.param_groups = [group for group in (ours, rest) if group["params"]]
        self.pat: Any = PruneOptimizer(optimizer, reg_lambda=setting.number)

    def step(self) -> None:
        (self.optimizer if self.masks else self.pat).step()

    def after(self, step: int) -> None:
        if step == round(CUT * self.setting.steps):
            self.hold(largest([w.detach().abs() for w in self.weights], self.setting.keep))
        self.apply()


METHODS: tuple[Method, ...] = (
    Made("dense", "everything stays; same steps", RATES, Dense),
    Made("random mask", "a random mask from the start", RATES, Random),
    Made("one-shot magnitude", "dense, one cut, fine-tuning", RATES, OneShot),
    Made("gradual magnitude", "cubic schedule (Zhu and Gupta)", RATES, Gradual),
    Made("RigL", "drop the smallest, grow by gradient", RATES, RigL),
    Made("L1 proximal", "soft thresholding, one cut, fine-tuning", numbers(1e-2, 3e-3, 3e-2), Proximal),
    Made("PAT", "torchao's prototype.pat: lasso, one cut, fine-tuning", numbers(3e-3, 1e-3, 1e-2), PAT, "torchao"),
    Made("STR", "learnt thresholds, one cut, fine-tuning", numbers(3e-3, 1e-3, 1e-2), STR),
)
