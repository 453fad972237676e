"""What a training step on a CPU gains where malloc keeps freed memory: processes by turns, with and without.

    python bench/memory.py --at-once 2 --out records/memory.json

LeNet-300-100, batch 128, SGD with momentum, one thread: every step frees and takes again a few megabytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import winnow
from winnow.jobs import process
from winnow.jobs.models import LeNet300100
from winnow.jobs.report import environment, write_json

ROUTES = {"dense": None, "gating, D = 3": winnow.Gating(depth=3), "masking": winnow.Masking(1.0)}
ROUTES["decay, LogSum"] = winnow.Decay(winnow.LogSum(2.0))


def steps(how: winnow.Route | None, repeats: int) -> list[float]:
    """Seconds of each step, after a few that do not count."""
    torch.manual_seed(0)
    model, x, y = LeNet300100(784, 10), torch.randn(128, 784), torch.randint(0, 10, (128,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    if how is not None:
        when = winnow.Toward(0.05, steps=100_000)
        winnow.attach(model, optimizer, how=how, where=winnow.Elements(), when=when, fused=False)
    seconds = []
    for _ in range(repeats + 10):
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[10:]


def child(kept: bool, repeats: int) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if kept and not process.keep_memory():
        sys.exit("malloc here cannot be told to keep memory: it is not glibc's")
    print(json.dumps({name: steps(how, repeats) for name, how in ROUTES.items()}))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--turns", type=int, default=6)
    asked.add_argument("--repeats", type=int, default=300)
    asked.add_argument("--at-once", type=int, default=2, help="Processes side by side, as those of --jobs.")
    asked.add_argument("--child", choices=("as it comes", "kept"))
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    if given.child:
        return child(given.child == "kept", given.repeats)
    seconds: dict[str, dict[str, list[float]]] = {name: {"as it comes": [], "kept": []} for name in ROUTES}
    for _ in range(given.turns):
        for word in ("as it comes", "kept"):
            words = [sys.executable, __file__, "--child", word, "--repeats", str(given.repeats)]
            crew = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(given.at_once)]
            for told in [worker.communicate()[0] for worker in crew]:
                for name, times in json.loads(told).items():
                    seconds[name][word] += times
    said = f"python bench/memory.py --turns {given.turns} --repeats {given.repeats} --at-once {given.at_once}"
    record: dict[str, Any] = {"command": said, "environment": environment(), "rows": {}}
    for name, both in seconds.items():
        row = {word: {"min_s": min(t), "median_s": statistics.median(t)} for word, t in both.items()}
        record["rows"][name] = row
        before, after = row["as it comes"], row["kept"]
        print(
            f"{name:15} median {1e3 * before['median_s']:.2f} -> {1e3 * after['median_s']:.2f} ms, "
            f"min {1e3 * before['min_s']:.2f} -> {1e3 * after['min_s']:.2f} ms"
        )
    if given.out:
        write_json(given.out, record)


if __name__ == "__main__":
    main()
