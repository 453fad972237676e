"""A whole training step over dense: every route, `parametrize` doing the same, and torchao's prototype.pat.

    python bench/step_time.py --out records/step-time            # all; about ten minutes on two cores
    python bench/step_time.py --only gpt-2x128/adamw --repeats 5

All variants of a task live in one process and take turns, each beside a dense step, before and after it by turns;
reported are the median of (variant / the dense step beside it) and the ratio of the minima.  The row "dense" is dense
against itself: how far from 1 chance alone leads.  Memory is counted exactly: bytes
of weights, gradients and optimizer state per parameter.  Flush-to-zero is on for all.  torchao is optional.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import winnow
from winnow.jobs.models import GPTConfig, LeNet300100, NanoGPT, ResNet20
from winnow.jobs.report import environment

STRENGTH = 1e-5
TARGETS = {"gating rows": 1.02, "decay elements": 1.03, "decay rows": 1.03, "masking elements": 1.06}
Step = Callable[[], float]
Make = Callable[[nn.Module, Callable[[Any], torch.optim.Optimizer]], tuple[torch.optim.Optimizer, Any]]


class Times(nn.Module):
    """θ = v·s with s of a given shape: what a parametrisation of ours looks like."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones(shape))

    def forward(self, v: Tensor) -> Tensor:
        return v * self.s


def weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every weight of two or more dims once, with its first owner."""
    seen: set[int] = set()
    for module in model.modules():
        for name, theta in list(module.named_parameters(recurse=False)):
            if theta.ndim >= 2 and id(theta) not in seen:
                seen.add(id(theta))
                yield module, name, theta


def dense(model: nn.Module, build: Any) -> tuple[torch.optim.Optimizer, Any]:
    return build(model.parameters()), None


def ours(how: winnow.Route, where: winnow.Grouping, fused: bool) -> Make:
    def make(model: nn.Module, build: Any) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = build(model.parameters())
        return optimizer, winnow.attach(model, optimizer, how=how, where=where, when=STRENGTH, fused=fused)

    return make


def parametrized(rows: bool) -> Make:
    """The same factors by nn.utils.parametrize, with the coupled L2 added to their gradients."""

    def make(model: nn.Module, build: Any) -> tuple[torch.optim.Optimizer, Any]:
        owned = list(weights(model))
        for module, name, theta in owned:
            shape = (theta.shape[0], *[1] * (theta.ndim - 1)) if rows else tuple(theta.shape)
            parametrize.register_parametrization(module, name, Times(shape))
        factors = [p for m, n, _ in owned for p in m.parametrizations[n].parameters()]

        def couple(*_: Any) -> None:
            alive = [p for p in factors if p.grad is not None]
            torch._foreach_add_([p.grad for p in alive], [p.detach() for p in alive], alpha=STRENGTH)

        optimizer = build(model.parameters())
        optimizer.register_step_pre_hook(couple)
        return optimizer, None

    return make


def pat(rows: bool) -> Make:
    def make(model: nn.Module, build: Any) -> tuple[torch.optim.Optimizer, Any]:
        from torchao.prototype.pat.optim import PruneOptimizer

        chosen = {id(theta) for _, _, theta in weights(model)}
        kind = {"prox_type": "ProxGroupLasso" if rows else "ProxLasso"}
        kind["group_type"] = "Dim0Grouper" if rows else "ElemGrouper"
        groups = [
            {"params": [p for p in model.parameters() if id(p) in chosen], **kind},
            {"params": [p for p in model.parameters() if id(p) not in chosen]},
        ]
        return PruneOptimizer(build(groups), reg_lambda=STRENGTH), None

    return make


def variants() -> dict[str, Make]:
    g, d, m = winnow.Gating(depth=2), winnow.Decay(winnow.Lp(0.5)), winnow.Masking()
    drop = winnow.Dropout(winnow.LogSum(2.0))
    rows, elements = winnow.Rows(), winnow.Elements()
    table: dict[str, Make] = {"dense": dense}
    words = {"gating rows": (g, rows), "gating elements": (g, elements), "decay elements": (d, elements)}
    words |= {"decay rows": (d, rows), "masking elements": (m, elements)}
    for name, (how, where) in words.items():
        table[name] = ours(how, where, True)
        table[name + ", plain"] = ours(how, where, False)
    table["dropout elements"] = ours(drop, elements, False)
    table["latent elements, plain"] = ours(winnow.Latent(), elements, False)
    table |= {"parametrize rows": parametrized(True), "parametrize elements": parametrized(False)}
    return table | {"PAT rows": pat(True), "PAT elements": pat(False)}


def tasks() -> dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(0)

    def text(batch: int, length: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(0, 65, (batch, length + 1), generator=generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    pixels = torch.randn(64, 3, 32, 32, generator=generator), torch.randint(0, 10, (64,), generator=generator)
    gpt = lambda: NanoGPT(GPTConfig.benchmark())  # noqa: E731
    digits = torch.randn(128, 784, generator=generator), torch.randint(0, 10, (128,), generator=generator)
    lenet = lambda: LeNet300100(784, 10)  # noqa: E731
    small = {"lenet-128": (lenet, digits)}
    return small | {"gpt-2x128": (gpt, text(2, 128)), "gpt-8x256": (gpt, text(8, 256)), "resnet20-64": (ResNet20, pixels)}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
}


def stepper(make: Make, build_model: Any, build: Any, x: Tensor, y: Tensor) -> tuple[Step, Any]:
    torch.manual_seed(0)
    model = build_model()
    optimizer, run = make(model, build)

    def step() -> float:
        optimizer.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out.flatten(0, 1) if out.ndim == 3 else out, y.flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, (model, optimizer, run)


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)


def memory(model: nn.Module, optimizer: Any) -> float:
    """Bytes of weights, gradients and optimizer state (factors included) per parameter of the dense model."""
    held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held += tensors(dict(getattr(optimizer, "base_optimizer", optimizer).state))
    unique = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if t.numel() > 1}
    size = sum(theta.numel() for name, theta in model.named_parameters() if not name.endswith(".0.s"))
    return sum(unique.values()) / size


def alternate(steps: dict[str, Step], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds per step of each variant, and of the dense step taken right before or after it, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    beside: dict[str, list[float]] = {name: [] for name in steps}

    def timed(name: str, into: list[float]) -> None:
        start = time.perf_counter()
        steps[name]()
        into.append(time.perf_counter() - start)

    for round_ in range(repeats):
        for name in steps:
            both = [(name, seconds[name]), ("dense", beside[name])]
            for which, into in both if round_ % 2 else reversed(both):
                timed(which, into)
    return seconds, beside


def compare(task: str, optimizer: str, repeats: int, only: list[str]) -> dict[str, Any]:
    build_model, (x, y) = tasks()[task]
    steps: dict[str, Step] = {}
    kept, errors, first = {}, {}, {}
    for name, make in variants().items():
        if name != "dense" and only and name not in only:
            continue
        try:
            step, kept[name] = stepper(make, build_model, OPTIMIZERS[optimizer], x, y)
            first[name] = step()
            for _ in range(2):  # compilation, optimizer state, allocator
                step()
            steps[name] = step
        except Exception as error:  # a competitor that does not run is part of the result
            errors[name] = f"{type(error).__name__}: {error}"
    seconds, beside = alternate(steps, repeats)
    rows = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, beside[name], strict=True)]
        rows[name] = {
            "median_ratio": statistics.median(ratios),
            "min_ratio": min(times) / min(beside[name]),
            "min_s": min(times),
            "median_s": statistics.median(times),
            "bytes_per_parameter": memory(kept[name][0], kept[name][1]),
            "first_loss": first[name],
            "target": TARGETS.get(name),
            "seconds": times,
            "dense_seconds": beside[name],
        }
    return {"task": task, "optimizer": optimizer, "variants": rows, "did_not_run": errors}


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['task']} / {result['optimizer']}: step time over dense, and bytes per parameter")
    for name, row in result["variants"].items():
        met = "" if row["target"] is None else f"target {row['target']}: " + (
            "met" if row["median_ratio"] <= row["target"] else "missed"
        )
        print(
            f"  {name:24} median {row['median_ratio']:.3f}  min {row['min_ratio']:.3f}  "
            f"{row['bytes_per_parameter']:5.1f} B  {met}"
        )
    for name, error in result["did_not_run"].items():
        print(f"  {name:24} did not run: {error.splitlines()[0][:150]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[f"{t}/{o}" for t in tasks() for o in OPTIMIZERS])
    parser.add_argument("--variants", nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore", winnow.WinnowWarning)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    record: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "environment": environment(), "results": []}
    for pair in args.only:
        task, optimizer = pair.split("/")
        record["results"].append(compare(task, optimizer, args.repeats, args.variants))
        show(record["results"][-1])
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
