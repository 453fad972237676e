"""REGRESSION: the linear problems on which routes can be held against an exact solver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from winnow.penalties import Penalty


@dataclass(frozen=True)
class Linear:
    """L(w) = ‖y − Xw‖²/2n with columns of unit mean square, so that every curvature h is 1. `X` (n, d), `y` (n,), float64."""

    X: Tensor
    y: Tensor

    def loss(self, w: Tensor) -> Tensor:
        out: Tensor = 0.5 * (self.y - self.X @ w).square().mean()
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
