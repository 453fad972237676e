"""Random units set to zero, taken out, and nothing else changed: on every model of the zoo."""

import copy

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

import winnow
from winnow.errors import ProofError, TraceError
from winnow.smaller import compact, macs, plan
from winnow.trace import Tracer, call, graph_of, leaves
from winnow.units import find_units, read_units, zero_units

every_model = pytest.mark.parametrize("name", zoo.MODELS)


def thinned(name, share=0.5, seed=3):
    """A zoo model with about `share` of its units zeroed: (model, example, layers, dead)."""
    model, example = zoo.build(name)
    layers = find_units(model, example)
    generator = torch.Generator().manual_seed(seed)
    dead = [torch.rand(layer.count, generator=generator) < share for layer in layers]
    for marks in dead:
        marks[0] = False  # one of each kind stays
    zero_units(model, layers, dead)
    return model, example, layers, dead


def predicted(model, layers, dead):
    """Parameters left, counted from the units alone: every dead one takes its slices of all its weights with it."""
    left = {name: list(theta.shape) for name, theta in model.named_parameters()}
    for layer, marks in zip(layers, dead, strict=True):
        for member in {(m.name, m.axis): m for m in (*layer.members, *layer.reads)}.values():
            if member.name in left:
                left[member.name][member.axis] -= int(marks.sum()) * member.indices.shape[1]
    return sum(torch.Size(shape).numel() for shape in left.values())


@every_model
def test_outputs_are_equal_and_the_size_is_as_predicted(name):
    model, example, layers, dead = thinned(name)
    before = copy.deepcopy(model.state_dict())
    small, proof = compact(model, example)
    assert proof.proved
    assert set(proof.errors) == {"float32", "float64"}
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    for old, new in zip(leaves(call(model, example)), leaves(call(small, example)), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5 * float(old.detach().abs().max()))
    everything_goes = not proof.kept
    count = sum(theta.numel() for theta in small.parameters())
    assert count == proof.parameters[1] < proof.parameters[0]
    if everything_goes:  # what a constant keeps is told in the proof
        assert count <= predicted(model, layers, dead)
    sum(out.float().square().mean() for out in leaves(call(small, example))).backward()
    assert all(theta.grad is not None for theta in small.parameters() if theta.requires_grad)


def test_einstein_sums_are_read_like_layers():
    model, example = zoo.build("Einstein sums")
    layers = find_units(model, example)
    kinds = {layer.name: (layer.count, {m.name for m in (*layer.members, *layer.reads)}) for layer in layers}
    assert kinds["wq"] == (3, {"wq", "wk", "wv", "wo"})
    assert kinds["up"] == (20, {"up", "down"})
    assert any(count == 12 and {"wo", "down", "up", "head.weight"} <= names for count, names in kinds.values())


@pytest.mark.parametrize("sum_", ["bld,ld->bld", "bld,de->bl", "bld,bld->b", "bli,dd->bli", "...d,de->...e"])
def test_other_einstein_sums_pin(sum_):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.w = nn.Parameter(torch.randn({"ld": (5, 6), "de": (6, 3), "dd": (3, 3)}.get(sum_[4:6], (6, 3))))

        def forward(self, x):
            y = self.a(x)
            return torch.einsum(sum_, y, y if "bld,bld" in sum_ else self.w)

    model, example = Net(), torch.randn(2, 5, 4)
    with torch.no_grad():
        model.a.weight[:3], model.a.bias[:3] = 0, 0
    _, proof = compact(model, example)
    assert proof.proved
    assert proof.parameters[0] == proof.parameters[1]
    assert any("einsum" in why for why in proof.pinned)


def test_a_position_embedding_belongs_to_the_channels_it_is_added_to():
    model, example = zoo.build("position embedding")
    stream = next(layer for layer in find_units(model, example) if layer.count == 12)
    assert {m.name for m in stream.members} == {
        "place", "conv0.weight", "conv0.bias", "conv2.weight", "conv2.bias"
    }
    zero_units(model, [stream], [torch.arange(12) < 5])
    small, _ = compact(model, example)
    assert small.place.shape == (49, 7)


def test_group_normalisation_loses_whole_groups():
    model, example = zoo.build("group normalisation")
    layers = {layer.name: layer for layer in find_units(model, example)}
    assert (layers["norm1.weight"].count, layers["norm1.weight"].members[0].indices.shape) == (4, (4, 4))
    assert "norm3.weight" not in layers
    with torch.no_grad():
        model.norm1.weight[4:8], model.norm1.bias[4:8] = 0, 0
        model.norm1.weight[8:10], model.norm1.bias[8:10] = 0, 0  # half a group stays
    small, proof = compact(model, example)
    assert (small.norm1.num_groups, small.norm1.num_channels, small.conv1.out_channels) == (3, 12, 12)
    assert any("group_norm" in why for why in proof.pinned)


