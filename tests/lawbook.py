"""What the law tests share: convex problems, a solver that knows nothing of Winnow, optimizers, one training loop."""

import math
from dataclasses import dataclass

import scipy.integrate
import torch
from torch import Tensor, nn

import winnow
from winnow import Elements


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(got, want, rtol, atol=0.0):
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def distance(got, want):
    """‖got − want‖/‖want‖, a float."""
    return float((got - want).norm() / want.norm())


@dataclass(frozen=True, eq=False)
class Regression:
    """L(w) = ‖Xw − y‖²/(2n), scikit-learn's scale of the loss; axes `inside` of the weight share a group."""

    X: Tensor
    y: Tensor
    inside: tuple[int, ...] = ()

    @property
    def zero(self) -> Tensor:
        return torch.zeros(self.X.shape[1:], dtype=torch.float64)

    def loss(self, w: Tensor) -> Tensor:
        return (self.X.flatten(1) @ w.flatten() - self.y).square().mean() / 2

    def gradient(self, w: Tensor) -> Tensor:
        X = self.X.flatten(1)
        return (X.T @ (X @ w.flatten() - self.y) / len(self.y)).view(w.shape)

    def norm(self, x: Tensor) -> Tensor:
        """One number per group, broadcasting with the weight."""
        return x.square().sum(self.inside, keepdim=True).sqrt() if self.inside else x.abs()

    def solve(self, lam: float, steps: int = 20_000) -> Tensor:
        """argmin of L(w) + λΣ‖w_g‖ to rounding: FISTA with restarts (Beck, Teboulle 2009; O'Donoghue, Candès 2015)."""
        X = self.X.flatten(1)
        step = len(self.y) / float(torch.linalg.matrix_norm(X, 2)) ** 2
        w = ahead = self.zero
        momentum = 1.0
        for _ in range(steps):
            moved = ahead - step * self.gradient(ahead)
            new = moved * (1 - step * lam / self.norm(moved).clamp_min(1e-300)).clamp_min(0)
            if float(((ahead - new) * (new - w)).sum()) > 0:
                momentum = 1.0
            after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead, change = new + (momentum - 1) / after * (new - w), float((new - w).abs().max())
            w, momentum = new, after
            if change == 0:
                break
        return w


def _regression(shape, truth, inside, seed, samples=60, correlation=0.3, noise=0.5):
    size = math.prod(shape)
    index = torch.arange(size)
    cov = correlation ** (index[:, None] - index).abs().double()
    X = randn(samples, size, seed=seed) @ torch.linalg.cholesky(cov).T
    y = X @ truth.flatten() + noise * randn(samples, seed=seed + 1)
    return Regression(X.view(samples, *shape), y, inside)


def lasso():
    """12 single entries, 4 true."""
    truth = torch.zeros(12, dtype=torch.float64)
    truth[[1, 4, 5, 9]] = tensor(1.5, -1.0, 0.8, -2.0)
    return _regression((12,), truth, (), seed=0)


def group_lasso(axis=0):
    """8 groups of 3, 3 true: rows of an (8, 3) weight, or columns of a (3, 8) one."""
    truth = torch.zeros(8, 3, dtype=torch.float64)
    truth[[0, 3, 6]] = tensor(1.0, -0.5, 0.7, 0.3, 0.9, -1.2, -0.8, 0.2, 0.6).view(3, 3)
    rows = _regression((8, 3), truth, (1,), seed=2)
    return rows if axis == 0 else Regression(rows.X.mT.contiguous(), rows.y, (0,))


class Weight(nn.Module):
    """A model that is one weight."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value.clone())


_SGD, _ADAM = {"foreach": False}, {"foreach": False, "betas": (0.9, 0.99)}
OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.2, **_SGD),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, **_SGD),
    "Nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, **_SGD),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.02, **_ADAM),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.02, weight_decay=0.1, **_ADAM),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.02, foreach=False),
}
"""On weights of order one with curvature of order one. One line for a newcomer."""


def train(start, loss, make, steps, *, how, where=None, when, cosine=True):
    """`steps` full-batch steps of `make`'s optimizer on loss(weight); the weight, and the run, still open."""
    model = Weight(start)
    optimizer = make(model.parameters())
    run = winnow.attach(model, optimizer, how=how, where={"weight": where or Elements()}, when=when, fused=False)
    full = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2 if cosine else lr
        optimizer.zero_grad()
        loss(model.weight).backward()
        optimizer.step()
    return model.weight.detach(), run


def flow(field, xs, time, start=0.0):
    """dx/dt = field(t, xs) from `start` for `time`, to eleven digits."""

    def unpack(flat):
        pieces = torch.from_numpy(flat).split([x.numel() for x in xs])
        return [piece.view(x.shape) for piece, x in zip(pieces, xs, strict=True)]

    def slope(t, flat):
        return torch.cat([dx.flatten() for dx in field(t, unpack(flat))]).numpy()

    begin = torch.cat([x.flatten() for x in xs]).numpy()
    done = scipy.integrate.solve_ivp(slope, (start, start + time), begin, method="DOP853", rtol=1e-11, atol=1e-13)
    return unpack(done.y[:, -1])
