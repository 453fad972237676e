"""Laws of the latent route: dual averaging, its stationary points, what comes back, and what the last cut leaves."""

import copy

import pytest
import torch
from lawbook import Weight, close, randn, tensor

import winnow
from winnow import L1, MCP, Elements, Garrote, Latent, LogSum, Lp, Rows, Toward
from winnow.errors import PenaltyError


def attached(theta, how, lr, when, momentum=0.0, where=None):
    model = Weight(theta.clone())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    run = winnow.attach(model, optimizer, how=how, where={"weight": where or Elements()}, when=when)
    return model, optimizer, run


def descend(model, optimizer, target, steps=1, curve=1.0):
    for _ in range(steps):
        optimizer.zero_grad()
        (curve * (model.weight - target).square()).sum().div(2).backward()
        optimizer.step()


# One step, written out.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("how", [Latent(), Latent(L1)])
def test_three_steps_are_dual_averaging(how, momentum):
    """z ← the optimizer's step with the gradient at w; T ← T + λ·lr/(1−μ); w = (z − T²/z) or (z − T·sign z) where |z| > T."""
    theta, target, lr, lam = randn(40), 2 * randn(40, seed=1), 0.1, 0.4
    model, optimizer, _ = attached(theta, how, lr, lam, momentum)
    z, w, velocity, T = theta.clone(), theta.clone(), torch.zeros_like(theta), 0.0
    for _ in range(3):
        descend(model, optimizer, target)
        velocity = momentum * velocity + (w - target)
        z, T = z - lr * velocity, T + lam * lr / (1 - momentum)
        bias = T * z.sign() if how.shrinkage == L1 else T**2 / z
        w = torch.where(z.abs() > T, z - bias, 0.0)
        close(model.weight.detach(), w, rtol=1e-12, atol=1e-14)
    assert 0 < int((w == 0).sum()) < 40


@pytest.mark.parametrize("weighted", [False, True])
def test_a_group_shrinks_as_a_whole(weighted):
    theta, lam, lr = randn(6, 9), 3.0, 0.1
    model, optimizer, _ = attached(theta, Latent(), lr, lam, where=Rows(weighted=weighted))
    descend(model, optimizer, theta)  # no gradient
    T = lam * lr * (3 if weighted else 1)
    norm = theta.norm(dim=1, keepdim=True)
    close(model.weight.detach(), theta * (1 - (T / norm).square()).clamp_min(0), rtol=1e-12, atol=1e-15)


def test_without_a_strength_it_is_the_optimizer_alone():
    theta, target = randn(5, 4), randn(5, 4, seed=1)
    model, optimizer, _ = attached(theta, Latent(), 0.1, 0.0, 0.9)
    plain = Weight(theta.clone())
    alone = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    descend(model, optimizer, target, 20)
    descend(plain, alone, target, 20)
    close(model.weight.detach(), plain.weight.detach(), rtol=1e-13)


# Where it goes.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("how", [Latent(), Latent(L1)])
def test_at_a_constant_strength_it_solves_the_lasso(how, momentum):
    """min ½Σc(w − b)² + λΣ|w|: the soft threshold b − λ/c, and exact zeros, whatever the shrinkage."""
    target, curve, lam = tensor(2.0, -1.0, 0.3, 0.05, -0.2), tensor(1.0, 0.5, 2.0, 1.0, 1.0), 0.25
    model, optimizer, run = attached(0.5 * target.sign(), how, 0.05 * (1 - momentum), lam, momentum)
    descend(model, optimizer, target, 20_000, curve)
    answer = target.sign() * (target.abs() - lam / curve).clamp_min(0)
    close(model.weight.detach(), answer, rtol=2e-3)  # what is left of the start falls as 1/τ, τ = 1000
    assert (model.weight == 0).tolist() == (answer == 0).tolist()
    assert run.certificate().residual_zero < 1e-9


def test_the_garrote_gets_there_with_less_bias_than_the_soft_threshold():
    """Under a threshold T a weight z loses T²/z, not T."""
    theta = tensor(3.0, 0.5)
    ends = []
    for how in (Latent(), Latent(L1)):
        model, optimizer, _ = attached(theta, how, 1.0, 0.4)
        descend(model, optimizer, theta)
        ends.append(model.weight.detach())
    close(theta - ends[0], 0.16 / theta, rtol=1e-12)
    close(theta - ends[1], 0.4 * torch.ones(2, dtype=torch.float64), rtol=1e-12)


def test_the_garrote_is_the_proximal_map_of_its_penalty():
    """By brute force, for thresholds on both sides of ε."""
    x = torch.linspace(0, 6, 600_001, dtype=torch.float64)
    for epsilon, t in ((1.0, 1.0), (0.5, 0.2), (0.5, 0.9), (2.0, 1.0)):
        penalty = Garrote(epsilon)
        r = tensor(0.0, 0.1, t * 0.999, t * 1.05, 1.0, 2.5, 5.0)
        best = torch.stack([x[((x - each).square() / 2 + t * penalty.value(x)).argmin()] for each in r])
        close(penalty.prox(r, t), best, rtol=0, atol=1.1e-5)
    with pytest.raises(PenaltyError, match="jumps"):
        Garrote(0.5).prox(x, 1.1)


# Zeros that come back, and those that do not.


