"""CIFAR-10 for the main job: colour images, shifted and mirrored anew in every epoch."""

from __future__ import annotations

import io
import itertools
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from winnow.errors import WinnowError

from .files import EXTRA, cache_folder, given_folder
from .fold import fold

FILE = "cifar10_jpeg_q75.npz"
SHIFT = 4  # pixels, each way (He et al. 2016, section 4.2)
SAMPLE, EVALUATE = 1024, 500
SIZES = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True)
class Images:
    """Colour images, uint8 (n, 32, 32, 3), and their classes; batches are float (n, 3, 32, 32), standardised per channel."""

    name: str
    source: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    mean: Tensor
    std: Tensor
    classes: int = 10

    def steps(self, batch: int) -> int:
        """Minibatches in one epoch; the last may be smaller."""
        return math.ceil(len(self.x) / batch)

    def batches(self, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch, order, shifts and mirrorings fixed by `seed` and `epoch` alone."""
        dice = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        for chosen in torch.split(torch.randperm(len(self.x), generator=dice), batch):
            yield self._ready(moved(self.x, chosen, dice)), self.y[chosen]

    def sample(self) -> tuple[Tensor, Tensor]:
        """What a certificate's gradients are taken on: images spread over the train part, as they are."""
        spread = torch.linspace(0, len(self.x) - 1, min(SAMPLE, len(self.x))).long()
        return self._ready(self.x[spread]), self.y[spread]

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part, in order."""
        for x, y in zip(torch.split(self.test_x, EVALUATE), torch.split(self.test_y, EVALUATE), strict=True):
            yield self._ready(x), y

    def fold(self, seed: int) -> Images:
        """To tune on: a part of the train part, by `seed`, in the test part's place."""
        return fold(self, seed)  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """What a run's record says of its data."""
        sizes = {"train": len(self.x), "test": len(self.test_x)}
        return {"name": self.name, "source": self.source, **sizes, "classes": self.classes}

    def _ready(self, x: Tensor) -> Tensor:
        return ((x.float() - self.mean) / self.std).permute(
            0, 3, 1, 2
        )  # channels last in memory, as convolutions like it


def moved(x: Tensor, chosen: Tensor, dice: torch.Generator) -> Tensor:
    """The chosen images, each shifted by up to `SHIFT` pixels (reflected at the border) and mirrored with probability 1/2."""
    n, side = len(chosen), x.shape[1]
    shifts = torch.randint(-SHIFT, SHIFT + 1, (2, n, 1), generator=dice)
    rows, columns = ((torch.arange(side) + shift).abs() for shift in shifts)
    rows, columns = (torch.where(i >= side, 2 * (side - 1) - i, i) for i in (rows, columns))
    mirrored = torch.rand(n, 1, generator=dice) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return x[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def load_cifar10() -> Images:
    """The JPEG-recompressed copy of CIFAR-10, complete and in the official order; accuracies are not those of the original.

    Raises `WinnowError`: found nowhere (says where to put it); damaged; Pillow missing.
    """
    given = given_folder("cifar10")
    places = [folder / FILE for folder in (given, cache_folder() / "cifar10") if folder]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise WinnowError(
            f"no data for 'cifar10': put {FILE} at cifar10/{FILE} below the folder that WINNOW_DATA names, or at "
            f"{places[-1]}: an npz of train_jpeg and test_jpeg (the files' bytes, one after the other), *_offsets, *_labels"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            (x, y), (test_x, test_y) = (_part(stored, part) for part in SIZES)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise WinnowError(f"{path}: damaged ({error}): fetch it again") from error
    pixels = x[::10].float().reshape(-1, 3)
    source = "WINNOW_DATA" if given and path == places[0] else "cache"
    std, mean = torch.std_mean(pixels, 0)
    return Images("cifar10", f"{source}, JPEG quality 75", x, y, test_x, test_y, mean, std)


def _part(stored: Any, part: str) -> tuple[Tensor, Tensor]:
    try:
        from PIL import Image
    except ImportError as error:
        raise WinnowError(
            f"CIFAR-10 is kept as JPEG files, which Pillow reads, and that is not installed: {EXTRA}"
        ) from error
    raw, ends = stored[f"{part}_jpeg"].tobytes(), stored[f"{part}_offsets"]
    images = [np.asarray(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in itertools.pairwise(ends)]
    x, y = np.stack(images), torch.from_numpy(stored[f"{part}_labels"].astype(np.int64))
    if x.shape != (SIZES[part], 32, 32, 3) or len(y) != len(x) or int(y.max()) > 9:
        raise ValueError(f"{len(x)} {part} images of {x.shape[1:]} and {len(y)} labels")
    return torch.from_numpy(x), y
