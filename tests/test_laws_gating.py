"""Laws of the gating route: one λ for every optimizer, the same stationary points as F, the life and death of groups.

Part one trains through `winnow.attach`; part two studies the coordinates themselves, without optimizer or host, which
part one has shown to be the same thing. A newcomer joins with one line in OPTIMIZERS (lawbook.py), WHERE or GATES.
"""

import itertools
import math

import pytest
import sklearn.linear_model
import torch
from lawbook import OPTIMIZERS, Weight, close, distance, flow, group_lasso, lasso, randn, tensor, train
from torch import nn
from torch.nn.utils import parametrize

import winnow
from winnow import MCP, SCAD, Blocks, Columns, Decay, Elements, Gating, Heads, LogSum, Lp, Rows
from winnow.factors import BoundedGate, PlainGate, PowerGate, Product
from winnow.groups import Groups
from winnow.penalties import Garrote, HardConcrete, Scaled, VariationalDropout
from winnow.starts import Balanced

optimized = pytest.mark.parametrize("optimizer", OPTIMIZERS)

# One: factors with the optimizer are an explicit parametrisation, for every optimizer.

WHERE = {
    "0.weight": Elements(),
    "2.weight": Rows(),
    "4.weight": Columns(),
    "6.weight": Blocks(block=(2, 3)),
    "8.weight": Heads(count=2),
}


def labels():
    """The number of each entry's group, by hand."""
    entry = torch.arange(8 * 6).view(8, 6)
    row, column = torch.arange(8)[:, None].expand(8, 8), torch.arange(8).expand(6, 8)
    block = torch.arange(3)[:, None].repeat_interleave(2, 0) * 2 + torch.arange(2).repeat_interleave(3)
    head = torch.arange(2).repeat_interleave(2)[:, None].expand(4, 6)
    return dict(zip(WHERE, (entry, row, column, block, head), strict=True))


def network():
    """Five layers, one per grouping."""
    torch.manual_seed(0)
    widths = [6, 8, 8, 6, 6, 4]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


class Gates(nn.Module):
    """w = v·γ₁·…·γ_{D−1}, with a gate of each kind per group, all of them tensors of their own."""

    def __init__(self, label, depth):
        super().__init__()
        self.member, self.depth = nn.functional.one_hot(label).double(), depth

    def forward(self, v, *gates):
        for gate in gates:
            v = v * (self.member @ gate)
        return v

    def right_inverse(self, w):
        ones = torch.ones(self.member.shape[-1], dtype=w.dtype)
        return (w.clone(), *(ones.clone() for _ in range(self.depth - 1)))


def parametrised(depth):
    """The network with explicit gates, and its factors."""
    model, factors = network(), []
    for name, label in labels().items():
        layer = model[int(name[0])]
        parametrize.register_parametrization(layer, "weight", Gates(label, depth))
        factors += list(layer.parametrizations.weight.parameters())
    return model, factors


DEPTH = dict(zip(OPTIMIZERS, itertools.cycle((3, 2, 4)), strict=False))


