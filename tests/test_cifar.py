"""CIFAR-10: the right images, moved as they should be, and every damage named."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from winnow import WinnowError
from winnow.jobs import cifar, data, files, models

PIL = pytest.importorskip("PIL.Image", reason="Pillow reads JPEG files")
needs_data = pytest.mark.skipif(not os.environ.get("WINNOW_DATA"), reason="WINNOW_DATA is not set: no real data at hand")
SMALL = {"train": 40, "test": 20}


def packed(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """A file in the right form, of random small images: part name and kind to array."""
    dice, arrays = np.random.default_rng(0), {}
    for part, count in SMALL.items():
        raw = []
        for _ in range(count):
            into = io.BytesIO()
            PIL.fromarray(dice.integers(0, 255, (32, 32, 3), np.uint8)).save(into, "JPEG")
            raw.append(into.getvalue())
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(raw), np.uint8)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, raw)])
        arrays[f"{part}_labels"] = np.arange(count) % 10
    return arrays | changes


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file would be, below an empty $WINNOW_DATA, expected to hold a few images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path / "given"))
    monkeypatch.setattr(cifar, "SIZES", SMALL)
    (tmp_path / "given" / "cifar10").mkdir(parents=True)
    return tmp_path / "given" / "cifar10" / cifar.FILE


@needs_data
def test_they_are_the_published_ones() -> None:
    """Means as published for the original; the digest where the decoder is the one that the data's README names."""
    images = data.load("cifar10")
    assert isinstance(images, cifar.Images)
    assert images.x.shape == (50_000, 32, 32, 3)
    assert images.test_x.shape == (10_000, 32, 32, 3)
    assert images.y.bincount().tolist() == [5000] * 10
    assert images.test_y.bincount().tolist() == [1000] * 10
    assert images.y[:5].tolist() == [6, 9, 9, 4, 1], "the official order"
    assert (images.mean / 255 - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 5e-3
    assert (images.std / 255 - torch.tensor([0.2470, 0.2435, 0.2616])).abs().max() < 1e-2
    published = "b7018a062865e9348a704e72416eb53c816b43cc8ac42ab43276a2b967508ab6"
    if hashlib.sha256(images.test_x.numpy().tobytes()).hexdigest() != published:
        x, y = next(iter(images.held_out()))  # another decoder: some grey levels apart
        assert torch.isfinite(x).all()
        assert len(y) == cifar.EVALUATE


def test_batches(place: Path) -> None:
    np.savez(place, **packed())
    images = data.load("cifar10")
    assert images.steps(16) == 3
    batches = list(images.batches(16, seed=1, epoch=2))
    assert [len(y) for _, y in batches] == [16, 16, 8]
    x = batches[0][0]
    assert x.shape == (16, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([y for _, y in batches]).sort().values.equal(images.y.sort().values)
    again = next(images.batches(16, seed=1, epoch=2))
    assert torch.equal(again[0], x)
    assert not torch.equal(next(images.batches(16, seed=1, epoch=3))[0], x)
    assert not torch.equal(next(images.batches(16, seed=2, epoch=2))[0], x)
    held = torch.cat([x for x, _ in images.held_out()])
    assert torch.allclose(held.permute(0, 2, 3, 1) * images.std + images.mean, images.test_x.float(), atol=1e-3)
    sample = images.sample()[0].permute(0, 2, 3, 1) * images.std + images.mean
    assert torch.allclose(sample, images.x.float(), atol=1e-3), "the sample is not moved"
    said = {"name": "cifar10", "source": "WINNOW_DATA, JPEG quality 75", "train": 40, "test": 20, "classes": 10}
    assert images.describe() == said


def test_moving_is_a_shift_of_the_reflected_image_and_half_are_mirrored() -> None:
    x = torch.randint(0, 255, (400, 32, 32, 3), dtype=torch.uint8)
    out = cifar.moved(x, torch.arange(400), torch.Generator().manual_seed(0))
    wide = np.pad(x.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    seen, mirrored = set(), 0
    for before, after in zip(wide, out.numpy(), strict=True):
        found = [
            (row, column, flip)
            for row in range(9)
            for column in range(9)
            for flip in (False, True)
            if np.array_equal(before[row : row + 32, column : column + 32][:, :: -1 if flip else 1], after)
        ]
        assert len(found) == 1
        seen.add(found[0][:2])
        mirrored += found[0][2]
    assert len(seen) > 70, "of the 81 shifts"
    assert 150 < mirrored < 250  # five standard deviations


HARM = {
    "not a zip": (lambda path: path.write_bytes(b"nothing"), "damaged"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
    "a key missing": (lambda path: np.savez(path, **{k: v for k, v in packed().items() if k != "test_labels"}), "damaged"),
    "images missing": (lambda path: np.savez(path, **packed(train_labels=np.arange(39) % 10)), "40 train images"),
    "eleven classes": (lambda path: np.savez(path, **packed(train_labels=np.arange(40) % 11)), "labels"),
    "no images": (lambda path: np.savez(path, **packed(train_jpeg=np.zeros(99_999, np.uint8))), "damaged"),
    "pickled": (lambda path: np.savez(path, **packed(train_labels=np.array([object()] * 40))), "damaged"),
}


@pytest.mark.parametrize("harm", HARM)
def test_damaged_files_are_named(harm: str, place: Path) -> None:
    np.savez(place, **packed())
    spoil, complaint = HARM[harm]
    spoil(place)
    with pytest.raises(WinnowError, match=complaint) as caught:
        data.load("cifar10")
    assert str(place) in str(caught.value)


def test_nowhere_says_where_to_put_it(place: Path) -> None:
    with pytest.raises(WinnowError) as caught:
        data.load("cifar10")
    assert f"cifar10/{cifar.FILE}" in str(caught.value)
    assert str(files.cache_folder() / "cifar10") in str(caught.value)


def test_the_cache_is_looked_at_too(place: Path) -> None:
    other = files.cache_folder() / "cifar10" / cifar.FILE
    other.parent.mkdir(parents=True)
    np.savez(other, **packed())
    assert data.load("cifar10").source.startswith("cache")


def test_resnet9() -> None:
    model = models.ResNet9()
    assert isinstance(model, models.ResNet9)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == 927_010
