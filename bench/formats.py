"""Sparse formats against dense on one linear layer, by turns: which density, which batch, which format.

    python bench/formats.py --out records/formats.json

The bar: 4096×1024 with 95 % zeros, 64 rows, one thread, at least 4 times dense.  A record's `again` is the same cell
measured once more at the end, which shows how far this machine's numbers can be trusted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from winnow.formats import BSRLinear, CSRLinear, Packed
from winnow.jobs.report import environment, write_json
from winnow.measure import by_turns

OUTPUTS, INPUTS = 4096, 1024
DENSITIES, ROWS, BAR = (0.02, 0.05, 0.1, 0.2, 0.3), (1, 64, 512), 4.0


def scattered(density: float, block: int) -> Tensor:
    """A weight whose nonzeros fill square blocks."""
    alive = torch.rand(OUTPUTS // block, INPUTS // block) < density
    return torch.randn(OUTPUTS, INPUTS) * alive.repeat_interleave(block, 0).repeat_interleave(block, 1)


@torch.no_grad()
def cell(kind: type[Packed], density: float, rows: int, seconds: float) -> dict[str, Any]:
    """One format against dense."""
    linear = nn.Linear(INPUTS, OUTPUTS)
    linear.weight.copy_(scattered(density, 16 if kind is BSRLinear else 1))
    packed, x = kind(linear), torch.randn(rows, INPUTS)
    torch.testing.assert_close(packed(x), linear(x), rtol=1e-4, atol=1e-4)
    dense, sparse = by_turns([lambda: linear(x), lambda: packed(x)], x.device, seconds)
    found = {"format": kind.word, "density": density, "rows": rows, "rounds": len(dense)}
    for word, times in (("dense", dense), ("sparse", sparse)):
        found |= {f"{word}_min_ms": 1e3 * min(times), f"{word}_p50_ms": 1e3 * statistics.median(times)}
    found["speedup_p50"] = found["dense_p50_ms"] / found["sparse_p50_ms"]
    found["speedup_min"] = found["dense_min_ms"] / found["sparse_min_ms"]
    ratios = f"{found['speedup_p50']:5.2f}× (minima {found['speedup_min']:.2f}×)"
    print(f"{kind.word} density {density:4.2f} rows {rows:3}: {ratios}", flush=True)
    return found


def main() -> None:
    """All cells, then the bar's once more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    cells = [cell(kind, d, n, args.seconds) for kind in (CSRLinear, BSRLinear) for d in DENSITIES for n in ROWS]
    again = cell(CSRLinear, 0.05, 64, args.seconds)
    record = {"command": "python " + " ".join(sys.argv), "environment": environment(), "bar": BAR, "seed": 0}
    if args.out is not None:
        write_json(args.out, record | {"shape": [OUTPUTS, INPUTS], "cells": cells, "again": again})


if __name__ == "__main__":
    main()