@pytest.mark.parametrize(("optimizer", "depth"), [*DEPTH.items()])
def test_factors_with_the_optimizer_are_a_parametrisation(optimizer, depth):
    """200 steps: the D−1 gates of a group, each a tensor of its own, equal each other and the one that is stored."""
    lam, steps = 3e-3, 200
    x, y = randn(16, 6), randn(16, 4, seed=1)
    model = network()
    ours = OPTIMIZERS[optimizer](model.parameters())
    run = winnow.attach(model, ours, how=Gating(depth=depth), where=WHERE, when=lam, fused=False)
    twin, factors = parametrised(depth)
    others = [p for p in twin.parameters() if all(p is not factor for factor in factors)]
    theirs = OPTIMIZERS[optimizer]([{"params": others}, {"params": factors, "weight_decay": 0.0}])
    for group in (*ours.param_groups, *theirs.param_groups):
        group["lr"] /= 8  # at the edge of stability rounding errors grow like anything else
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(steps):
        ours.zero_grad()
        (model(x) - y).square().mean().backward()
        ours.step()
        theirs.zero_grad()
        smooth = (twin(x) - y).square().mean() + lam / 2 * sum(factor.square().sum() for factor in factors)
        smooth.backward()
        theirs.step()
    for index in range(0, 10, 2):
        close(model[index].weight, twin[index].weight, rtol=1e-10, atol=1e-11)
        close(model[index].bias, twin[index].bias, rtol=1e-10, atol=1e-11)
        own = twin[index].parametrizations.weight
        gates = [getattr(own, f"original{d}") for d in range(1, depth)]
        for gate in gates:
            close(run._lanes[index // 2].factors["s"].flatten(), gate, rtol=1e-10, atol=1e-11)
        moved = distance(model[index].weight.detach(), start[f"{index}.weight"])
        assert moved > 0.05, "a test of two models that stand still would say nothing"


def logsum_energy(v2, s):
    """½(v² + f(s²)) for log(r + ½), f from the table of dictionary section 6.4 integrated by hand."""
    rho = (0.25 + 4 * s * s).sqrt()
    return (v2 + 2 * ((rho + 0.5) / 2).log() - 4 * s * s / (rho + 0.5) ** 2) / 2


def mcp_energy(v2, s):
    """½[v²(1−s²)/c + φ(s²)] for MCP(2), c = 1: φ = 2α/(α + 2(1−α)) (dictionary section 6.7)."""
    alpha = s * s
    return (v2 * (1 - alpha) + 2 * alpha / (alpha + 2 * (1 - alpha))) / 2


@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "AdamW"])
@pytest.mark.parametrize(("penalty", "energy"), [(LogSum(0.5), logsum_energy), (MCP(2.0), mcp_energy)], ids=["LogSum", "MCP"])
def test_general_gates_with_the_optimizer_are_autograd_on_them(penalty, energy, optimizer):
    problem, lam = group_lasso(), 0.1
    start = randn(8, 3, seed=4)
    w, _ = train(
        start, problem.loss, OPTIMIZERS[optimizer], 200, how=Gating(penalty), where=Rows(), when=lam, cosine=False
    )
    v, s = start.clone().requires_grad_(), torch.ones(8, 1, dtype=torch.float64, requires_grad=True)
    theirs = OPTIMIZERS[optimizer]([{"params": [v, s], "weight_decay": 0.0}])
    for _ in range(200):
        theirs.zero_grad()
        (problem.loss(v * s) + lam * energy(v.square().sum(1, keepdim=True), s).sum()).backward()
        theirs.step()
        if penalty == MCP(2.0):
            s.data.clamp_(-1, 1)
    close(w, (v * s).detach(), rtol=1e-9, atol=1e-12)


# The same λ, solved exactly.

LAM = 0.3
"""Active sets with slack: ‖g‖ ≤ .7λ on every zero, so that zeros die like e^(−.18t) or faster (dgating 1.6)."""

PROBLEMS = {
    "lasso": (lasso, Elements()),
    "group lasso, rows": (group_lasso, Rows()),
    "group lasso, columns": (lambda: group_lasso(axis=1), Columns()),
}


def test_the_yardstick():
    """FISTA is scikit-learn on single entries, and satisfies the optimality conditions on groups."""
    problem = lasso()
    model = sklearn.linear_model.Lasso(alpha=LAM, fit_intercept=False, tol=1e-15, max_iter=100_000)
    model.fit(problem.X.numpy(), problem.y.numpy())
    assert distance(torch.from_numpy(model.coef_), problem.solve(LAM)) < 1e-10
    for make, _ in PROBLEMS.values():
        problem = make()
        w = problem.solve(LAM)
        g, r = problem.gradient(w), problem.norm(w)
        alive = r > 0
        assert 0 < int(alive.sum()) < alive.numel() / 2
        assert (problem.norm(g)[~alive] < 0.7 * LAM).all()
        assert float(problem.norm(torch.where(alive, g + LAM * w / r, 0.0)).max()) < 1e-13


@pytest.mark.parametrize("problem", PROBLEMS)
@optimized
def test_every_optimizer_solves_the_convex_problem_for_the_same_strength(problem, optimizer):
    if problem.endswith("columns") and optimizer not in ("Nesterov", "AdamW"):
        pytest.skip("rows have shown it; columns show the axis")
    make, where = PROBLEMS[problem]
    problem = make()
    wanted = problem.solve(LAM)
    start = 0.5 * randn(*wanted.shape, seed=5)
    w, run = train(start, problem.loss, OPTIMIZERS[optimizer], 700, how=Gating(depth=2), where=where, when=LAM)
    assert distance(w, wanted) < 1e-6
    run.settle(threshold=1e-6)
    assert torch.equal(w == 0, wanted == 0)


def test_full_size_factors_solve_the_lasso():
    """Balanced factors cannot change a sign, so they begin where the signs are right: at least squares."""
    problem = lasso()
    start = torch.linalg.lstsq(problem.X, problem.y).solution
    how = Gating(depth=2, start=Balanced())
    w, _ = train(start, problem.loss, OPTIMIZERS["momentum"], 600, how=how, when=LAM)
    assert distance(w, problem.solve(LAM)) < 1e-6


def test_group_weights_multiply_the_strength():
    """`weighted=True` is λ√size: the classic group lasso (dgating 1.3)."""
    problem = group_lasso()
    start = 0.5 * randn(8, 3, seed=5)
    w, _ = train(
        start, problem.loss, OPTIMIZERS["momentum"], 600, how=Gating(depth=2), where=Rows(weighted=True), when=0.2
    )
    assert distance(w, problem.solve(0.2 * math.sqrt(3))) < 1e-6


