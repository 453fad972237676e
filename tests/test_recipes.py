"""The papers' methods as recipes: each is attached as it is, takes steps, and is what its paper says."""

import inspect

import pytest
import torch
from torch import nn

import winnow
from winnow import Decay, Elements, Gating, Hyperbolic, Masking, recipes

OURS = [name for name, f in inspect.getmembers(recipes, inspect.isfunction) if f.__module__ == recipes.__name__]
NAMES = [name for name in OURS if name not in ("best", "rate")]


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    given = {"pilot": {"epochs": 2}, "auto": {"density": 0.5, "steps": 50}}.get(name, {})
    words = getattr(recipes, name)(**given)
    before = [w.clone() for w in model.parameters()]
    run = winnow.attach(model, optimizer, **words, fused=False)
    x, y = torch.randn(16, 6), torch.randn(16, 3)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    run.release()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all((w != b).any() for w, b in zip(model.parameters(), before, strict=True))


def test_what_they_say():
    assert len(NAMES) == 9
    assert recipes.sign_in() == {"how": Masking(1.0), "where": Elements(), "when": 0.0}
    assert recipes.ham() == {"how": Hyperbolic(200.0, rescale=False), "where": Elements(), "when": 1e-3}
    assert recipes.p_norm_decay()["how"] == Decay(winnow.Lp(0.8), rescale=False)
    assert recipes.d_gating()["how"] == Gating(depth=3)


@pytest.mark.parametrize("where", [None, Elements(), winnow.Rows()])
def test_auto_takes_what_did_well(where):
    words = recipes.auto(density=0.1, steps=70, where=where)
    assert words == {"how": Gating(depth=2), "where": where or Elements(), "when": winnow.Toward(0.1, 70)}
    assert [recipes.rate(*kind) for kind in ((True, True), (True, False), (False, True))] == [3.0, 1.0, 1.0]
