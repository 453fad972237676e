"""DATA: the five sets of the main job, whole in memory, cut into the same minibatches on every machine.

| name | set | found in |
|---|---|---|
| digits | 1,797 images of 8x8 | scikit-learn carries it |
| mnist, fashion | 70,000 images of 28x28 | $WINNOW_DATA, the cache, or OpenML once |
| cifar10 | 60,000 colour images of 32x32 | $WINNOW_DATA or the cache (`cifar.py`) |
| shakespeare | 1.1 MB of text | $WINNOW_DATA or the cache |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from winnow.errors import WinnowError

from .cifar import Images, load_cifar10
from .files import EXTRA, FOLDERS, Say, cache_folder, cached, given_folder, read_idx
from .fold import PARTS, fold

NAMES = ("digits", "mnist", "fashion", "cifar10", "shakespeare")
TRAIN = 60_000  # OpenML holds the train part of both image sets first, then the test part
EVALUATE = 2048  # examples (or tokens times 8) in one forward pass without gradients


@dataclass(frozen=True)
class Examples:
    """Labelled examples: `x` (n, …) float, what the model is called with, standardised by the train part; `y` (n,) int64 in
    [0, classes); the same of the test part.  `name` and `source` are words for the record."""

    name: str
    source: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    def __post_init__(self) -> None:
        """Raises `WinnowError` for parts that do not fit together."""
        for part, x, y in (("training", self.x, self.y), ("test", self.test_x, self.test_y)):
            if y.dtype != torch.int64 or y.dim() != 1:
                raise WinnowError(
                    f"{self.name}: labels of the {part} part must be (n,) int64, got {tuple(y.shape)} {y.dtype}; the command "
                    "line trains classifiers. For anything else, as a regression, attach Winnow to a loop of your own"
                )
            if x.dtype == torch.float64:
                raise WinnowError(
                    f"{self.name}: x of the {part} part is float64 and models are float32; give x.float()"
                )
            if len(x) != len(y) or not len(x):
                raise WinnowError(f"{self.name}: the {part} part has {len(x)} examples and {len(y)} labels")
            if int(y.min()) < 0 or int(y.max()) >= self.classes:
                raise WinnowError(
                    f"{self.name}: labels of the {part} part go from {int(y.min())} to {int(y.max())}; they must lie in "
                    f"[0, classes), and classes = {self.classes}"
                )

    def steps(self, batch: int) -> int:
        """Minibatches in one epoch; the last may be smaller."""
        return math.ceil(len(self.x) / batch)

    def batches(self, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in an order fixed by `seed` and `epoch` alone."""
        order = torch.randperm(len(self.x), generator=_generator(seed, epoch))
        for chosen in torch.split(order, batch):
            yield self.x[chosen], self.y[chosen]

    def sample(self) -> tuple[Tensor, Tensor]:
        """What a certificate's gradients are taken on: the whole train part."""
        return self.x, self.y

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part, in order."""
        yield from zip(torch.split(self.test_x, EVALUATE), torch.split(self.test_y, EVALUATE), strict=True)

    def fold(self, seed: int) -> Examples:
        """To tune on: a part of the train part, by `seed`, in the test part's place."""
        return fold(self, seed)  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """What a run's record says of its data."""
        sizes = {"train": len(self.x), "test": len(self.test_x)}
        return {"name": self.name, "source": self.source, **sizes, "classes": self.classes}


