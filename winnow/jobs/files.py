"""FILES: where data sets lie on this machine, and how their bytes become arrays."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from winnow.errors import WinnowError

FOLDERS = {"mnist": "mnist", "fashion": "fashion-mnist", "shakespeare": "tinyshakespeare", "cifar10": "cifar10"}
OPENML = {"mnist": "mnist_784", "fashion": "Fashion-MNIST"}
EXTRA = 'pip install "torch-winnow[cli]"'
Say = Callable[[str], None]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/winnow, or ~/.cache/winnow; not created here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "winnow"


def given_folder(name: str) -> Path | None:
    """The set's folder below $WINNOW_DATA, if there is one."""
    root = os.environ.get("WINNOW_DATA")
    folder = Path(root) / FOLDERS[name] if root else None
    return folder if folder is not None and folder.is_dir() else None


def read_idx(path: Path) -> np.ndarray:
    """A gzipped idx file of bytes (LeCun's format): uint8 array in the shape its header gives.

    Raises:
        WinnowError: missing, not gzip, cut short, or not idx; names the file.
    """
    again = "fetch it again (checksums: the data README)"
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise WinnowError(f"{path}: no such file, though its folder is there: {again}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise WinnowError(f"{path}: damaged or cut short ({error}): {again}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise WinnowError(f"{path}: not an idx file of bytes: {again}")
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start]) if len(raw) >= start else (-1,)
    if len(raw) - start != math.prod(shape):
        raise WinnowError(
            f"{path}: damaged or cut short: its header promises {shape}, it holds {len(raw)} bytes: {again}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def cached(name: str, say: Say) -> tuple[np.ndarray, np.ndarray]:
    """All 70,000 images and labels in the publisher's order, downloaded once."""
    path = cache_folder() / f"{name}.npz"
    if not path.exists():
        _fetch(name, path, say)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["x"], stored["y"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise WinnowError(f"{path}: damaged ({error}): delete it, and it will be fetched again") from error


def _fetch(name: str, path: Path, say: Say) -> None:
    both = (
        f"set WINNOW_DATA to a folder that holds {FOLDERS[name]}/train-images-idx3-ubyte.gz and its three "
        f"sister files, or run once with a network, so that scikit-learn ({EXTRA}) can fetch "
        f"{OPENML[name]!r} from OpenML into {path}"
    )
    say(f"fetching {OPENML[name]} from OpenML, once, into {path.parent}")
    try:
        from sklearn.datasets import fetch_openml

        x, y = fetch_openml(OPENML[name], version=1, return_X_y=True, as_frame=False, parser="liac-arff", cache=False)
    except Exception as error:  # whatever a network, a proxy or a parser may raise: the way out is the same
        raise WinnowError(f"no data for {name!r}: {both} (fetching failed: {error})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    with half.open("wb") as file:
        np.savez_compressed(file, x=x.astype(np.uint8), y=y.astype(np.uint8))
    os.replace(half, path)
