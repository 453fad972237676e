"""REGRESSION: the linear problems on which routes can be held against an exact solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from winnow.penalties import Penalty
from winnow.routes import Dropout, Expected, Route

from .small import attached


@dataclass(frozen=True)
class Linear:
    """L(w) = ‖y − Xw‖²/2n with columns of unit mean square, so that every curvature h is 1. `X` (n, d), `y` (n,), float64."""

    X: Tensor
    y: Tensor

    def loss(self, w: Tensor) -> Tensor:
        return self.loss_of(self.X @ w)

    def loss_of(self, prediction: Tensor) -> Tensor:
        """The same of Xw."""
        out: Tensor = 0.5 * (self.y - prediction).square().mean()
        return out

    def objective(self, w: Tensor, penalty: Penalty, strength: float) -> float:
        """F(w) = L(w) + λΣΩ(|w|)."""
        return float(self.loss(w) + strength * penalty.value(w.abs()).sum())

    def least_squares(self) -> Tensor:
        out: Tensor = torch.linalg.lstsq(self.X, self.y).solution
        return out

    def reweighted(self, penalty: Penalty, strength: float, steps: int = 3000) -> Tensor:
        """Iteratively reweighted ridge from least squares: w ← D(DXᵀXD/n + λI)⁻¹DXᵀy/n, D = √η̂(w).

        Knows nothing of routes; monotone in F (Daubechies et al. 2010 for L1; the η-trick for any subquadratic Ω).
        Plateaus have η̂ = ∞ and are capped at 1e8, a ridge of 1e-8 λ.
        """
        n, w = len(self.y), self.least_squares()
        gram, moment = self.X.T @ self.X / n, self.X.T @ self.y / n
        eye = torch.eye(len(w), dtype=w.dtype)
        for _ in range(steps):
            root = penalty.eta(w.abs()).clamp_max(1e8).sqrt()
            w = root * torch.linalg.solve(root[:, None] * gram * root + strength * eye, root * moment)
            w = torch.where(w.abs() < 1e-14, 0.0, w)
        return w


def correlated(
    n: int, d: int, truth: list[float], noise: float, seed: int, correlation: float = 0.5
) -> tuple[Linear, Tensor]:
    """Gaussian rows with correlation^|i−j| between columns, columns scaled to mean square 1; and the true weights."""
    dice = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=dice, dtype=torch.float64)
    for j in range(1, d):
        X[:, j] = correlation * X[:, j - 1] + (1 - correlation**2) ** 0.5 * X[:, j]
    X = X / X.square().mean(0).sqrt()
    w = torch.zeros(d, dtype=torch.float64)
    w[torch.randperm(d, generator=dice)[: len(truth)]] = torch.tensor(truth, dtype=torch.float64)
    return Linear(X, X @ w + noise * torch.randn(n, generator=dice, dtype=torch.float64)), w


def descent(
    problem: Linear, start: Tensor, how: Route, penalty: Penalty, strength: float, lr: float, steps: int
) -> tuple[Tensor, list[list[float]]]:
    """Plain SGD down `how` from `start`: the end weights, and [Σlr, F] along the way.

    The rate falls by cosine.  Random masks need a slower end: lr/(1 + t/1000), the last half's weights averaged, and the
    method's own pruning rule (keep probability below its tolerance) at the end.
    """
    noisy = isinstance(how, Dropout) and not isinstance(how.mask, Expected)
    model, optimizer, _ = attached(start, lr, how, strength)
    rates: torch.optim.lr_scheduler.LRScheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if noisy:
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 1000))
    path, flow, seen, mean = [], 0.0, 0, torch.zeros_like(start)
    marks = {round(steps ** (k / 60)) for k in range(61)}
    torch.manual_seed(0)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        problem.loss_of(model(problem.X)).backward()  # type: ignore[no-untyped-call]
        flow += optimizer.param_groups[0]["lr"]
        optimizer.step()
        rates.step()
        if noisy and step > steps // 2:
            seen, mean = seen + 1, mean + model.w.detach()
        if step in marks:
            path.append([flow, problem.objective(mean / seen if seen else model.w.detach(), penalty, strength)])
    w = mean / seen if seen else model.w.detach().clone()
    if isinstance(how, Dropout) and noisy:
        w = torch.where(how.keep(w.abs(), strength) < how.tolerance, 0.0, w)
    return w, path


@torch.no_grad()
def shrunk_late(problem: Linear, start: Tensor, penalty: Penalty, strength: float, lr: float, steps: int) -> Tensor:
    """Decay as it should not be done: w ← w̃·η/(η + lr·λ) with η of w̃, the weight *after* the gradient's step."""
    w = start.clone()
    for _ in range(steps):
        w = w - lr * problem.X.T @ (problem.X @ w - problem.y) / len(problem.y)
        w = w * penalty.keep(w.abs(), lr * strength)
    return w
