"""The fused pass equals the plain path: pull, the optimizer's own step, push."""

import copy

import pytest
import torch
from torch import nn

import winnow
from winnow import Columns, Decay, Elements, Gating, LogSum, Lp, Masking, Rows

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "sgd, L2": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam, L2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
}
ROUTES = {
    "gating elements": (Gating(depth=3), Elements()),
    "gating rows": (Gating(depth=2), Rows()),
    "gating columns, log": (Gating(LogSum(1.0)), Columns(weighted=True)),
    "masking": (Masking(1.0), Elements()),
    "decay": (Decay(Lp(0.5), ridge=0.01), Elements()),
    "decay rows": (Decay(Lp(1.0)), Rows()),
}


def train(how, where, make, fused, steps=12):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    run = winnow.attach(model, optimizer, how=how, where=where, when=winnow.Ramp(1e-2, 5, 1e-3), fused=fused)
    x, y = torch.randn(20, 6).double(), torch.randn(20, 3).double()
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, run


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree.double()]
    if isinstance(tree, dict):
        return [t for key in sorted(tree, key=str) for t in tensors(tree[key])]
    return []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("route", ROUTES)
def test_fused_equals_plain(route, optimizer):
    how, where = ROUTES[route]
    plain, plain_optimizer, _ = train(how, where, OPTIMIZERS[optimizer], fused=False)
    fast, fast_optimizer, fast_run = train(how, where, OPTIMIZERS[optimizer], fused=True)
    assert fast_run._host.fused.compiled, "nothing was fused"
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    a, b = plain_optimizer.state_dict()["state"], fast_optimizer.state_dict()["state"]
    assert len(tensors(a)) == len(tensors(b)) > 0
    for s, t in zip(tensors(a), tensors(b), strict=True):
        torch.testing.assert_close(s, t, rtol=1e-10, atol=1e-13)


def test_a_run_can_change_paths():
    """Optimizer state of the fused path is torch's own, so a run goes on unfused and ends alike."""
    how, where = ROUTES["gating rows"]
    model, optimizer, run = train(how, where, OPTIMIZERS["adamw"], fused=True, steps=3)
    twin, other, _ = train(how, where, OPTIMIZERS["adamw"], fused=False, steps=3)
    run._host.fused = None
    x = torch.randn(4, 6).double()
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        m(x).square().mean().backward()
        o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_insisting_where_it_cannot_be():
    model = nn.Linear(3, 3)
    optimizer = torch.optim.RMSprop(model.parameters())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(winnow.WinnowError, match="fused=True knows"):
        winnow.attach(model, optimizer, how=Gating(depth=2), where=Rows(), when=0.1, fused=True)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