@dataclass(frozen=True)
class Text:
    """Characters as codes: `train`, `test` (n,) int64 in [0, classes); an example is a window of `block`."""

    name: str
    source: str
    train: Tensor
    test: Tensor
    alphabet: str
    block: int

    @property
    def classes(self) -> int:
        return len(self.alphabet)

    def steps(self, batch: int) -> int:
        """Minibatches in one epoch; the last may be smaller."""
        return math.ceil((len(self.train) // self.block - 1) / batch)

    def batches(self, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every character about once: cut into windows from a random offset, the windows shuffled."""
        dice = _generator(seed, epoch)
        offset = int(torch.randint(self.block, (), generator=dice))
        x, y = self._windows(self.train[offset:], len(self.train) // self.block - 1)
        for chosen in torch.split(torch.randperm(len(x), generator=dice), batch):
            yield x[chosen], y[chosen]

    def sample(self) -> tuple[Tensor, Tensor]:
        """What a certificate's gradients are taken on: 64 windows spread over the train part."""
        x, y = self._windows(self.train, len(self.train) // self.block - 1)
        spread = torch.linspace(0, len(x) - 1, min(64, len(x))).long()
        return x[spread], y[spread]

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The last tenth of the text, in windows side by side."""
        x, y = self._windows(self.test, (len(self.test) - 1) // self.block)
        rows = max(1, 8 * EVALUATE // self.block)
        yield from zip(torch.split(x, rows), torch.split(y, rows), strict=True)

    def fold(self, seed: int) -> Text:
        """To tune on: the `seed`-th fifth of the train part from its end in the test part's place."""
        size = len(self.train) // PARTS
        end = len(self.train) - seed % PARTS * size
        rest = torch.cat([self.train[: end - size], self.train[end:]])
        return replace(self, train=rest, test=self.train[end - size : end])

    def describe(self) -> dict[str, Any]:
        """What a run's record says of its data."""
        sizes = {"train": len(self.train), "test": len(self.test)}
        return {
            "name": self.name,
            "source": self.source,
            **sizes,
            "classes": self.classes,
            "block": self.block,
        }

    def _windows(self, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        size = count * self.block
        return codes[:size].view(count, -1), codes[1 : size + 1].view(count, -1)


Data = Examples | Images | Text


def load(name: str, *, block: int = 128, say: Say = lambda _line: None) -> Data:
    """The data set `name`, from the first place that has it.

    Args:
        name: one of `NAMES`.
        block: window length, for text only.
        say: told one line before anything slow (a download) starts.

    Raises:
        WinnowError: unknown name; found nowhere (says every way to get it); a damaged file (names it).
    """
    if name not in NAMES:
        raise WinnowError(f"no data set {name!r}: choose from {', '.join(NAMES)}")
    if name == "digits":
        return _digits()
    if name == "cifar10":
        return load_cifar10()
    if name == "shakespeare":
        return _shakespeare(block)
    return _images(name, say)


def _digits() -> Examples:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise WinnowError(f"the digits data come with scikit-learn, which is not installed: {EXTRA}") from error
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return _examples("digits", "scikit-learn", *parts)


def _examples(name: str, source: str, x: Any, test_x: Any, y: Any, test_y: Any) -> Examples:
    x, test_x = (torch.from_numpy(part.reshape(len(part), -1).astype(np.float32)) for part in (x, test_x))
    y, test_y = (torch.from_numpy(part.astype(np.int64)) for part in (y, test_y))
    std, mean = torch.std_mean(x, correction=0)
    x, test_x = ((part - mean) / std for part in (x, test_x))
    return Examples(name, source, x, y, test_x, test_y, classes=10)


def _images(name: str, say: Say) -> Examples:
    folder = given_folder(name)
    if folder is not None:
        parts = [read_idx(folder / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k")]
        parts += [read_idx(folder / f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")]
        source = "WINNOW_DATA"
    else:
        source, x, y = "OpenML", *cached(name, say)
        parts = [x[:TRAIN], x[TRAIN:], y[:TRAIN], y[TRAIN:]]
    where = folder if folder is not None else cache_folder() / f"{name}.npz"
    for x, y in (parts[::2], parts[1::2]):
        if len(x) != len(y) or not len(x) or x[0].size != 784 or y.max() > 9:
            raise WinnowError(f"{where}: {len(x)} images and {len(y)} labels do not make a set of ten classes, 28x28")
    return _examples(name, source, *parts)


def _shakespeare(block: int) -> Text:
    given = given_folder("shakespeare")
    places = [folder / "input.txt" for folder in (given, cache_folder() / FOLDERS["shakespeare"]) if folder]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise WinnowError(
            "no data for 'shakespeare': put Tiny Shakespeare (karpathy/char-rnn's input.txt, 1.1 MB) "
            f"at tinyshakespeare/input.txt below the folder that WINNOW_DATA names, or at {places[-1]}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WinnowError(f"{path}: not readable as UTF-8 text ({error}): fetch it again") from error
    if len(text) < 20 * (block + 1):
        raise WinnowError(f"{path}: {len(text)} characters are too few for windows of {block}: fetch it again")
    alphabet = "".join(sorted(set(text)))
    code = {character: number for number, character in enumerate(alphabet)}
    codes, cut = torch.tensor([code[character] for character in text]), int(0.9 * len(text))
    return Text(
        "shakespeare",
        "WINNOW_DATA" if given and path == places[0] else "cache",
        codes[:cut],
        codes[cut:],
        alphabet,
        block,
    )


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A stream of its own for every (seed, epoch): an epoch's order does not hang on the ones before."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
