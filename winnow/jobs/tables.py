"""TABLES: feature vectors, tables and sentences below WINNOW_DATA, made into `Examples`."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from winnow.errors import WinnowError

from .data import Examples

HIGHDIM = {"isolet": "Isolet", "coil20": "COIL20", "madelon": "madelon"}
WORDS = 32  # of a sentence; longer ones are cut, shorter ones filled with code 0
RARE = 2  # a word that the train part has less often has no code of its own


def below(path: str) -> Path:
    """A file below the folder that WINNOW_DATA names; raises `WinnowError` where it is not."""
    root = os.environ.get("WINNOW_DATA")
    found = Path(root) / path if root else None
    if found is None or not found.exists():
        raise WinnowError(f"no data: put {path} below a folder, and let WINNOW_DATA name that folder")
    return found


def lines_of(path: str) -> list[str]:
    """A gzipped text's lines; raises `WinnowError` where it is missing or damaged."""
    found = below(path)
    try:
        return gzip.decompress(found.read_bytes()).decode("latin-1").splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise WinnowError(f"{found}: damaged or cut short ({error}): fetch it again") from error


def features(name: str, seed: int = 0) -> Examples:
    """isolet, coil20 (pooled to 20×20 pixels) or madelon: a fifth drawn by `seed` for testing, standardised by the rest."""
    path = below(f"highdim/{HIGHDIM[name]}.npz")
    try:
        with np.load(path, allow_pickle=False) as stored:
            x, y = stored["X"].astype(np.float32), stored["y"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise WinnowError(f"{path}: damaged ({error}): fetch it again") from error
    if name == "coil20":
        pixels = torch.from_numpy(x).view(-1, 1, 32, 32)
        x = torch.nn.functional.adaptive_avg_pool2d(pixels, 20).flatten(1).numpy()
    _, codes = np.unique(y, return_inverse=True)
    return _split(name, torch.from_numpy(x), torch.from_numpy(codes.astype(np.int64)), seed)


def white_wine() -> tuple[Tensor, Tensor]:
    """White wine: x (4898, 11) float32, its quality y (4898,), as the file has them."""
    text = "\n".join(lines_of("tabular/winequality-white.csv.gz"))
    rows = torch.from_numpy(np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32))
    return rows[:, :-1], rows[:, -1]


def wine() -> Examples:
    """White wine, its seven grades as classes."""
    x, quality = white_wine()
    return _split("wine", x, (quality - quality.min()).long(), seed=0)


def adult() -> Examples:
    """Adult: whether an income exceeds 50,000; numbers standardised, words one-hot, in the official two parts."""
    parts = [[row for row in _rows(f"tabular/adult-{part}.csv.gz") if len(row) == 15] for part in ("train", "test")]
    columns = list(zip(*parts[0], strict=True))
    numeric = [all(value.lstrip("-").isdigit() for value in column) for column in columns[:-1]]
    words = [{} if n else {w: i for i, w in enumerate(sorted(set(c)))} for n, c in zip(numeric, columns, strict=False)]
    tables = [torch.tensor([_encoded(row, words) for row in part]) for part in parts]
    y = [torch.tensor([int(row[-1].strip(".") == ">50K") for row in part]) for part in parts]
    std, mean = torch.std_mean(tables[0], 0, correction=0)
    number = torch.tensor([not known for known in words for _ in known or [0]])
    x, test_x = (torch.where(number, (table - mean) / std.clamp_min(1e-6), table) for table in tables)
    return Examples("adult", "WINNOW_DATA", x, y[0], test_x, y[1], classes=2)


def _rows(path: str) -> list[list[str]]:
    return [[value.strip() for value in row] for row in csv.reader(lines_of(path))]


def _encoded(row: Sequence[str], words: Sequence[dict[str, int]]) -> list[float]:
    """Numbers as they are; a word as a one among zeros, all zeros if the train part has never seen it."""
    out: list[float] = []
    for value, known in zip(row[:-1], words, strict=True):
        out += [float(known.get(value, -1) == i) for i in range(len(known))] if known else [float(value)]
    return out


def sentiment() -> Examples:
    """SST-2: whether a sentence of a film review is kind; `x` (n, 32) are codes of words, 0 where there is none."""
    parts = [[line.partition(" ") for line in lines_of(f"text/stsa.binary.{part}.gz")] for part in ("train", "test")]
    seen = Counter(word for _, _, sentence in parts[0] for word in sentence.split())
    known = {word: i for i, word in enumerate((w for w, n in sorted(seen.items()) if n >= RARE), 2)}
    x = [torch.tensor([_codes(sentence, known) for _, _, sentence in part]) for part in parts]
    y = [torch.tensor([int(grade) for grade, _, _ in part]) for part in parts]
    return Examples("sentiment", "WINNOW_DATA", x[0], y[0], x[1], y[1], classes=2)


def _codes(sentence: str, known: dict[str, int]) -> list[int]:
    codes = [known.get(word, 1) for word in sentence.split()[:WORDS]]
    return codes + [0] * (WORDS - len(codes))


def _split(name: str, x: Tensor, y: Tensor, seed: int) -> Examples:
    """A fifth for testing; standardised by the rest."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    std, mean = torch.std_mean(x[train], 0, correction=0)
    x = (x - mean) / (std + 1e-6)
    return Examples(name, "WINNOW_DATA", x[train], y[train], x[test], y[test], classes=int(y.max()) + 1)