def test_reasons_name_operator_and_module():
    model, example = zoo.build("nanoGPT")
    _, proof = compact(model, example)
    assert any("aten.layer_norm" in why and why.endswith("at h.0.ln_1") for why in proof.pinned)


@every_model
def test_nothing_dead_nothing_done(name):
    model, example = zoo.build(name)
    small, proof = compact(model, example)
    assert proof.parameters[0] == proof.parameters[1]
    assert proof.max_error == 0
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())


def without_the_second(model, example):
    """Compacted, with the second unit of each kind zeroed."""
    layers = find_units(model, example)
    zero_units(model, layers, [torch.arange(layer.count) == 1 for layer in layers])
    return compact(model, example)


@pytest.mark.parametrize("name", ["VGG-16-BN", "ResNet-18", "nanoGPT", "fixed sizes"])
def test_the_smaller_model_trains_on_and_gets_smaller_again(name):
    small, example = zoo.build(name)
    small, proof = without_the_second(small, example)
    assert proof.parameters[1] < proof.parameters[0]
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-4)
    first = None
    for _ in range(5):
        optimizer.zero_grad()
        loss = call(small, example).float().square().mean()
        first = first or float(loss.detach())
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first
    small.eval()
    _, second = without_the_second(small, example)
    assert second.proved
    assert second.parameters[1] < second.parameters[0] == proof.parameters[1]


def test_units_are_what_a_person_would_name():
    model, example = zoo.build("nanoGPT")
    found = {layer.name: (layer.count, [m.name for m in layer.reads]) for layer in find_units(model, example)}
    assert found == {
        **{f"h.{i}.attn.c_attn.weight": (4, [f"h.{i}.attn.c_proj.weight"]) for i in range(2)},
        **{f"h.{i}.mlp.c_fc.weight": (64, [f"h.{i}.mlp.c_proj.weight"]) for i in range(2)},
    }
    model, example = zoo.build("ResNet-18")
    members = {m.name for layer in find_units(model, example) for m in layer.members}
    assert "blocks.0.convs.0.weight" not in members, "its scale is lost in the batch normalisation behind"
    assert {"blocks.0.norms.0.weight", "blocks.0.norms.0.bias"} <= members
    stream = next(layer for layer in find_units(model, example) if layer.name == "stem.1.weight")
    assert {m.name for m in stream.members} == {
        f"{place}.{kind}" for place in ("stem.1", "blocks.0.norms.1", "blocks.1.norms.1") for kind in ("weight", "bias")
    }, "a residual channel has every branch's slice"


# ---- constants ---------------------------------------------------------------------------------------------------


class Emits(nn.Module):
    """conv → (norm) → activation → conv: what does a dead filter with a live bias do to the border?"""

    def __init__(self, padding, bias=True, norm=False):
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.b, self.behind = nn.Conv2d(6, 4, 3, padding=padding, bias=bias), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.relu(self.behind(self.b(F.gelu(self.norm(self.a(x)))))).mean((2, 3)))


def emitting(**options):
    torch.manual_seed(0)
    model = Emits(**options).eval()
    model.a.weight.data[:3] = 0
    model.a.bias.data[:3] = torch.tensor([0.0, 0.7, -0.4])
    if options.get("norm"):
        model.norm.weight.data[:3] = 0
        model.norm.bias.data[:3] = torch.tensor([0.0, 0.7, -0.4])
    return model


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_goes_into_the_bias_or_the_running_mean_behind(bias, norm):
    small, proof = compact(emitting(padding=0, bias=bias, norm=norm), torch.randn(2, 2, 9, 9))
    assert small.a.weight.shape[0] == 3 == small.b.weight.shape[1]
    assert proof.proved
    assert not proof.kept
    assert small(torch.randn(1, 2, 12, 12)).shape == (1, 3)  # and at other sizes


def test_a_constant_before_padding_stays_and_says_why():
    model = emitting(padding=1)
    small, proof = compact(model, torch.randn(2, 2, 9, 9))
    assert small.a.weight.shape[0] == 5, "only the one that emits zero goes"
    assert proof.kept == {plan.BORDER: 2}
    assert "border" in str(proof)


