"""Sparse formats compute what dense layers compute, are measured, and are taken only where they fit."""

import copy
import dataclasses
import re

import pytest
import torch
import zoo
from torch import nn

import winnow
from winnow import runtime
from winnow.errors import FileError, ProofError, RuntimeFormatError
from winnow.formats import BSRLinear, CSRLinear, SemiStructuredLinear
from winnow.runtime import AUTO, DENSE, to_runtime

FORMATS = {"csr": CSRLinear, "bsr": BSRLinear}


def holey(outputs, inputs, density, block=1, bias=True, dtype=torch.float32):
    torch.manual_seed(outputs + inputs)
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    alive = torch.rand(outputs // block, inputs // block) < density
    with torch.no_grad():
        linear.weight.mul_(alive.repeat_interleave(block, 0).repeat_interleave(block, 1))
    return linear


@pytest.mark.parametrize("word", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (7, 64), (2, 3, 64), (0, 64)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.4])
def test_a_format_computes_what_dense_computes(word, dtype, bias, shape, density):
    linear = holey(32, 64, density, 4, bias, dtype)
    packed = FORMATS[word](linear)
    x = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(packed(x), linear(x))
    again = copy.deepcopy(packed)
    again.load_state_dict(packed.state_dict())
    assert torch.equal(again(x), packed(x))


@pytest.mark.parametrize("word", FORMATS)
def test_only_what_is_not_zero_is_kept(word):
    packed = FORMATS[word](holey(64, 64, 0.1, 16))
    assert packed.values.numel() == int((packed.values != 0).sum()) < 0.25 * 64 * 64


def test_blocks_take_the_size_that_stores_least():
    assert BSRLinear(holey(64, 64, 0.1, 16)).values.shape[1:] == (16, 16)
    assert BSRLinear(holey(64, 64, 0.1, 4)).values.shape[1:] == (4, 4)


def net(density=0.05, block=1):
    return nn.Sequential(holey(256, 128, density, block), nn.ReLU(), nn.Linear(256, 10)).eval()


@pytest.mark.parametrize(("word", "kind"), FORMATS.items())
def test_a_format_by_name_is_taken_where_it_fits(word, kind):
    model, x = net(0.1, 4), torch.randn(16, 128)
    before = copy.deepcopy(model.state_dict())
    fast, chosen = to_runtime(model, x, word)
    assert type(fast[0]) is kind
    assert type(fast[2]) is nn.Linear  # full of nonzeros
    assert [choice.format for choice in chosen.choices] == [word, DENSE]
    assert chosen.choices[1].refused[word].startswith({"csr": "would store 100%", "bsr": "its sides"}[word])
    assert chosen.choices[0].rows == 16
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize(("winner", "kept"), [("csr", "csr"), ("dense", "dense"), ("barely", "dense")])
def test_auto_keeps_what_was_measured_to_win(winner, kept, monkeypatch):
    """With clocks that we set: dense 1 s; csr half of that, twice that, or within the margin."""
    clock = {"csr": 0.5, "dense": 2.0, "barely": 0.95}[winner]
    monkeypatch.setattr(runtime, "by_turns", lambda runs, *_: [[1.0], *[[clock]] * (len(runs) - 1)])
    fast, chosen = to_runtime(net(), torch.randn(4, 128))
    assert chosen.choices[0].format == kept
    assert (type(fast[0]) is CSRLinear) == (kept == "csr")
    said = str(chosen)
    assert ("nothing wins" in said) == (kept == "dense")
    assert "nonzero" in said


def test_real_clocks_are_read():
    _, chosen = to_runtime(net(), torch.randn(4, 128), AUTO)
    choice = chosen.choices[0]
    assert set(choice.seconds) == {"dense", "csr"}
    assert all(0 < t < 1 for t in choice.seconds.values())
    assert choice.speedup == choice.seconds["dense"] / choice.seconds[choice.format]


def test_a_smaller_transformer_too():
    model, example = zoo.build("nanoGPT")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(torch.rand_like(module.weight) < 0.1)
    fast, chosen = to_runtime(model, example, "csr")
    rows = example[0].numel() if isinstance(example, tuple) else example.numel()
    assert {choice.rows for choice in chosen.choices} == {rows}
    assert any(isinstance(module, CSRLinear) for module in fast.modules())
    args = example if isinstance(example, tuple) else (example,)
    torch.testing.assert_close(fast(*args), model(*args))


