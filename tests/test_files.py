"""Saved and loaded again: equal bits, no pickle, and a clear word about every file that is not what it should be."""

import json
import os

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


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="holds other things"):
        winnow.save(zoo.mlp(), tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