def test_a_zero_comes_back_on_evidence():
    """Decay holds what is zero for ever: the control."""
    theta, target = tensor(0.1, 1.0), tensor(1.0, 1.0)
    model, optimizer, run = attached(theta, Latent(), 0.1, 1.5)
    descend(model, optimizer, theta)  # the threshold passes the first
    assert model.weight[0] == 0
    descend(model, optimizer, tensor(4.0, 1.0), 5)
    assert model.weight[0] > 0.1
    model, optimizer, run = attached(theta, winnow.Decay(Lp(0.5)), 0.1, 1.5)
    run.cut(0.5)
    descend(model, optimizer, target, 20)
    assert model.weight[0] == 0


def test_a_cut_on_the_way_is_none_for_good_and_the_last_one_is():
    torch.manual_seed(0)
    theta, target = 0.1 * randn(8, 8), randn(8, 8, seed=3)
    steps = 200
    model, optimizer, run = attached(theta, Latent(), 0.02, Toward(0.25, steps))
    seen, back = [], 0
    for _ in range(steps):
        descend(model, optimizer, target)
        seen.append(model.weight.detach() != 0)
        if len(seen) > 1:
            back += int((seen[-1] & ~seen[-2]).sum())
    last = round(0.6 * steps)
    assert back > 0 and all(bool((mask == seen[last - 1]).all()) for mask in seen[last:])
    assert run.settle().density() == 0.25
    close(model.weight.detach()[seen[-1]], target[seen[-1]], rtol=0.2)  # heals to L's minimum: 0.98^80 = 0.199
    kept = target.abs()[seen[-1]].min()
    assert kept >= target.abs()[~seen[-1]].max()  # the evidence, not the start, has chosen


def test_the_threshold_follows_the_cap():
    theta = randn(10, 10)
    model, optimizer, run = attached(theta, Latent(L1), 1e-9, Toward(0.2, 100, power=1.0))
    for step in range(1, 60):
        descend(model, optimizer, torch.zeros_like(theta))
        assert run.density() <= run.schedule.cap(step) + 0.5 / 100 + 1e-9  # rounded to a weight
    T = theta.abs().flatten().sort().values[100 - round(100 * run.schedule.cap(59)) - 1]
    close(model.weight.detach(), theta.sign() * (theta.abs() - T).clamp_min(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("where", [winnow.NM(2, 4), Rows(weighted=True), Elements()])
@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_a_checkpoint_right_after_a_cut_goes_on_to_the_bit(where, first, recwarn):
    """A cut may hold at zero what is above the threshold: not to be taken for weights that somebody else has written."""
    theta, target, steps = randn(16, 32), randn(16, 32, seed=1), 100
    model, optimizer, _ = attached(theta, Latent(), 0.02, Toward(0.5, steps), 0.9, where)
    ends = []
    for step in range(steps):
        if step == 20:
            saved = {"model": copy.deepcopy(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
        descend(model, optimizer, target)
    ends.append(model.weight.detach().clone())
    model, optimizer, _ = attached(randn(16, 32, seed=5), Latent(), 0.02, Toward(0.5, steps), 0.9, where)
    for part in (first, "optimizer" if first == "model" else "model"):
        {"model": model, "optimizer": optimizer}[part].load_state_dict(saved[part])
    descend(model, optimizer, target, steps - 20)
    assert torch.equal(ends[0], model.weight.detach())
    assert not [said for said in recwarn if "changed outside" in str(said.message)]


def test_what_waits_and_is_chosen_does_not_stay_at_zero():
    """The last cut ranks by latent weights, so what stands at zero may be among those that stay: without a gradient too."""
    model, optimizer, run = attached(tensor(1.0, 0.5, 0.4, 0.3), Latent(), 0.1, 4.5)
    descend(model, optimizer, tensor(1.0, 0.5, 0.4, 0.3))
    assert (model.weight != 0).tolist() == [True, True, False, False]
    run.cut(0.75)
    assert model.weight[2].item() == pytest.approx(0.004) and run.density() == 0.75
    run.settle()
    assert (model.weight != 0).tolist() == [True, True, True, False]


def test_a_target_takes_the_routes_own_pace():
    for how, pace in ((Latent(), winnow.Pace(0.0, 6.0, 0.0)), (winnow.Gating(depth=3), winnow.Pace())):
        _, _, run = attached(randn(4, 4), how, 0.1, Toward(0.5, 100))
        assert run.schedule.pace == pace
    _, _, run = attached(randn(4, 4), Latent(), 0.1, Toward(0.5, 100, begin=0.2, power=2.0, pull=1.0))
    assert run.schedule == Toward(0.5, 100, begin=0.2, power=2.0, pull=1.0)


def test_what_is_refused():
    for penalty in (LogSum(2.0), MCP(1.0), Lp(0.5)):
        with pytest.raises(PenaltyError, match="no proximal map"):
            Latent(penalty)
    with pytest.raises(PenaltyError, match="Garrote"):
        Latent(0.5)
    with pytest.raises(PenaltyError, match="slope 1 at zero"):
        Latent(winnow.penalties.Scaled(L1, 2.0))
    with pytest.raises(PenaltyError, match="jumps"):
        Latent(Garrote(0.1))
    assert Latent().penalty == L1
