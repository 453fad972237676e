"""The five data sets: right where they are at hand, and a clear way out where they are not."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from winnow import WinnowError
from winnow.jobs import data, files

REAL = os.environ.get("WINNOW_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="WINNOW_DATA is not set: no real data at hand")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Neither data folder nor cache; the folder that would be $WINNOW_DATA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path / "given"))
    return tmp_path / "given"


def idx(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes(), 1)


def test_digits_are_split_and_standardised() -> None:
    digits = data.load("digits")
    assert digits.x.shape == (1437, 64)
    assert digits.test_x.shape == (360, 64)
    assert digits.x.dtype == torch.float32
    assert digits.y.dtype == torch.int64
    assert abs(float(digits.x.mean())) < 1e-5
    assert abs(float(digits.x.std()) - 1) < 1e-3
    whole, held = torch.bincount(torch.cat([digits.y, digits.test_y])), torch.bincount(digits.test_y)
    assert len(held) == digits.classes == 10
    assert (held / whole - 0.2).abs().max() < 0.005  # stratified
    assert torch.equal(data.load("digits").test_x, digits.test_x)


@needs_data
@pytest.mark.parametrize(
    ("name", "mean", "std", "zeros"), [("mnist", 0.1307, 0.3081, 5923), ("fashion", 0.2860, 0.3530, 6000)]
)
def test_images_are_the_published_ones(name: str, mean: float, std: float, zeros: int) -> None:
    images = data.load(name)
    assert images.source == "WINNOW_DATA"
    assert images.x.shape == (60_000, 784)
    assert images.test_x.shape == (10_000, 784)
    assert abs(float(images.x.mean())) < 1e-4
    assert abs(float(images.x.std()) - 1) < 1e-4
    assert float(images.x.min()) == pytest.approx(-mean / std, abs=1e-3)  # black, before standardising
    assert float(images.x.max()) == pytest.approx((1 - mean) / std, abs=2e-3)
    assert int((images.y == 0).sum()) == zeros
    assert images.y.unique().tolist() == images.test_y.unique().tolist() == list(range(10))


@needs_data
def test_shakespeare_is_the_published_one() -> None:
    text = data.load("shakespeare", block=64)
    assert len(text.train) + len(text.test) == 1_115_394
    assert len(text.train) == 1_003_854
    assert text.classes == 65
    assert int(text.train.max()) == 64
    assert "".join(text.alphabet[code] for code in text.train[:14]) == "First Citizen:"


@needs_data
def test_text_batches_are_windows_with_the_next_character() -> None:
    text = data.load("shakespeare", block=32)
    batches = list(text.batches(100, seed=3, epoch=1))
    assert len(batches) == text.steps(100)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert x.shape == y.shape == (len(text.train) // 32 - 1, 32)
    assert torch.equal(x[:, 1:], y[:, :-1])
    start = text.train.unfold(0, 33, 1)  # every window there is
    assert (start[:, :32] == x[0]).all(1).any()
    assert sum(len(y) for _, y in text.held_out()) == (len(text.test) - 1) // 32


def test_batches_hang_on_seed_and_epoch_alone() -> None:
    digits = data.load("digits")

    def order(seed: int, epoch: int) -> torch.Tensor:
        torch.rand(3)  # the global stream has no say
        return torch.cat([y for _, y in digits.batches(32, seed, epoch)])

    assert torch.equal(order(0, 4), order(0, 4))
    assert not torch.equal(order(0, 4), order(0, 5))
    assert not torch.equal(order(0, 4), order(1, 4))
    assert torch.equal(order(0, 4).sort().values, digits.y.sort().values)  # every example once
    assert digits.steps(32) == 45 == len(list(digits.batches(32, 0, 0)))
    assert sum(len(y) for _, y in digits.held_out()) == 360


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(WinnowError, match="digits, mnist, fashion, cifar10, shakespeare"):
        data.load("cifar")


@pytest.mark.parametrize("name", ["mnist", "fashion"])
@pytest.mark.usefixtures("nowhere")
def test_images_nowhere_says_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    said: list[str] = []
    with pytest.raises(WinnowError) as caught:
        data.load(name, say=said.append)
    for word in (
        "WINNOW_DATA",
        f"{files.FOLDERS[name]}/train-images-idx3-ubyte.gz",
        "scikit-learn",
        "OpenML",
    ):
        assert word in str(caught.value)
    assert str(files.cache_folder()) in str(caught.value)
    assert "no route to host" in str(caught.value)
    assert "fetching" in said[0]
    assert not files.cache_folder().exists()


@pytest.mark.usefixtures("nowhere")
def test_images_are_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(data, "TRAIN", 60)

    def online(name: str, **_kwargs: object) -> tuple[np.ndarray, np.ndarray]:
        calls.append(name)
        x = np.zeros((70, 784), np.uint8)
        x[:, 0] = 255
        return x, (np.arange(70) % 10).astype(str).astype(object)

    monkeypatch.setattr("sklearn.datasets.fetch_openml", online)
    first, second = data.load("fashion"), data.load("fashion")
    assert calls == ["Fashion-MNIST"]
    assert first.source == "OpenML"
    assert torch.equal(first.test_y, second.test_y)
    assert first.test_y.tolist()[:3] == [0, 1, 2]
    assert [path.name for path in files.cache_folder().iterdir()] == ["fashion.npz"]
    (files.cache_folder() / "fashion.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(WinnowError, match=r"fashion\.npz: damaged .* delete it"):
        data.load("fashion")


@pytest.mark.usefixtures("nowhere")
def test_shakespeare_nowhere_says_where_to_put_it() -> None:
    with pytest.raises(WinnowError) as caught:
        data.load("shakespeare")
    assert "WINNOW_DATA" in str(caught.value)
    assert str(files.cache_folder() / "tinyshakespeare" / "input.txt") in str(caught.value)


@pytest.mark.usefixtures("nowhere")
def test_shakespeare_is_found_in_the_cache() -> None:
    path = files.cache_folder() / "tinyshakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text("to be or not to be\n" * 300, encoding="utf-8")
    text = data.load("shakespeare", block=16)
    assert text.source == "cache"
    assert text.alphabet == "\n benort"
    path.write_text("too short", encoding="utf-8")
    with pytest.raises(WinnowError, match=r"input\.txt: 9 characters are too few"):
        data.load("shakespeare", block=16)
    path.write_bytes(b"\xff\xfe" * 5000)
    with pytest.raises(WinnowError, match=r"input\.txt: not readable as UTF-8"):
        data.load("shakespeare", block=16)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged or cut short"),
        (lambda _raw: b"", "not an idx file"),
        (lambda _raw: b"not gzip at all", "damaged or cut short"),
        (lambda raw: raw[:-9] + b"X" + raw[-8:], "damaged or cut short"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "its header promises"),
        (lambda _raw: gzip.compress(b"\0\0\x08\x03\0\0"), "its header promises"),
        (lambda _raw: gzip.compress(b"\x89PNG and so on"), "not an idx file"),
    ],
)
def test_a_bad_file_is_named(spoil: object, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    array = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    path.write_bytes(idx(array))
    assert np.array_equal(files.read_idx(path), array)
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(WinnowError, match=complaint) as caught:
        files.read_idx(path)
    assert str(path) in str(caught.value)


def test_a_folder_with_a_file_missing_is_not_passed_over(nowhere: Path) -> None:
    folder = nowhere / "mnist"
    folder.mkdir(parents=True)
    with pytest.raises(WinnowError, match=r"train-images-idx3-ubyte\.gz: no such file"):
        data.load("mnist")


def test_images_and_labels_must_match(nowhere: Path) -> None:
    folder = nowhere / "mnist"
    folder.mkdir(parents=True)
    for part, labels in (("train", 3), ("t10k", 5)):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(np.eye(28)[None].repeat(5, 0)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(labels)))
    with pytest.raises(WinnowError, match="5 images and 3 labels"):
        data.load("mnist")
