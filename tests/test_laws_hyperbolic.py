"""Laws of the hyperbolic route (HAM): its flow, its stationary points, and what ties it to masking."""

import itertools
import math

import pytest
import torch
from lawbook import Weight, close, randn, tensor

import winnow
from winnow import Columns, Elements, Fair, Hyperbolic, Lp, Masking
from winnow.errors import AttachError, PenaltyError

pytestmark = pytest.mark.filterwarnings("ignore:.*flat at zero")


def step(how, theta, target, lr, lam, momentum=0.0, steps=1):
    """The weight after `steps` of SGD on ½‖w − target‖² down `how`."""
    model = Weight(theta.clone())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    winnow.attach(model, optimizer, how=how, where={"weight": Elements()}, when=lam, fused=False)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model.weight - target).square().sum() / 2).backward()
        optimizer.step()
    return model.weight.detach()


def test_one_step_is_the_published_one():
    theta, target, lr, lam, alpha = randn(9), 2 * randn(9, seed=1), 0.01, 0.3, 7.0
    g = theta - target
    half = theta - lr * g
    close(step(Hyperbolic(alpha), theta, target, lr, lam), half * torch.exp(-lr * (alpha * half.sign() * g + lam)), rtol=1e-14)


def test_the_exponent_is_limited():
    theta, target = tensor(1.0, -1.0), tensor(1e6, 1e6)
    moved = theta - 1e-9 * (theta - target)
    got = step(Hyperbolic(1e6), theta, target, 1e-9, 0.0)
    assert (got / moved).abs().max() <= math.exp(5) * (1 + 1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("alpha", [0.0, 2.0, 20.0])
def test_stationary_points_are_those_of_the_fair_penalty(alpha, momentum):
    """g + λΩ'(w) = 0 with Ω = Fair(1/α), whatever the momentum."""
    target, lam = tensor(2.0, -1.0, 0.3), 0.5
    w = step(Hyperbolic(alpha), 0.9 * target, target, 1e-3 * (1 - momentum), lam, momentum, steps=12_000)
    residual = (w - target) + lam * w.sign() * Hyperbolic(alpha).penalty.slope(w.abs())
    assert residual.abs().max() < 2e-3  # the discrete factor differs from the flow by O(lr)
    assert Hyperbolic(alpha).penalty == (Fair(1 / alpha) if alpha else Lp(2.0))


def test_without_rescaling_momentum_changes_the_answer():
    """The published ρ = lr: a negative control of the law above."""
    target, lam = tensor(2.0, -1.0, 0.3), 0.5
    w = step(Hyperbolic(2.0, rescale=False), 0.9 * target, target, 1e-4, lam, 0.9, steps=12_000)
    residual = (w - target) + lam * w.sign() * Fair(0.5).slope(w.abs())
    assert residual.abs().max() > 2e-2


def test_its_factor_is_balanced_masking_to_first_order():
    """pilot.md, law 25: HYP with α = 2, β = 2λ against a step of balanced m ⊙ v: the difference over η² is constant."""
    theta, target, lam = tensor(0.7, -1.3, 0.2), tensor(-0.5, 0.4, 1.0), 0.3
    ratios = []
    for lr in (1e-3, 1e-4, 1e-5):
        undone = theta + lr * (theta - target)  # from here the optimizer's own step leads back to theta, to O(lr²)
        masked = step(Masking(beta=0.0), theta, target, lr, lam)
        ratios.append((masked - step(Hyperbolic(2.0), undone, target, lr, 2 * lam)) / lr**2)
    for first, second in itertools.pairwise(ratios):
        close(first, second, rtol=0.02)


def test_what_is_refused():
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachError, match="single entries"):
        winnow.attach(model, optimizer, how=Hyperbolic(), where=Columns(), when=0.1)
    with pytest.raises(PenaltyError, match="alpha"):
        Hyperbolic(-1.0)