def test_removing_it_naively_would_be_wrong(monkeypatch):
    """The negative control: without folding, the proof refuses."""
    monkeypatch.setattr(plan, "_folds", lambda *_: {})
    with pytest.raises(ProofError, match="differ"):
        compact(emitting(padding=0), torch.randn(2, 2, 9, 9))
    _, proof = compact(emitting(padding=0), torch.randn(2, 2, 9, 9), check=False)
    assert not proof.proved
    assert "DIFFER" in str(proof)


def test_what_nobody_reads_is_dead_though_it_is_not_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model[4].weight.data[:, :3] = 0
    model[2].weight.data[3:, :5] = 0  # read by the three that nobody reads, only
    small, proof = compact(model, torch.randn(3, 4))
    assert (small[0].out_features, small[2].out_features) == (3, 5)
    assert proof.proved


def test_a_layer_that_is_all_dead_keeps_one():
    model = zoo.build("MLP")[0]
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()
    small, proof = compact(model, torch.randn(3, 12))
    assert small[0].out_features == 1 == small[3].out_features, "behind a constant, all is constant"
    assert proof.kept == {plan.LAST: 2}


@pytest.mark.parametrize("name", ["VGG-16-BN", "ResNet-18", "nanoGPT", "fixed sizes"])
def test_round_numbers(name):
    """Widths are multiples of four, no wider than before, and outputs are still equal."""
    model, example, layers, dead = thinned(name)
    small, proof = compact(model, example, round_to=4)
    assert proof.proved
    shapes = {n: theta.shape for n, theta in small.named_parameters()}
    for layer, marks in zip(layers, dead, strict=True):
        member = layer.members[0]
        width = shapes[member.name][member.axis] // member.indices.shape[1]
        alive = int((~marks).sum())
        assert width == min(-(-alive // 4) * 4, layer.count), layer
    with pytest.raises(TraceError, match="round_to must be"):
        compact(model, example, round_to=0)


def test_a_neuron_that_never_fires_on_the_example_is_not_dead():
    """Structure decides, not samples: a ReLU far below zero may fire elsewhere."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    model[0].bias.data[0] = -1000.0
    small, _ = compact(model, torch.randn(4, 2))
    assert small[0].out_features == 3


# ---- what cannot be read -----------------------------------------------------------------------------------------


class Strange(nn.Module):
    """An operator without a rule in the middle."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(torch.cumprod(self.a(x), -1))


def test_ignorance_costs_compression_only():
    model = Strange().eval()
    model.a.weight.data[2] = 0
    model.a.bias.data[2] = 0
    small, proof = compact(model, torch.randn(3, 4))
    assert small.a.out_features == 6
    assert proof.unknown == {"aten.cumprod": 1}
    assert "no rule for aten.cumprod" in str(proof)


BAD = {
    "data-dependent control flow": (zoo.Deciding(), torch.randn(2, 4), "control flow must not depend on the data"),
    "another dtype": (nn.Linear(3, 2), torch.randn(2, 3).double(), r"float64.*float32.*example\.to"),
    "another device": (nn.Linear(3, 2), torch.randn(2, 3, device="meta"), "is on meta and the model on cpu"),
    "no tensor": (nn.Linear(3, 2), (), "no tensor"),
    "no parameters": (nn.ReLU(), torch.randn(2), "no parameters"),
    "not a model": (lambda x: x, torch.randn(2), "must be an nn.Module"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    model, example, says = BAD[case]
    with pytest.raises(TraceError, match=f"(?is){says}"):
        compact(model, example)


def test_a_model_in_train_mode_stays_in_it():
    model, example = zoo.build("VGG-16-BN")
    model.train()
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    compact(model, example)
    assert [m.training for m in model] == [i != 3 for i in range(len(model))]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_a_model_with_nothing_to_remove():
    with pytest.raises(TraceError, match="no channel that could be removed"):
        find_units(nn.Linear(3, 2), torch.randn(2, 3))


def test_tied_weights_stay_tied():
    model, example, *_ = thinned("tied head")
    small, _ = compact(model, example)
    assert small.head.weight is small.embed.weight
    assert small.embed.embedding_dim == small.body.in_features < 10


def test_macs_of_recurrent_networks():
    """Four gates of (inputs + width)·width each, three of a GRU, per step of 4 sequences of 5; both directions, two layers."""
    x = torch.randn(4, 5, 8)
    assert macs(nn.LSTM(8, 16, batch_first=True), x) == 20 * 4 * (8 + 16) * 16
    assert macs(nn.GRU(8, 16, batch_first=True), x) == 20 * 3 * (8 + 16) * 16
    assert macs(nn.LSTM(8, 16, 2, bidirectional=True), x) == 20 * 4 * 16 * 2 * ((8 + 16) + (32 + 16))


def test_what_cannot_be_compared_says_why():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), training=True)

    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)]
    with pytest.raises(ProofError, match="other outputs each time, in eval mode as well"):
        compact(Noisy(*layers), torch.randn(2, 8))
    model = nn.Sequential(*layers)
    nn.init.constant_(model[0].weight, torch.nan)
    with pytest.raises(ProofError, match="are not finite"):
        compact(model, torch.randn(2, 8))