@pytest.mark.filterwarnings("ignore::winnow.WinnowWarning")
def test_beyond_the_largest_gradient_nothing_survives():
    """λ ≥ λ_max = max ‖∇L(0)_g‖ gives w = 0."""
    problem = group_lasso()
    largest = float(problem.norm(problem.gradient(problem.zero)).max())
    start = 0.5 * randn(8, 3, seed=5)
    for share, alive in ((1.3, False), (0.8, True)):
        _, run = train(
            start, problem.loss, OPTIMIZERS["momentum"], 500, how=Gating(depth=2), where=Rows(), when=share * largest
        )
        assert (run.layers()[0].alive > 0) == alive


def decoupled(problem, start, lam, adam=True, steps=1200):
    """Two factors under AdamW's own decay, by hand; or under coupled L2 on the vector alone."""
    v, s = start.clone().requires_grad_(), torch.ones_like(start).requires_grad_()
    if adam:
        optimizer = torch.optim.AdamW([v, s], lr=0.02, weight_decay=lam, foreach=False)
    else:
        optimizer = torch.optim.SGD([v, s], lr=0.05, momentum=0.9, foreach=False)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (0.02 if adam else 0.05) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        (problem.loss(v * s) + (0.0 if adam else lam / 2 * v.square().sum())).backward()
        optimizer.step()
    return (v * s).detach()


def test_negative_control_decoupled_decay_is_not_the_lasso():
    """AdamW's decay on factors: no zero at all, far from the solution (dictionary section 4)."""
    problem = lasso()
    w = decoupled(problem, 0.5 * randn(12, seed=5), LAM)
    assert distance(w, problem.solve(LAM)) > 0.1
    assert (w.abs() > 1e-6).all()


def test_negative_control_gates_without_decay_are_no_penalty():
    """The product of the coefficients enters: a factor that pays nothing makes the others free too (dgating 1.3)."""
    problem = lasso()
    w = decoupled(problem, 0.5 * randn(12, seed=5), LAM, adam=False)
    assert (w.abs() > 1e-5).all()
    free = torch.linalg.lstsq(problem.X, problem.y).solution
    assert distance(w, free) < 0.5 * distance(problem.solve(LAM), free)


# Other depths and penalties: the stationary points of F, on separable problems, where they are known.


def survivor(s, lam, p):
    """The larger root r of r − s + λr^(p−1) = 0; 0 where there is none (dgating 1.6)."""
    barrier = (2 - p) / (1 - p) * ((1 - p) * lam) ** (1 / (2 - p)) if p < 1 else lam
    r = s.clone()
    for _ in range(200):
        r = (r - (r - s + lam * r ** (p - 1)) / (1 - lam * (1 - p) * r ** (p - 2))).clamp_min(1e-3)
    return torch.where(s > barrier, r, 0.0), barrier


