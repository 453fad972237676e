"""Is a rung of the path as good as a training for its density alone?  The same task, seeds and epochs for both.

    python bench/path.py mnist --seeds 3 --out records/path-mnist.json

What is finished is kept beside the record until it is complete, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from winnow.jobs import train, walk
from winnow.jobs.options import Options
from winnow.jobs.report import environment, write_json
from winnow.ladder import COST

Row = dict[str, Any]


def walked(options: Options, densities: tuple[float, ...], folder: Path) -> Row:
    """Score of every rung, by density, and what they cost together."""
    record = walk.walk(options, densities, folder)
    points = record["points"]
    return {
        "scores": {f"{p['asked']:g}": p["score"] for p in points},
        "cost": points[-1]["steps"] / points[0]["steps"],
    }


def alone(options: Options, density: float, folder: Path) -> Row:
    """Score of a training for this density."""
    record = train.job(options, folder).record
    found = record["sparse"]
    return {"score": -found["loss"] if record["by_loss"] else 100 * found["accuracy"], "density": found["density"]}


def kept(file: Path, make: Callable[[], Row]) -> Row:
    """What the file holds, made first where it is missing."""
    if not file.exists():
        write_json(file, make())
    return dict(json.loads(file.read_text(encoding="utf-8")))


def table(record: Row) -> str:
    """Both, with their spread over seeds; whether the path is within one standard deviation."""
    lines = []
    for density in record["densities"][1:]:
        ours = [row["scores"][density] for row in record["paths"]]
        single = [row["score"] for row in record["alone"][density]]
        spread = max(stdev(ours), stdev(single)) if len(ours) > 1 else float("nan")
        said = "within" if mean(ours) >= mean(single) - spread else "behind"
        lines.append(f"{density:>6}  path {mean(ours):.4f}  alone {mean(single):.4f}  spread {spread:.4f}  {said}")
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("task")
    asked.add_argument("--densities", default="1,0.5,0.2,0.1,0.05,0.02,0.01,0.005")
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--epochs", type=int, default=None)
    asked.add_argument("--width", type=int, default=None)
    asked.add_argument("--weight-decay", type=float, default=0.0)
    asked.add_argument("--cost", type=float, default=COST)
    asked.add_argument("--out", type=Path, required=True)
    given = asked.parse_args()
    torch.set_num_threads(1)
    densities, half = walk.densities_of(given.densities, None), given.out.with_suffix(".parts")
    half.mkdir(parents=True, exist_ok=True)
    words = f"python bench/path.py {given.task} --densities {given.densities} --seeds {given.seeds} --cost {given.cost:g}"
    words += f" --epochs {given.epochs}" * (given.epochs is not None)
    words += f" --width {given.width}" * (given.width is not None)
    words += f" --weight-decay {given.weight_decay:g}" * (given.weight_decay > 0)
    if kept(half / "asked.json", lambda: {"command": words})["command"] != words:
        raise SystemExit(f"{half} holds parts of another run: remove it, or choose another --out")
    paths: list[Row] = []
    single: dict[str, list[Row]] = {f"{d:g}": [] for d in densities[1:]}
    for seed in range(given.seeds):
        same: Any = {"data": given.task, "seed": seed, "epochs": given.epochs, "width": given.width, "threads": 1}
        same["weight_decay"] = given.weight_decay
        place = half / f"path-{seed}"
        options = Options(**same, keep=1.0)
        paths.append(kept(half / f"path-{seed}.json", lambda o=options, p=place: walked(o, densities, p)))  # type: ignore[misc]
        for d in densities[1:]:
            one, name = Options(**same, keep=d, dense=False), f"alone-{d:g}-{seed}"
            shutil.rmtree(half / name, ignore_errors=True)
            single[f"{d:g}"].append(kept(half / f"{name}.json", lambda o=one, d=d, p=half / name: alone(o, d, p)))  # type: ignore[misc]
        print(f"seed {seed} done", flush=True)
    record = {"command": words, "environment": environment(), "densities": [f"{d:g}" for d in densities], "paths": paths}
    record["alone"] = single
    write_json(given.out, record)
    print(table(record))
    shutil.rmtree(half)


if __name__ == "__main__":
    main()
