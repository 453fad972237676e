"""What users do without meaning to: it works, or it is said, in words that name it."""

import copy
import warnings

import pytest
import torch
from torch import nn

import winnow
from winnow import Channels, Elements, Gating, Masking, Rows, Toward
from winnow.errors import TraceError, WinnowError, WinnowWarning
from winnow.jobs.data import Examples
from winnow.jobs.tasks import Task

STEPS = 60
X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def steps(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


def attached(model, where, density=0.4, how=None):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    run = winnow.attach(model, optimizer, how=how or Gating(depth=3), where=where, when=Toward(density, STEPS))
    return run, optimizer


def warned(of):
    """The Winnow warnings that `of` gives."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        of()
    return [str(w.message) for w in said if issubclass(w.category, WinnowWarning)]


def muon(how, steps=100):
    """Density along a run with an optimizer that mixes the entries of a matrix."""
    torch.manual_seed(0)
    model, target = nn.Linear(32, 32, bias=False), torch.randn(64, 32)
    optimizer = torch.optim.Muon(model.parameters(), lr=1e-2)
    run = winnow.attach(model, optimizer, how=how, where=Elements(), when=Toward(0.2, steps))
    inputs, densities = torch.randn(64, 32), []
    for _ in range(steps):
        optimizer.zero_grad()
        (model(inputs) - target).square().mean().backward()
        optimizer.step()
        densities.append(run.density())
    return densities


@pytest.mark.parametrize("how", [Gating(depth=3), Masking()], ids=["gating", "masking"])
def test_zeros_stay_zero_under_an_optimizer_that_mixes_entries(how, monkeypatch):
    found = muon(how)
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(0.2, abs=1e-3)
    monkeypatch.setattr("winnow.host.ENTRYWISE", torch.optim.Optimizer)  # as if it could be trusted
    assert muon(how)[-1] > 0.5


def test_weights_that_start_at_zero_with_live_factors_leave_it_under_muon():
    """A zero product is not a dead group."""
    model = nn.Linear(32, 32, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.Muon(model.parameters(), lr=1e-2)
    winnow.attach(model, optimizer, how=Masking(), where=Elements(), when=0.0)  # factors 1 and 0
    model(torch.randn(8, 32)).sum().backward()
    optimizer.step()
    assert bool(model.weight.any())


@pytest.mark.parametrize("where", [Channels(X[:2]), Rows()], ids=["channels", "rows"])
def test_an_earlier_checkpoint_loaded_before_settle_is_not_cut_in_silence(where):
    model = net()
    run, optimizer = attached(model, where)
    steps(model, optimizer, 15)
    best, out, density = copy.deepcopy(model.state_dict()), model(X).detach(), run.density()
    steps(model, optimizer, STEPS - 15)
    assert run.density() < density
    model.load_state_dict(best)
    assert run.density() == density
    assert any("was asked for" in text for text in warned(run.settle))
    torch.testing.assert_close(model(X).detach(), out)


def test_a_weight_that_is_the_models_no_more_is_named():
    model = net()
    run, optimizer = attached(model, Elements())
    steps(model, optimizer, STEPS)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert any("'0.weight', '2.weight'" in text and "another tensor" in text for text in warned(run.settle))


@pytest.mark.parametrize("where", [Elements(), Channels(X[:2])], ids=["elements", "channels"])
def test_an_optimizers_checkpoint_without_the_models(where):
    model = net()
    run, optimizer = attached(model, where)
    steps(model, optimizer, 5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for loads_model, says in ((False, True), (True, False)):
        other = net()
        with torch.no_grad():
            other[0].weight.mul_(2)
        _, again = attached(other, where)
        again.load_state_dict(copy.deepcopy(saved[1]))
        if loads_model:
            other.load_state_dict(saved[0])
        said = warned(lambda other=other, again=again: steps(other, again, 2))
        assert [("optimizer's checkpoint held other weights" in text) for text in said] == [True] * says
    run.release()


def test_weights_that_the_optimizer_does_not_hold_are_named():
    model = net()
    part = torch.optim.SGD(model[0].parameters(), 0.1)
    words = {"how": Gating(depth=3), "where": Elements(), "when": 0.1}
    [text] = warned(lambda: winnow.attach(model, part, **words))
    assert "2 of 3 trainable weights are not held" in text
    assert "2.weight, 4.weight" in text


def test_steps_without_any_gradient_are_said_once():
    model = net()
    run, optimizer = attached(model, Elements())
    assert not warned(lambda: steps(model, optimizer, 2))
    optimizer.zero_grad()
    [text] = warned(lambda: [optimizer.step() for _ in range(3)])
    assert "no penalised weight has a gradient at step 2" in text
    assert run.clock.step == 5


def test_a_cache_in_the_way_is_named():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.ones(2, 4, dtype=torch.long)
    with pytest.raises(TraceError, match=r"config\.use_cache = False"):
        winnow.find_units(model, {"input_ids": ids})
    assert winnow.find_units(model, {"input_ids": ids, "use_cache": False})


def test_half_precision_comes_back_as_it_was(tmp_path):
    model = net().to(torch.bfloat16)
    winnow.save(model, tmp_path / "half")
    again = winnow.load(tmp_path / "half", net)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lr": 0.1}, r"lr = 0\.1"),
        ({"epochs": "3"}, "epochs = '3'"),
        ({"optimizer": "lion"}, "optimizer = 'lion'"),
    ],
)
def test_a_task_with_a_field_of_the_wrong_kind(fields, says):
    right = {"epochs": 3, "batch": 32, "optimizer": "sgd", "lr": {"sgd": 0.1}}
    assert Task("mine", "", lambda say: None, lambda data, width: net(), **right).epochs == 3
    with pytest.raises(WinnowError, match=says):
        Task("mine", "", lambda say: None, lambda data, width: net(), **right | fields)


def test_a_regressions_labels_are_told_what_the_command_line_does():
    with pytest.raises(WinnowError, match="trains classifiers"):
        Examples("mine", "", X, Y.float(), X, Y.float(), classes=3)
    with pytest.raises(WinnowError, match=r"x\.float\(\)"):
        Examples("mine", "", X.double(), Y, X.double(), Y, classes=3)