def test_macs_are_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 7))
    assert macs(model, torch.randn(2, 3, 5, 5)) == 2 * (25 * 4 * 3 * 9 + 100 * 7)


def test_classes_by_the_obvious_way():
    """Connected components, against a walk over neighbours."""
    model, example = zoo.build("U-Net")
    ties = Tracer(graph_of(model, example)).run().ties
    near = {i: set() for i in range(ties.count)}
    for a, b in ties.edges:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            near[i].add(j)
            near[j].add(i)
    label = [-1] * ties.count
    for start in range(ties.count):
        stack = [start] if label[start] < 0 else []
        while stack:
            i = stack.pop()
            if label[i] < 0:
                label[i] = start
                stack += near[i]
    assert ties.classes().tolist() == label


# ---- the baseline ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["VGG-16-BN", "ResNet-18", "nanoGPT", "Llama"])
def test_removing_by_magnitude(name):
    model, example = zoo.build(name)
    before = copy.deepcopy(model.state_dict())
    layers = find_units(model, example)
    small, proof = winnow.remove(model, example, keep=0.5)
    assert proof.proved
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    left = find_units(small, example)
    total = sum(layer.count for layer in layers)
    assert sum(layer.count for layer in left) <= max(round(0.5 * total), len(layers))


@pytest.mark.parametrize("count", [winnow.Parameters(), winnow.MACs()])
def test_removing_down_to_a_share_of_what_counts(count):
    """As many units go as it takes: what is left is at most the share asked for, and a unit more would be above it."""
    model, example = zoo.build("ResNet-18")
    small, proof = winnow.remove(model, example, keep=0.4, count=count)
    before, after = (
        (sum(p.numel() for p in m.parameters()) if count == winnow.Parameters() else winnow.smaller.macs(m, example))
        for m in (model, small)
    )
    assert proof.proved and after <= 0.4 * before
    tracer, layers = read_units(model, example)
    assert after > (0.4 - count.spending(tracer, layers).grain) * before


def test_removing_takes_the_smallest():
    model = zoo.build("MLP")[0]
    model[0].weight.data[4:] *= 100
    model[0].bias.data[4:] *= 100
    small, _ = winnow.remove(model, torch.randn(3, 12), keep=0.8)
    assert torch.equal(small[0].weight[-16:], model[0].weight[4:])


def test_removing_by_a_score_of_ones_own():
    model, example = zoo.build("MLP")
    small, _ = winnow.remove(model, example, keep=0.5, score=lambda _, layer: torch.arange(layer.count).flip(0))
    assert torch.equal(small[0].weight, model[0].weight[: small[0].out_features])
    with pytest.raises(TraceError, match="one per unit"):
        winnow.remove(model, example, keep=0.5, score=lambda *_: torch.ones(3))
    with pytest.raises(TraceError, match="keep must lie"):
        winnow.remove(model, example, keep=0.0)


def test_the_public_names():
    assert winnow.compact is compact


def test_torch_keeps_its_words_about_itself_to_itself(capfd, recwarn, tmp_path):
    """Tracing, copying and exporting print, log and warn nothing; refusing neither."""
    model, example, *_ = thinned("fixed sizes")
    small, _ = compact(model, example)
    winnow.export(small, tmp_path / "small.onnx", example)
    with pytest.raises(TraceError, match="data-dependent"):
        compact(zoo.Deciding(), torch.randn(2, 4))
    assert capfd.readouterr() == ("", "")
    assert not [w for w in recwarn if "copyreg" in w.filename or "torch" in w.filename]


def test_no_zeros_no_wonder():
    model, example = zoo.build("MLP")
    assert "settle()" in str(compact(model, example)[1])
    assert "settle()" not in str(compact(*thinned("MLP")[:2])[1])


def test_units_print_in_a_line():
    model, example = zoo.build("MLP")
    shown = repr(find_units(model, example))
    assert "tensor(" not in shown
    assert shown.startswith("[<")
