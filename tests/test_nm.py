"""n of every m: the pattern is exact at the target, on every route, and only the smallest of each group go."""

import pytest
import torch
import zoo
from test_channels import train
from torch import nn

import winnow
from winnow import LogSum, Lp, Toward
from winnow.cut import smallest
from winnow.routes.base import Site

ROUTES = {
    "gating": winnow.Gating(depth=3),
    "decay": winnow.Decay(Lp(0.5)),
    "dropout": winnow.Dropout(LogSum(2.0)),
    "masking": winnow.Masking(beta=1.0),
    "latent": winnow.Latent(),
}


def counts(weight, m):
    """Nonzeros in each group of m along axis 1."""
    return (weight.movedim(1, -1).reshape(-1, m) != 0).sum(1)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_the_pattern_is_exact(route, optimizer, n, m):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    opt = kind(model.parameters(), lr=1e-2)
    where = {"*.weight": winnow.NM(n, m)}
    run = winnow.attach(model, opt, how=ROUTES[route], where=where, when=Toward(density=n / m, steps=40))
    train(model, torch.randn(8, 16), opt, 40)
    run.settle()
    assert run.density() == n / m
    for layer in (model[0], model[2]):
        assert counts(layer.weight.detach(), m).unique().tolist() == [n]


def test_convolutions_along_their_inputs():
    model, example = zoo.build("VGG-16-BN")
    names = [k for k, p in model.named_parameters() if p.ndim == 4 and p.shape[1] % 4 == 0]
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)
    where = dict.fromkeys(names, winnow.NM())
    run = winnow.attach(model, opt, how=winnow.Gating(depth=2), where=where, when=Toward(density=0.5, steps=10))
    train(model, example, opt, 10)
    run.settle()
    for name in names:
        assert counts(model.get_parameter(name).detach(), 4).unique().tolist() == [2]


def lanes(weight, rule):
    theta = nn.Parameter(weight)
    opt = torch.optim.SGD([theta], lr=0.1)
    return [winnow.Gating(depth=2).lane(Site("w", theta, rule.bind(theta.shape)), opt)]


@pytest.mark.parametrize("density", [0.9, 0.6, 0.5, 0.3])
def test_what_goes_first(density):
    """Against a sort in plain Python: outside the n largest by magnitude, then within."""
    torch.manual_seed(1)
    weight = torch.randn(6, 8)
    (dead,) = smallest(lanes(weight, winnow.NM(2, 4)), density)
    entries = []
    for row in range(6):
        for group in range(2):
            part = weight[row, 4 * group : 4 * group + 4].abs().tolist()
            best = sorted(part)[-2:]
            entries += [((v in best, v), (row, 4 * group + i)) for i, v in enumerate(part)]
    keep = round(density * weight.numel())
    gone = {place for _, place in sorted(entries)[: weight.numel() - keep]}
    assert {tuple(i) for i in dead.reshape(6, 8).nonzero().tolist()} == gone


def test_elements_do_not_keep_the_pattern():
    """Negative control."""
    torch.manual_seed(1)
    weight = torch.randn(6, 8)
    (dead,) = smallest(lanes(weight, winnow.Elements()), 0.5)
    assert counts(weight.masked_fill(dead, 0), 4).unique().numel() > 1
