"""Saved and loaded again: equal bits, no pickle, and a clear word about every file that is not what it should be."""

import json
import os
import sys

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from test_smaller import thinned, without_the_second
from torch import nn

import winnow
from winnow.errors import FileError
from winnow.trace import call, leaves


def same_outputs(a, b, example):
    for x, y in zip(leaves(call(a, example)), leaves(call(b, example)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_smaller_model_comes_back_bit_for_bit(name, tmp_path):
    model, example, *_ = thinned(name)
    small, _ = winnow.compact(model, example)
    winnow.save(small, tmp_path / "small")
    again = winnow.load(tmp_path / "small", lambda: zoo.build(name, seed=7)[0])
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}
    same_outputs(small, again, example)
    assert sorted(os.listdir(tmp_path / "small")) == ["model.safetensors", "structure.json"]
    assert os.listdir(tmp_path) == ["small"]


@pytest.mark.parametrize("name", ["ResNet-18", "fixed sizes"])
def test_one_that_was_cut_twice(name, tmp_path):
    model, example = zoo.build(name)
    once, _ = without_the_second(model, example)
    twice, proof = without_the_second(once, example)
    assert proof.parameters[1] < proof.parameters[0]
    winnow.save(twice, tmp_path / "small")
    again = winnow.load(tmp_path / "small", lambda: zoo.build(name, seed=7)[0])
    same_outputs(twice, again, example)
    winnow.save(again, tmp_path / "small")  # over itself
    same_outputs(twice, winnow.load(tmp_path / "small", lambda: zoo.build(name)[0]), example)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV2", "squeeze and excite"])
def test_convolutions_keep_their_memory_format(name, form, tmp_path):
    """Whoever trained channels last is given channels last."""
    model, example, *_ = thinned(name)
    small, proof = winnow.compact(model.to(memory_format=form), example)
    assert proof.parameters[1] < proof.parameters[0]
    winnow.save(small, tmp_path / "small")
    again = winnow.load(tmp_path / "small", lambda: zoo.build(name, seed=7)[0].to(memory_format=form))
    for like in (small, again):
        kernels = [theta for theta in like.parameters() if theta.dim() == 4]
        assert all(k.is_contiguous(memory_format=form) for k in kernels)
        assert len(kernels) > 1


def test_ties_survive(tmp_path):
    model, example, *_ = thinned("tied head")
    winnow.save(winnow.compact(model, example)[0], tmp_path / "small")
    again = winnow.load(tmp_path / "small", zoo.TiedHead)
    assert again.head.weight is again.embed.weight
    assert len(load_file(tmp_path / "small/model.safetensors")) == 3


@pytest.fixture
def folder(tmp_path):
    model, example, *_ = thinned("MLP")
    return winnow.save(winnow.compact(model, example)[0], tmp_path / "small")


def rewrite(folder, **changes):
    path = folder / "structure.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def foreign(folder):
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors")


def wrong_names(folder):
    foreign(folder)
    import hashlib

    rewrite(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def pickled(folder):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "executed"),))

    torch.save({"0.weight": Bomb()}, folder / "model.safetensors")
    import hashlib

    rewrite(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


DAMAGE = {
    "no structure": (lambda f: (f / "structure.json").unlink(), "is no saved model"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "is no saved model"),
    "half a structure": (lambda f: (f / "structure.json").write_text('{"format": 1, "fo'), "damaged or foreign"),
    "another JSON": (lambda f: (f / "structure.json").write_text("[1, 2]"), "damaged or foreign"),
    "a field of another type": (lambda f: rewrite(f, tensors=[]), "damaged or foreign"),
    "from the future": (lambda f: rewrite(f, format=99), "newer than this Winnow.*upgrade"),
    "truncated weights": (truncated, "checksum differs"),
    "other weights": (foreign, "checksum differs"),
    "other weights, checksum and all": (wrong_names, "name different tensors"),
    "a pickle": (pickled, "damaged or foreign"),
    "a graph without a recipe": (lambda f: rewrite(f, form="graph"), "damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_is_not_what_it_should_be(case, folder):
    damage, says = DAMAGE[case]
    damage(folder)
    with pytest.raises(FileError, match=f"(?s){says}"):
        winnow.load(folder, zoo.mlp)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(12, 3)), "does not fit"),
        (lambda: nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 5)),
         "was saved as.*before it became smaller"),
        (lambda: "no model", "must return an nn.Module"),
    ],
)
def test_another_model(make, says, folder):
    with pytest.raises(FileError, match=says):
        winnow.load(folder, make)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_a_wrapped_model_is_saved_as_what_it_wraps(wrap, tmp_path):
    model = zoo.mlp()
    again = winnow.load(winnow.save(wrap(model), tmp_path / "small"), zoo.mlp)
    assert again.state_dict().keys() == model.state_dict().keys()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="holds other things"):
        winnow.save(zoo.mlp(), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


# ---- without the zeros -------------------------------------------------------------------------------------------


def scattered(density, dtype=torch.float32, shape=(300, 400)):
    torch.manual_seed(0)
    model = nn.Linear(shape[1], shape[0], dtype=dtype)
    with torch.no_grad():
        model.weight.mul_(torch.rand(shape) < density)
    return model


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compressed_files_hold_the_same_bits(density, dtype, tmp_path):
    model = scattered(density, dtype)
    with torch.no_grad():
        model.weight += 0.0  # −0 becomes 0, here and in the file
        model.weight[1, 1], model.bias[0] = float("nan"), 0.0
    winnow.save(model, tmp_path / "s", compress=True)
    again = winnow.load(tmp_path / "s", lambda: nn.Linear(400, 300, dtype=dtype))
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert int((scattered(0.5).weight.view(torch.int32) == -(2**31)).sum()) > 0  # the negative zeros of a mask
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.view(whole), b.view(whole))