def test_tied_weights_and_layers_that_are_not_called_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = holey(64, 64, 0.1), holey(64, 64, 0.1), holey(64, 64, 0.1)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(input=x))

    fast, chosen = to_runtime(Tied(), torch.randn(2, 64), "csr")
    assert not chosen.choices
    assert "nothing to choose" in str(chosen)
    assert all(type(m) is not CSRLinear for m in fast.modules())


def test_keyword_inputs():
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = holey(64, 64, 0.1)

        def forward(self, x):
            return self.a(input=x)

    fast, _ = to_runtime(Keyed(), torch.randn(2, 64), "csr")
    assert type(fast.a) is CSRLinear


@pytest.mark.parametrize("word", ["coo", "", "CSR", None])
def test_unknown_formats(word):
    with pytest.raises(RuntimeFormatError, match="auto, dense, csr, bsr, 2:4"):
        to_runtime(net(), torch.randn(2, 128), word)


def test_a_kernel_that_errs_is_caught(monkeypatch):
    monkeypatch.setattr(CSRLinear, "_linear", lambda self, x: 1.01 * x @ torch.zeros(self.inputs, self.outputs))
    with pytest.raises(ProofError, match="differ"):
        to_runtime(net(), torch.randn(2, 128), "csr")


def test_a_kernel_that_is_missing_is_not_chosen(monkeypatch):
    def missing(self, x):
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(CSRLinear, "_linear", missing)
    fast, chosen = to_runtime(net(), torch.randn(2, 128))
    assert type(fast[0]) is nn.Linear
    assert chosen.choices[0].refused["csr"] == "no such kernel"
    with pytest.raises(RuntimeFormatError, match="no such kernel"):
        to_runtime(net(), torch.randn(2, 128), "csr")


def test_a_format_that_fits_nowhere_says_why():
    with pytest.raises(RuntimeFormatError, match="GPU"):
        to_runtime(net(), torch.randn(2, 128), "2:4")
    with pytest.raises(RuntimeFormatError, match="would store"):
        to_runtime(net(1.0), torch.randn(2, 128), "csr")


def test_slower_is_said_to_be_slower(monkeypatch):
    monkeypatch.setattr(runtime, "by_turns", lambda runs, *_: [[1.0], *[[4.0]] * (len(runs) - 1)])
    _, chosen = to_runtime(net(), torch.randn(2, 128), "csr")
    assert "0 of 2 linear layers are faster" in str(chosen)
    assert "0.25× as fast as dense" in str(chosen)


def test_what_is_for_this_machine_is_not_saved(tmp_path):
    fast, _ = to_runtime(net(), torch.randn(2, 128), "csr")
    with pytest.raises(FileError, match="save the model that to_runtime was given"):
        winnow.save(fast, tmp_path / "fast")
    assert not (tmp_path / "fast").exists()


def test_two_of_four_says_what_it_needs():
    assert "GPU" in SemiStructuredLinear.refuses(torch.ones(64, 64))
    weight = torch.ones(64, 64, dtype=torch.float16)
    if torch.cuda.is_available():
        assert "more than two" in SemiStructuredLinear.refuses(weight.cuda())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="2:4 kernels need a GPU")
def test_two_of_four_on_a_gpu():
    linear = nn.Linear(128, 128, dtype=torch.float16, device="cuda")
    with torch.no_grad():
        linear.weight.view(128, 32, 4)[..., :2] = 0
    model, x = nn.Sequential(linear), torch.randn(64, 128, dtype=torch.float16, device="cuda")
    fast, _ = to_runtime(model, x, "2:4")
    assert type(fast[0]) is SemiStructuredLinear
    torch.testing.assert_close(fast(x), model(x))


def test_a_report_is_plain_data():
    _, chosen = to_runtime(net(), torch.randn(2, 128), "csr")
    assert dataclasses.asdict(chosen)["choices"][0]["format"] == "csr"
    assert re.search(r"256×128, [45]\.\d% nonzero, 2 rows", str(chosen))


def test_it_is_exported():
    assert winnow.to_runtime is to_runtime
