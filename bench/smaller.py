"""What removal costs and what it buys: half of the units zeroed at random, compacted, timed by turns.

    python bench/smaller.py --out records/smaller

Needs the `dev` extra (ResNets come from `transformers` configurations, nothing is downloaded).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import winnow
from winnow.jobs.models import GPTConfig, NanoGPT
from winnow.jobs.report import environment
from winnow.units import zero_units

SECONDS = {"resnet-50": 10.0, "nanogpt": 5.0}
"""Bars for trace and compact together."""


def resnet(depths: list[int], kind: str, sizes: list[int]) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=depths, layer_type=kind, hidden_sizes=sizes, num_labels=1000)
    return ResNetForImageClassification(config).eval()


def tasks() -> dict[str, tuple[Any, Any, tuple[int, ...]]]:
    """Name to (model, example, batch sizes)."""
    pixels = torch.randn(2, 3, 224, 224)
    return {
        "resnet-18": (lambda: resnet([2, 2, 2, 2], "basic", [64, 128, 256, 512]), {"pixel_values": pixels}, (1, 16)),
        "resnet-50": (lambda: resnet([3, 4, 6, 3], "bottleneck", [256, 512, 1024, 2048]), {"pixel_values": pixels}, (1, 16)),
        "nanogpt": (lambda: NanoGPT(GPTConfig.benchmark()).eval(), torch.randint(0, 65, (2, 256)), (1, 16)),
    }


def one(name: str, seconds: float, round_to: int) -> dict[str, Any]:
    make, example, batches = tasks()[name]
    torch.manual_seed(0)
    model = make()
    start = time.perf_counter()
    layers = winnow.find_units(model, example)
    found = time.perf_counter() - start
    zero_units(model, layers, [torch.rand(layer.count) < 0.5 for layer in layers])
    start = time.perf_counter()
    small, proof = winnow.compact(model, example, round_to=round_to)
    compacted = time.perf_counter() - start
    timed = winnow.measure(model, small, example, batches=batches, seconds=seconds)
    ratio = proof.macs[0] / proof.macs[1]
    print(f"\n{name}: units found in {found:.1f} s, compacted and proved in {compacted:.1f} s, {ratio:.2f}× fewer MACs")
    print(proof)
    print(timed)
    return {
        "model": name,
        "round_to": round_to,
        "units": sum(layer.count for layer in layers),
        "find_seconds": found,
        "compact_seconds": compacted,
        "bar_seconds": SECONDS.get(name),
        "macs_ratio": ratio,
        "speedup_over_macs_ratio": [speed / ratio for speed in timed.speedup],
        "proof": str(proof),
        "measured": str(timed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(tasks()))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "environment": environment(), "results": []}
    for name in args.only:
        record["results"].append(one(name, args.seconds, args.round_to))
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
