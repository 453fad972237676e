"""REPORT: one table to read, one folder to keep. The benchmarks write their records with it too."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import winnow
from winnow.errors import WinnowError

from . import shrink
from .options import COUNTS

MISS = (
    0.01  # how far, absolute, the density obtained may lie from the one asked for; one group's share where that is more
)


def environment() -> dict[str, Any]:
    """What a number depends on besides its command: versions, hardware, commit. No paths, no host names."""
    versions = {"python": platform.python_version(), "winnow": version("torch-winnow", winnow)}
    versions |= {"torch": version("torch", torch), "numpy": version("numpy")}
    return {
        "versions": versions,
        "commit": commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def version(distribution: str, module: Any = None) -> str:
    """The installed distribution's version; where it is not installed, what its module says."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(module, "__version__", "not installed"))


def commit() -> str | None:
    """The git commit of Winnow's own checkout, ending in "+changes" where tracked files differ; or None."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None  # installed, perhaps inside somebody else's repository
    head = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changed else head


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses as dicts, tensors as numbers, NaN and infinity as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # a tensor, an array or one of its numbers
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def new_folder(out: Path | None, name: str) -> Path:
    """`out`, or else the first free of runs/`name`-1, -2, ...; created.

    Raises:
        WinnowError: `out` holds a run already, or cannot be a folder.
    """
    try:
        if out is not None:
            if (out / "run.json").exists():
                raise WinnowError(f"{out} holds a run already: choose another --out, or remove it")
            out.mkdir(parents=True, exist_ok=True)
            return out
        for number in range(1, 1_000_000):
            folder = Path("runs") / f"{name}-{number}"
            if not folder.exists():
                folder.mkdir(parents=True)
                return folder
    except OSError as error:
        raise WinnowError(f"cannot make the run folder ({error}): choose another --out") from error
    raise WinnowError(f"runs/ holds a million runs called {name}: choose --out")


def write_json(path: Path, record: Any) -> None:
    """`record`, made plain, as indented JSON; the file is whole or absent."""
    _write(path, json.dumps(plain(record), indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> None:
    """`rows` under a header of `columns`; a missing value is an empty cell."""
    half = path.with_name(path.name + ".part")
    with half.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
    os.replace(half, path)


def write_model(path: Path, model: nn.Module) -> None:
    """The model's tensors as safetensors, tied ones once; `safetensors.torch.load_model` reads them back."""
    try:
        from safetensors.torch import save_model
    except ImportError as error:
        raise WinnowError('saving needs safetensors: pip install "torch-winnow[cli]"') from error
    half = path.with_name(path.name + ".part")
    half.touch()
    mode = half.stat().st_mode
    save_model(model, str(half))
    half.chmod(mode)  # safetensors makes files that only their owner can read
    os.replace(half, path)


def table(record: dict[str, Any]) -> Any:
    """The main job's table, a `rich.table.Table`, from the record alone: a stored run.json gives it again."""
    from rich.table import Table
    from rich.text import Text

    options, dense, sparse = record["options"], record.get("dense"), record.get("sparse")
    faster = f", rate × {record['rate_factor']:g}" if record.get("rate_factor", 1.0) != 1.0 else ""
    how = f"auto: {record['route']}{faster}" if options["how"] == "auto" else options["how"]
    words = [options["data"], how, options["where"], f"seed {options['seed']}"]
    shown = Table(title=" · ".join(words) + f" · {record['steps']} steps", title_justify="left")
    shown.add_column("")
    for name, side in (("dense", dense), ("sparse", sparse)):
        if side:
            shown.add_column(name, justify="right")
    sides = [side for side in (dense, sparse) if side]
    smaller = record.get("smaller")
    by_loss = record.get("by_loss", record["data"]["name"] == "shakespeare")
    for label, cell in _quantities(by_loss, zeros=not smaller):
        shown.add_row(label, *(cell(side) for side in sides))
    if sparse:
        for label, value in [*_sparse_rows(record), *(shrink.rows(smaller) if smaller else [])]:
            shown.add_row(label, *([""] if dense else []), value)
        solved = sparse["certificate"]["words"] if sparse["certificate"] else "none, interrupted"
        shown.caption, shown.caption_justify = Text(f"certificate: {solved}", style="default"), "left"
    return shown


def _quantities(by_loss: bool, zeros: bool) -> list[tuple[str, Any]]:
    """Label and cell of each line about both sides; `zeros`: of how many parameters are nonzero, too, which would mislead
    beside a smaller model, as weights that read from dead units still count there."""
    judged = (
        [("validation loss (nats/character)", lambda side: f"{side['loss']:.4f}")]
        if by_loss
        else [
            ("test accuracy", lambda side: f"{100 * side['accuracy']:.2f} %"),
            ("test error", lambda side: f"{100 * side['error']:.2f} %"),
        ]
    )
    counted = [("parameters, nonzero / all", lambda side: f"{side['nonzero']:,} / {side['parameters']:,}")]
    return [*judged, *(counted if zeros else []), ("seconds", lambda side: f"{side['seconds']:.1f}")]


def _sparse_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    sparse, options = record["sparse"], record["options"]
    word = next((word for word in COUNTS if options.get(word) is not None), "keep")
    asked, what = options.get(word), COUNTS[word][0]
    of = f", of {sparse['penalised']:,}" if word == "keep" else ""
    rows = [
        (f"{what} asked", f"strength {options['strength']:g}" if asked is None else f"{asked:.4f}"),
        (f"{what} obtained{of}", f"{sparse['density']:.4f}"),
    ]
    if sparse["missed"]:
        rows.append(("[red]missed[/red]", f"[red]by {abs(sparse['density'] - asked):.4f}, over {MISS}[/red]"))
        rows.append(("one group's share", f"{sparse['grain']:.4f}"))
    for layer in sparse["layers"]:
        rows.append((f"groups alive, {layer['name']}", f"{layer['alive']:,} / {layer['groups']:,}"))
    return rows


def _write(path: Path, text: str) -> None:
    half = path.with_name(path.name + ".part")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