@pytest.mark.parametrize(
    ("depth", "optimizer"), [(2, "momentum"), (2.5, "Adam"), (3, "momentum"), (3, "Adam"), (4, "Nesterov")]
)
def test_depth_and_decay_reach_the_same_stationary_point(depth, optimizer):
    """½‖w − b‖² from w = b: gates of depth D, decay with p = 2/D, and the formula; who dies, dies on both."""
    p, b = 2 / depth, torch.linspace(-3, 3, 25, dtype=torch.float64)

    def loss(w):
        return (w - b).square().sum() / 2

    cosine = optimizer == "Adam"
    gated, _ = train(b, loss, OPTIMIZERS[optimizer], 600, how=Gating(depth=depth), when=LAM, cosine=cosine)
    decayed, _ = train(b, loss, OPTIMIZERS["SGD"], 400, how=Decay(Lp(p)), when=LAM, cosine=False)
    wanted, _ = survivor(b.abs(), LAM, p)
    close(gated, wanted * b.sign(), rtol=0, atol=1e-7)
    close(decayed, wanted * b.sign(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_orthogonal_design_thresholds_groups(depth):
    """½‖w − z‖² by rows: (1 − λ/‖z‖)₊z at D = 2; at D ≥ 3 nothing, or z/‖z‖ times the larger root (dgating 5.9)."""
    norms = tensor(0.1, 0.2, 0.25, 0.4, 0.5, 0.6, 0.65, 0.78, 0.8, 0.92, 1.0, 1.2, 1.5, 1.8, 2.1, 2.4)[:, None]
    z = randn(16, 4, seed=1)
    z = z / z.norm(dim=1, keepdim=True) * norms
    w, _ = train(
        z, lambda w: (w - z).square().sum() / 2, OPTIMIZERS["momentum"], 600,
        how=Gating(depth=depth), where=Rows(), when=LAM, cosine=False,
    )  # fmt: skip
    root, barrier = survivor(norms, LAM, 2 / depth)
    assert 0 < int((norms < barrier).sum()) < 10
    close(w, z / norms * root, rtol=0, atol=1e-6)
    assert (w.norm(dim=1, keepdim=True)[norms < barrier] < 1e-6).all()


@pytest.mark.parametrize("depth", [3, 4])
def test_depth_and_decay_agree_on_a_regression(depth):
    """From least squares, correlated features: the same support and the same stationary point of F."""
    problem, p = lasso(), 2 / depth
    start = torch.linalg.lstsq(problem.X, problem.y).solution
    gated, run = train(start, problem.loss, OPTIMIZERS["momentum"], 600, how=Gating(depth=depth), when=0.1)
    decayed, _ = train(start, problem.loss, OPTIMIZERS["SGD"], 600, how=Decay(Lp(p)), when=0.1, cosine=False)
    assert 3 <= run.layers()[0].alive <= 8
    close(gated, decayed, rtol=0, atol=1e-8)
    alive = gated != 0
    residual = problem.gradient(gated) + 0.1 * gated.abs() ** (p - 1) * gated.sign()
    assert float(residual[gated.abs() > 1e-6].abs().max()) < 1e-8
    assert alive.any()


# The certificate.


def test_certificate_of_a_solved_problem():
    problem = group_lasso()
    _w, run = train(
        0.5 * randn(8, 3, seed=5),
        problem.loss,
        OPTIMIZERS["Nesterov"],
        600,
        how=Gating(depth=2),
        where=Rows(),
        when=LAM,
    )
    weight = run._lanes[0].site.theta
    proof = run.certificate(lambda: problem.loss(weight))
    assert proof.residual_active < 1e-9
    assert proof.residual_zero == 0.0
    assert abs(proof.imbalance) < 1e-9
    assert abs(proof.misalignment) < 1e-12
    assert (proof.alive, proof.groups, proof.near_boundary) == (3, 8, 0.0)
    best = problem.solve(LAM)
    assert proof.objective == pytest.approx(float(problem.loss(best) + LAM * problem.norm(best).sum()), rel=1e-12)
    run.settle()
    after = run.certificate(lambda: problem.loss(weight))
    assert after.residual_active < 1e-9
    assert after.objective == pytest.approx(proof.objective, rel=1e-12)


def test_certificate_of_an_unfinished_run():
    problem = group_lasso()
    _w, run = train(
        0.5 * randn(8, 3, seed=5), problem.loss, OPTIMIZERS["SGD"], 20, how=Gating(depth=2), where=Rows(), when=LAM
    )
    weight = run._lanes[0].site.theta
    proof = run.certificate(lambda: problem.loss(weight))
    assert proof.residual_active > 0.1
    assert proof.imbalance > 1e-3
    assert proof.misalignment > 1e-3


# Zero is absorbing.


@pytest.mark.parametrize("optimizer", ["momentum", "Nesterov", "AdamW", "RMSprop"])
@pytest.mark.parametrize("how", [Gating(depth=2), Gating(depth=3), Gating(LogSum(0.5)), Gating(MCP(2.0))], ids=str)
def test_zero_is_absorbing(how, optimizer):
    """Dead groups stay at exactly zero, whatever momentum they had when they died."""
    problem = group_lasso()
    model = Weight(randn(8, 3, seed=5))
    steps = OPTIMIZERS[optimizer](model.parameters())
    run = winnow.attach(model, steps, how=how, where=Rows(), when=0.05, fused=False)
    for step in range(60):
        steps.zero_grad()
        problem.loss(model.weight).backward()
        steps.step()
        if step == 20:
            run.cut(0.5)
            dead = (model.weight == 0).clone()
            assert int(dead.sum()) == 12
        if step > 20:
            assert torch.equal(model.weight == 0, dead)


# Two: the coordinates by themselves. F̃ descended by flow or by plain steps, one group per row.


def field(kind, groups, lam, gradient):
    """Minus the gradient of F̃, for `flow`."""
    return lambda _, xs: [-x for x in kind.pull(gradient(kind.product(xs, groups)), xs, groups, lam)]


def descend(kind, xs, groups, lam, gradient, lr, steps, momentum=0.0):
    """Heavy ball on the factors, clipped as after every step."""
    speed = [torch.zeros_like(x) for x in xs]
    for _ in range(steps):
        pulled = kind.pull(gradient(kind.product(xs, groups)), xs, groups, lam)
        speed = [momentum * m + dx for m, dx in zip(speed, pulled, strict=True)]
        xs = kind.clip([x - lr * m for x, m in zip(xs, speed, strict=True)])
    return xs


def single(count):
    return Groups((count,), (count,), ())


def rows(count, size):
    return Groups((count, size), (count, size), (1,))


GATES = [
    *(PowerGate(2), PowerGate(3), PowerGate(4), PowerGate(2.5)),
    *(PlainGate(LogSum(0.5)), PlainGate(VariationalDropout()), PlainGate(Lp(1.3)), PlainGate(Garrote(0.5))),
]
DEPTHS = [PowerGate(2), PowerGate(3), PowerGate(4), PowerGate(2.5)]


def bumpy(w):
    """The gradient of a non-convex loss, ½‖w‖² + Σcos(3w)."""
    return w - 3 * torch.sin(3 * w)


@pytest.mark.parametrize("lam", [0.0, 0.4])
@pytest.mark.parametrize("kind", DEPTHS, ids=repr)
def test_imbalance_decays_like_twice_the_strength(kind, lam):
    """I(t) = I(0)·e^(−2λt) along the flow, whatever the loss and the depth; conserved at λ = 0 (dgating 5.4)."""
    groups = rows(5, 3)
    xs = [0.5 * randn(5, 3), 1 + 0.2 * randn(5, 1, seed=1)]
    begin = kind.imbalance(xs, groups)
    end = kind.imbalance(flow(field(kind, groups, lam, bumpy), xs, 1.0), groups)
    close(end, begin * math.exp(-2 * lam), rtol=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_gates_of_their_own_balance_too(depth):
    """Gate–gate: squares of any two of D full-size factors differ by I(0)·e^(−2λt)."""
    kind, groups = Product(depth, Balanced()), single(6)
    xs = [0.7 * randn(6, seed=d) for d in range(depth)]
    after = flow(field(kind, groups, 0.4, bumpy), xs, 1.0)
    for d in range(1, depth):
        close(after[d] ** 2 - after[0] ** 2, (xs[d] ** 2 - xs[0] ** 2) * math.exp(-0.8), rtol=1e-8)


@pytest.mark.parametrize("kind", DEPTHS, ids=repr)
def test_surplus_over_the_objective(kind):
    """0 ≤ F̃ − F ≤ (λD/2)·J·max|I(0)|·e^(−2λt), and late M falls like e^(−4λt) on active groups (dgating 5.5)."""
    lam, groups, z = 0.3, rows(4, 3), 2 * randn(4, 3, seed=2)
    penalty = Lp(2 / kind.depth)
    xs = [z + 0.5 * randn(4, 3), torch.ones(4, 1, dtype=torch.float64)]
    bound = lam * kind.depth / 2 * 4 * float(kind.imbalance(xs, groups).abs().max())
    seen = []
    for lap in range(10):
        w = kind.product(xs, groups)
        surplus = kind.energy(xs, groups) - penalty.value(groups.norm(w))
        assert (surplus >= -1e-14).all()
        assert lam * float(surplus.sum()) <= bound * math.exp(-2 * lam * lap)
        seen.append(surplus)
        xs = flow(field(kind, groups, lam, lambda w: w - z), xs, 1.0)
    assert (groups.norm(w) > 0.5).all(), "this law is one of active groups"
    close((seen[-2] / seen[-1]).log(), torch.full((4, 1), 4 * lam, dtype=torch.float64), rtol=0.05)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_one_step_of_gradient_descent(depth):
    """Exact recursions (dgating 1.5): primary–gate, through the optimizer; gate–gate, on factors of their own."""
    lr, lam, target = 0.1, 0.2, randn(5, 3, seed=3)
    model = Weight(randn(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    run = winnow.attach(model, optimizer, how=Gating(depth=depth), where=Rows(), when=lam, fused=False)
    lane = run._lanes[0]
    for _ in range(20):
        v, u = (x.clone() for x in lane.tensors())
        g = (model.weight - target).detach()
        model.weight.grad = g.clone()
        optimizer.step()
        s, a = (v * g).sum(1, keepdim=True), u ** (depth - 2)
        before = (v * v).sum(1, keepdim=True) - u * u
        wanted = (1 - lr * lam) ** 2 * before + lr**2 * a**2 * (u**2 * g.square().sum(1, keepdim=True) - s**2)
        close(lane.imbalance(), wanted, rtol=1e-12, atol=1e-13)

    kind, groups = Product(depth, Balanced()), single(6)
    xs, g = [randn(6, seed=d) for d in range(depth)], randn(6, seed=9)
    after = [x - lr * dx for x, dx in zip(xs, kind.pull(g, xs, groups, lam), strict=True)]
    rest = math.prod(xs[2:]) if depth > 2 else 1.0
    wanted = (xs[0] ** 2 - xs[1] ** 2) * ((1 - lr * lam) ** 2 - lr**2 * rest**2 * g**2)
    close(after[0] ** 2 - after[1] ** 2, wanted, rtol=1e-12, atol=1e-14)


def test_a_shared_gate_needs_a_smaller_rate():
    """The stored gate steps like one of D−1; a gate that carries all D−1 penalties needs lr/(D−1) (dgating 5.8)."""
    depth, lr, lam, z = 4, 0.05, 0.2, randn(5, 3, seed=3)
    kind, groups = PowerGate(depth), rows(5, 3)
    v, u = randn(5, 3), torch.ones(5, 1, dtype=torch.float64)
    ours = descend(kind, [v, u], groups, lam, lambda w: w - z, lr, 50)
    v, u = v.requires_grad_(), u.requires_grad_()
    for _ in range(50):
        smooth = (v * u**3 - z).square().sum() / 2 + lam / 2 * (v.square().sum() + 3 * u.square().sum())
        dv, du = torch.autograd.grad(smooth, (v, u))
        v, u = (v - lr * dv).detach().requires_grad_(), (u - lr / 3 * du).detach().requires_grad_()
    close(ours[0], v.detach(), rtol=1e-12, atol=1e-14)
    close(ours[1], u.detach(), rtol=1e-12, atol=1e-14)


# Death.


@pytest.mark.parametrize("kind", DEPTHS, ids=repr)
def test_slope_of_a_dying_group(kind):
    """log‖w‖ falls by Dλ per unit of time whatever g, for D > 2; by 2(λ − ‖g‖) for D = 2 (dgating 5.12)."""
    lam, pushes, depth = 0.5, tensor(0.0, 0.1, 0.3, 0.45)[:, None], kind.depth
    g = -pushes * tensor(0.6, 0.0, -0.8)
    groups = rows(4, 3)
    r = 0.02
    xs = [-g / pushes.clamp_min(1e-9) * r + r * (pushes == 0), torch.full((4, 1), r, dtype=torch.float64)]
    xs = flow(field(kind, groups, lam, lambda _: g), xs, 50.0)
    later = flow(field(kind, groups, lam, lambda _: g), xs, 1.0)
    slope = (groups.norm(kind.product(later, groups)) / groups.norm(kind.product(xs, groups))).log()
    wanted = -2 * (lam - pushes) if depth == 2 else torch.full_like(slope, -depth * lam)
    close(slope, wanted, rtol=1e-4)


@pytest.mark.parametrize("kind", DEPTHS, ids=repr)
def test_scale_invariant_groups_die_whatever_they_are_worth(kind):
    """In front of a normalisation ⟨w, g⟩ = 0: ‖w‖ follows e^(−Dλt) from balance (dgating 2.6)."""
    lam, groups, target = 0.3, rows(4, 3), randn(4, 3, seed=4)

    def gradient(w):
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            (g,) = torch.autograd.grad(-(w / w.norm(dim=1, keepdim=True) * target).sum(), w)
        return g

    v = randn(4, 3)
    v = v / v.norm(dim=1, keepdim=True)
    begin = [v, torch.ones(4, 1, dtype=torch.float64)]
    end = flow(field(kind, groups, lam, gradient), begin, 2.0)
    ratio = groups.norm(kind.product(end, groups))
    close(ratio, torch.full((4, 1), math.exp(-kind.depth * lam * 2.0), dtype=torch.float64), rtol=1e-7)


ORIGIN = [
    *(PowerGate(2), PlainGate(LogSum(0.5)), PlainGate(LogSum(2.0)), PlainGate(Scaled(LogSum(0.5), 0.5))),
    *(PlainGate(VariationalDropout()), PlainGate(Garrote(0.5)), PlainGate(MCP(3.0))),
    *(BoundedGate(MCP(3.0)), BoundedGate(SCAD(3.7, 0.5))),
    *(BoundedGate(Scaled(MCP(1.0), 2.0)), BoundedGate(HardConcrete())),
]
"""Everything of finite Ω'(0+)."""


def slope_at_zero(kind):
    return 1.0 if isinstance(kind, PowerGate) else kind.penalty.slope_at_zero


def constants(kind):
    """(weight decay of the vector, of the gate) at the origin, in λ (dictionary 6.4 and 6.7)."""
    c = slope_at_zero(kind) ** 2
    return (1 / kind.c, kind.c * c) if isinstance(kind, BoundedGate) else (1.0, c)


@pytest.mark.parametrize("kind", ORIGIN, ids=repr)
def test_decay_rates_at_the_origin(kind):
    """λ(a+b)/2 ± √(λ²(b−a)²/4 + ‖g‖²), and λa across g: the curvature that `pull` has at zero."""
    lam, g, groups = 0.4, tensor(0.3, -0.1, 0.2), rows(1, 3)
    a, b = constants(kind)
    if isinstance(kind, BoundedGate):
        assert kind.c == pytest.approx(1 / slope_at_zero(kind)), "best conditioned"
    tiny = 1e-7
    columns = []
    for i in range(4):
        x = torch.zeros(4, dtype=torch.float64)
        x[i] = tiny
        pulled = kind.pull(g[None], [x[None, :3], x[None, 3:]], groups, lam)
        columns.append(torch.cat(pulled, 1)[0] / tiny)
    rates = torch.linalg.eigvalsh(torch.stack(columns))
    root = math.sqrt(lam**2 * (b - a) ** 2 / 4 + float(g.norm()) ** 2)
    wanted = tensor(lam * (a + b) / 2 - root, lam * (a + b) / 2 + root, lam * a, lam * a).sort().values
    close(rates, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ORIGIN, ids=repr)
def test_zero_attracts_exactly_below_the_boundary(kind):
    """Near zero a group under a constant gradient dies for ‖g‖ < λΩ'(0+) and grows beyond (dictionary 6.4)."""
    lam, edge = 0.4, 0.4 * slope_at_zero(kind)
    share = tensor(0.9, 0.97, 1.03, 1.1)[:, None]
    g = edge * share * tensor(0.6, -0.8)
    groups = rows(4, 2)
    eta = 1e-4
    xs = [g / g.norm(dim=1, keepdim=True) * -eta, torch.full((4, 1), eta, dtype=torch.float64)]
    after = descend(kind, xs, groups, lam, lambda _: g, 0.2, 500)
    grown = groups.norm(kind.product(after, groups)) / groups.norm(kind.product(xs, groups))
    assert torch.equal(grown > 1, share > 1), grown


def test_flat_and_steep_penalties_at_zero():
    """Lp: a saddle for 1 < p < 2, where no group dies; a strict minimum for p < 1, whatever the gradient."""
    g, groups = -tensor(1e-3, 5.0)[:, None], rows(2, 1)
    tiny = [torch.full((2, 1), 1e-3, dtype=torch.float64) for _ in range(2)]
    grown = descend(PlainGate(Lp(1.3)), tiny, groups, 1.0, lambda _: g, 0.01, 2000)
    assert (grown[0] * grown[1] > 1e-9).all()
    shrunk = descend(PowerGate(3), tiny, groups, 1.0, lambda _: g, 0.01, 2000)
    assert (PowerGate(3).product(shrunk, groups) < 1e-20).all()


def test_two_minima_and_the_barrier_between_them():
    """LogSum(.1), λ = .05, ½(w − .45)²: balanced starts at .01 and .02 end at 0 and .3351, barrier .0149 (6.9)."""
    penalty, lam = LogSum(0.1), 0.05
    kind, groups = PlainGate(penalty), single(2)
    w = tensor(0.01, 0.02)
    s = penalty.eta(w).sqrt()
    xs = descend(kind, [w / s, s], groups, lam, lambda w: w - 0.45, 0.05, 3000, momentum=0.9)
    end = kind.product(xs, groups)
    assert float(end[0]) < 1e-9
    # w − b + λ/(w + ε) = 0, the larger root
    assert float(end[1]) == pytest.approx((0.35 + math.sqrt(0.35**2 + 4 * (0.045 - 0.05))) / 2, rel=1e-9)
    assert float(end[1]) == pytest.approx(0.3351, abs=5e-5)


# Stationary points of F for every penalty that a gate can carry.

SCALAR = [
    *(PowerGate(2), PlainGate(LogSum(0.5)), PlainGate(VariationalDropout()), PlainGate(Garrote(2.0))),
    *(BoundedGate(MCP(4.0)), BoundedGate(MCP(3.0)), BoundedGate(SCAD(3.7, 2.0)), BoundedGate(SCAD(3.7, 0.5))),
]


def residual(kind, w, b, lam):
    """|L' + λΩ'| where alive, (|L'| − λΩ'(0+))₊ where dead, for ½(w − b)²."""
    penalty = Lp(2 / kind.depth) if isinstance(kind, PowerGate) else kind.penalty
    live = (w - b + lam * penalty.slope(w.abs().clamp_min(1e-300)) * w.sign()).abs()
    return torch.where(w.abs() > 1e-9, live, (b.abs() - lam * penalty.slope_at_zero).clamp_min(0))


@pytest.mark.parametrize("kind", SCALAR, ids=repr)
def test_scalar_problems_end_at_stationary_points(kind):
    """½(w − b)² from s = 1, w = b, 13 values of b, zeros exactly where |b| ≤ λΩ'(0+) (dictionary 6.9)."""
    lam = 0.3
    edge = lam * slope_at_zero(kind)
    b = torch.cat((torch.linspace(-3, 4, 11, dtype=torch.float64), tensor(0.9 * edge, 1.1 * edge)))
    lr = 0.02 if isinstance(kind, BoundedGate) else 0.05  # bounded gates bend sharply at s = 1
    xs = [b, torch.ones_like(b)]
    xs = descend(kind, xs, single(13), lam, lambda w: w - b, lr, round(60 / lr), momentum=0.9)
    w = kind.product(xs, single(13))
    assert float(residual(kind, w, b, lam).max()) < 1e-9
    if slope_at_zero(kind) == 1.0:  # LogSum(.5) at λ = .3 has two minima near its edge
        assert torch.equal(w.abs() < 1e-9, b.abs() <= edge)


@pytest.mark.parametrize("p", [0.3, 0.4, 0.5, 2 / 3, 0.8, 1.0, 1.3, 1.6])
def test_every_p_has_a_gate(p):
    """Power gates to p = 1, plain ones beyond: stationary points on single entries, λ = .2 (dictionary 6.6)."""
    b = torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)
    how = Gating(Lp(p))
    kind = how.factorisation()
    xs = descend(kind, [b, torch.ones_like(b)], single(21), 0.2, lambda w: w - b, 0.01, 4000, momentum=0.9)
    w = kind.product(xs, single(21))
    alive = w.abs() > 1e-9
    live = w - b + 0.2 * w.abs() ** (p - 1) * w.sign()
    assert float(live[alive].abs().max()) < 1e-10
    assert int(alive.sum()) >= 12
    if p < 1:
        _, barrier = survivor(b.abs(), 0.2, p)
        assert not alive[b.abs() < barrier].any()
    if p > 1:
        assert alive[b != 0].all()


@pytest.mark.parametrize(
    "penalty", [Scaled(LogSum(0.5), 0.5), VariationalDropout(), MCP(3.0), SCAD(3.7, 0.5)], ids=repr
)
def test_groups_under_every_penalty(penalty):
    """Group regression through the optimizer: stationary for F, balanced, ‖g‖ < λΩ'(0+) on zeros (dictionary 6.9)."""
    problem = group_lasso()
    start = torch.linalg.lstsq(problem.X.flatten(1), problem.y).solution.view(8, 3)
    _, run = train(
        start, problem.loss, OPTIMIZERS["momentum"], 700, how=Gating(penalty), where=Rows(), when=LAM, cosine=False
    )
    weight = run._lanes[0].site.theta
    proof = run.certificate(lambda: problem.loss(weight))
    assert proof.alive == 3
    assert proof.residual_active < 1e-8
    assert proof.residual_zero == 0.0
    assert proof.misalignment < 1e-9


# Plateaus.


def test_a_bounded_gate_stays_bounded_and_leaves_no_bias():
    """Beyond the knot s = 1 and w is exactly what the loss alone would have, under every optimizer (dictionary 7.7)."""
    knot, b = 2.0, torch.cat((torch.linspace(-6.2, 6.2, 13, dtype=torch.float64), tensor(0.2, -0.2)))
    beyond = b.abs() > knot
    for make in OPTIMIZERS.values():
        model = Weight(b + 0.5)
        optimizer = make(model.parameters())
        full = optimizer.param_groups[0]["lr"]
        run = winnow.attach(
            model, optimizer, how=Gating(MCP(knot)), where={"weight": Elements()}, when=LAM, fused=False
        )
        for step in range(400):
            optimizer.param_groups[0]["lr"] = full * (1 + math.cos(math.pi * step / 400)) / 2
            model.weight.grad = model.weight.detach() - b
            optimizer.step()
            assert (run._lanes[0].factors["s"].abs() <= 1).all()
        s = run._lanes[0].factors["s"].detach()
        assert (s[beyond] == 1).all()
        assert (s[~beyond].abs() < 1).all()
        close(model.weight.detach()[beyond], b[beyond], rtol=0, atol=1e-8)


def test_negative_control_a_plain_gate_escapes_a_plateau():
    """MCP on a plain gate: s grows like (4λ(w² − b²)τ)^¼, the weight stays biased by λw/s² (dictionary 6.7)."""
    lam, knot, b, time = 0.3, 1.0, tensor(3.0), 60.0
    kind, groups = PlainGate(MCP(knot)), single(1)
    v, s = descend(kind, [b, torch.ones_like(b)], groups, lam, lambda w: w - b, 0.05, round(time / 0.05))
    w = v * s
    predicted = (4 * lam * (9 - knot**2) * time) ** 0.25
    assert float(s) == pytest.approx(predicted, rel=0.05)
    assert float(s) > 4.5
    assert float(w - b) == pytest.approx(-lam * 3 / float(s) ** 2, rel=0.05)
    bounded = BoundedGate(MCP(knot))
    v, s = descend(bounded, [b, torch.ones_like(b)], groups, lam, lambda w: w - b, 0.1, 1200)
    assert float(s) == 1.0
    assert float((v * s - b).abs()) < 1e-12


def test_negative_control_the_escape_ends_at_the_edge_of_stability():
    """s² stops near 2/(lr·h), at 9.9 for lr = .02, where the run oscillates for ever (dictionary 6.7)."""
    kind, groups, b = PlainGate(MCP(1.0)), single(1), tensor(6.0)
    _v, s = descend(kind, [b / 9, torch.full_like(b, 9.0)], groups, 0.3, lambda w: w - b, 0.02, 6000)
    assert 9.5 < float(s) < 10.2