def test_the_file_shrinks_with_the_density(tmp_path):
    sizes = {}
    for density in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        winnow.save(scattered(density), tmp_path / str(density), compress=True)
        sizes[density] = (tmp_path / str(density) / "model.safetensors").stat().st_size
    n, rest = 300 * 400, 301 * 4 + 2000  # row starts, bias and header
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert sizes[1.0] <= 4 * n + rest  # never larger than dense
    for density, size in sizes.items():
        if density < 1:
            nonzero = int((scattered(density).weight != 0).sum())
            assert size <= min(n / 8 + 4 * nonzero, 6 * nonzero) + rest


def test_plain_files_are_still_format_1(tmp_path):
    winnow.save(scattered(0.1), tmp_path / "plain")
    assert json.loads((tmp_path / "plain/structure.json").read_text())["format"] == 1
    assert set(load_file(tmp_path / "plain/model.safetensors")) == {"weight", "bias"}
    winnow.save(scattered(0.1), tmp_path / "packed", compress=True)
    assert json.loads((tmp_path / "packed/structure.json").read_text())["format"] == 2


@pytest.mark.parametrize("name", ["LeNet-5", "tied head", "fixed sizes", "GPT-2"])
def test_smaller_and_compressed(name, tmp_path):
    model, example, *_ = thinned(name)
    small, _ = winnow.compact(model, example)
    with torch.no_grad():
        for theta in small.parameters():
            theta.mul_(torch.rand_like(theta) < 0.2)
    winnow.save(small, tmp_path / "s", compress=True)
    same_outputs(small, winnow.load(tmp_path / "s", lambda: zoo.build(name, seed=7)[0]), example)


def forged(folder, change):
    """The folder's tensors and packing changed, checksum and all: a file made to do harm."""
    import hashlib

    tensors = load_file(folder / "model.safetensors")
    structure = json.loads((folder / "structure.json").read_text())
    change(tensors, structure["packed"])
    save_file(tensors, folder / "model.safetensors")
    structure["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    structure["tensors"] = {
        n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()
    }
    (folder / "structure.json").write_text(json.dumps(structure))


HARM = {
    "column beyond": (0.01, lambda t, p: t.update({"weight:columns": t["weight:columns"].int() + 60_000})),
    "negative column": (0.01, lambda t, p: t.update({"weight:columns": t["weight:columns"].int() - 999})),
    "starts descend": (0.01, lambda t, p: t.update({"weight:starts": t["weight:starts"].flip(0).contiguous()})),
    "starts too few": (0.01, lambda t, p: t.update({"weight:starts": t["weight:starts"][:-1].contiguous()})),
    "a column twice": (0.01, lambda t, p: t["weight:columns"].fill_(3)),
    "a value less": (0.01, lambda t, p: t.update({"weight:values": t["weight:values"][1:].contiguous()})),
    "bits short": (0.3, lambda t, p: t.update({"weight:bits": t["weight:bits"][1:].contiguous()})),
    "bits flipped": (0.3, lambda t, p: t.update({"weight:bits": 255 - t["weight:bits"]})),
    "bits of floats": (0.3, lambda t, p: t.update({"weight:bits": t["weight:bits"].float()})),
    "part missing": (0.3, lambda t, p: t.pop("weight:bits")),
    "unknown packing": (0.3, lambda t, p: p["weight"].update(packing="zip")),
    "huge shape": (0.3, lambda t, p: p["weight"].update(shape=[2**40, 2**40])),
    "negative shape": (0.3, lambda t, p: p["weight"].update(shape=[-300, -400])),
    "no shape": (0.3, lambda t, p: p["weight"].update(shape=[])),
    "shape of words": (0.3, lambda t, p: p["weight"].update(shape="ab")),
    "packing of nothing": (0.3, lambda t, p: p.update({"other": dict(p["weight"])})),
    "spec is no table": (0.3, lambda t, p: p.update({"weight": 3})),
}


@pytest.mark.parametrize("harm", HARM)
def test_forged_packings_load_nothing(harm, tmp_path):
    density, change = HARM[harm]
    folder = winnow.save(scattered(density), tmp_path / "s", compress=True)
    forged(folder, change)
    with pytest.raises(FileError, match=r"damaged|fit"):
        winnow.load(folder, lambda: nn.Linear(400, 300))


def test_what_is_missing_is_said_before_anything_is_written_or_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    model = nn.Linear(2, 2)
    with pytest.raises(FileError, match=r"torch-winnow\[files\]"):
        winnow.save(model, tmp_path / "m")
    with pytest.raises(FileError, match=r"torch-winnow\[files\]"):
        winnow.path(model, lambda *_: pytest.fail("trained"), lambda _: 0.0, optimizer=lambda m: None, how=winnow.Masking(),
                    where=winnow.Elements(), example=torch.ones(2, 2), steps=10, out=tmp_path / "p")  # fmt: skip
    assert not list(tmp_path.iterdir())
