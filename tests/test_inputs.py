"""Features of the inputs: found, gated, and taken out, while the model is called as before."""

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

import winnow
from winnow import Channels, Gating, MACs, Toward
from winnow.trace import call
from winnow.units import find_units, zero_units


class Fusion(nn.Module):
    """Two inputs; the first is read twice."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(5, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x, *, side):
        return self.out(F.relu(self.a(x)) * self.gate(x).sigmoid() + self.b(side))


MODELS = {
    "MLP": lambda: zoo.build("MLP"),
    "image": lambda: (nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)).eval(),
                      torch.randn(2, 6, 4, 4)),
    "sequence": lambda: (nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 2)).eval(), torch.randn(2, 5, 7)),
    "two inputs": lambda: (Fusion().eval(), {"x": torch.randn(3, 8), "side": torch.randn(3, 5)}),
}
every = pytest.mark.parametrize("name", MODELS)


def make(name):
    torch.manual_seed(0)
    return MODELS[name]()


def blinded(name):
    """Half of all units zeroed, features included."""
    model, example = make(name)
    layers = find_units(model, example, inputs=True)
    zero_units(model, layers, [torch.arange(layer.count) % 2 == 1 for layer in layers])
    return model, example, layers


@every
def test_a_feature_is_what_reads_it(name):
    model, example = make(name)
    features = [layer for layer in find_units(model, example, inputs=True) if layer.members[0].axis == 1 and not layer.reads]
    plain = find_units(model, example)
    assert len(find_units(model, example, inputs=True)) == len(plain) + len(features)
    widths = {"MLP": [model[0].in_features if name == "MLP" else 0], "image": [6], "sequence": [7], "two inputs": [8, 5]}
    assert sorted(layer.count for layer in features) == sorted(widths[name])
    if name == "two inputs":
        assert {tuple(m.name for m in layer.members) for layer in features} == {("a.weight", "gate.weight"), ("b.weight",)}


@every
def test_they_come_out_and_the_call_stays(name, tmp_path):
    model, example, _ = blinded(name)
    whole, _ = winnow.compact(model, example)
    small, proof = winnow.compact(model, example, inputs=True)
    assert proof.proved
    assert proof.form == "graph, input features are selected in front"
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())
    kept = {key: buffer.tolist() for key, buffer in small.named_buffers() if key.startswith("kept_")}
    assert all(indices == list(range(0, 2 * len(indices), 2)) for indices in kept.values())
    assert sum(word.startswith("input ") for word in proof.channels) == len(kept) == (2 if name == "two inputs" else 1)
    winnow.save(small, tmp_path / "s")
    again = winnow.load(tmp_path / "s", lambda: make(name)[0])
    assert torch.equal(call(again, example), call(small, example))
    assert winnow.export(small, tmp_path / "s.onnx", example) <= 1e-4
    call(small, example).square().mean().backward()
    twice, proof = winnow.compact(small, example, inputs=True)
    assert proof.proved
    winnow.save(twice, tmp_path / "t")
    assert torch.equal(call(winnow.load(tmp_path / "t", lambda: make(name)[0]), example), call(twice, example))


def test_what_is_not_asked_for_stays():
    model, example, _ = blinded("sequence")
    small, _ = winnow.compact(model, example)
    assert type(small) is nn.Sequential
    assert small[0].in_features == 7


def test_an_input_that_is_an_output_stays():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 9), nn.Linear(9, 4)

        def forward(self, x):
            return x + self.down(self.up(x).relu())

    model, example = Residual(), torch.randn(2, 4)
    with torch.no_grad():
        model.up.weight[:, 2] = 0
    small, proof = winnow.compact(model, example, inputs=True)
    assert proof.proved
    assert small.up.in_features == 4
    assert any("output" in why for why in proof.pinned)


@pytest.mark.parametrize(("count", "density"), [(None, 3 / 12), (MACs(), (3 * 16 + 16 * 2) / (12 * 16 + 16 * 2))])
def test_selection_finds_the_features_that_matter(count, density):
    """Three of twelve features decide; the gate finds them, and the smaller model reads no others."""
    torch.manual_seed(0)
    x = torch.randn(512, 12)
    y = (2 * x[:, 1] - 3 * x[:, 4] + 2 * x[:, 9] > 0).long()
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    where = Channels(x[:2], count=count, inputs=True)
    run = winnow.attach(model, optimizer, how=Gating(depth=3), where=where, when=Toward(density=density, steps=400))
    for _ in range(400):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    run.settle()
    small, proof = winnow.compact(model, x[:2], inputs=True)
    kept = next(buffer.tolist() for key, buffer in small.named_buffers() if key.startswith("kept_"))
    assert kept == [1, 4, 9]
    if count is not None:
        assert proof.macs[1] / proof.macs[0] == pytest.approx(run.density(), abs=1e-12)
    assert (small(x).argmax(1) == y).float().mean() > 0.95
