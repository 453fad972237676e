"""How much faster, on this machine: both models by turns, with the spread, and the memory that they need at once."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from winnow.errors import TraceError
from winnow.trace import Example, arguments, call, evaluating, leaves


@final
@dataclass(frozen=True)
class Timing:
    """Seconds per call of one model at one batch size."""

    batch: int
    minimum: float
    p50: float
    p95: float
    peak: int
    """Bytes of activations alive at once at most, weights not counted."""


@final
@dataclass(frozen=True)
class Measured:
    """Two models, the same inputs, the same threads, by turns."""

    before: tuple[Timing, ...]
    after: tuple[Timing, ...]
    threads: int
    device: str
    rounds: int

    @property
    def speedup(self) -> tuple[float, ...]:
        """Median before over median after, per batch size."""
        return tuple(a.p50 / b.p50 for a, b in zip(self.before, self.after, strict=True))

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        lines = [f"{threads} on {self.device}, {self.rounds} rounds by turns; milliseconds per call"]
        lines.append(f"{'batch':>6} {'':>7} {'min':>9} {'p50':>9} {'p95':>9} {'peak MB':>9}")
        for a, b, ratio in zip(self.before, self.after, self.speedup, strict=True):
            for word, t in (("before", a), ("after", b)):
                times = " ".join(f"{1e3 * x:9.3f}" for x in (t.minimum, t.p50, t.p95))
                much = f"{ratio:.2f}× faster" if ratio >= 1 else f"{1 / ratio:.2f}× slower"
                tail = f"   {much}" if word == "after" else ""
                lines.append(f"{t.batch:>6} {word:>7} {times} {t.peak / 1e6:9.2f}{tail}")
        return "\n".join(lines)


def measure(
    before: nn.Module, after: nn.Module, example: Example, *, batches: Sequence[int] = (1, 64), seconds: float = 2.0
) -> Measured:
    """Time both models in eval mode at each batch size, taking turns for about `seconds` each, after warming up.

    The example's tensors are repeated along their first axis to the batch sizes.  Medians are what to quote: the
    minimum hides the machine, the 95th percentile shows it.
    """
    if any(batch < 1 for batch in batches) or not batches:
        raise TraceError(f"batches must be sizes >= 1, got {tuple(batches)}")
    device = next(before.parameters()).device
    rows: list[tuple[Timing, Timing]] = []
    rounds = 0
    with evaluating(before), evaluating(after), torch.no_grad():
        for batch in batches:
            inputs = repeated(example, batch)
            pair: list[Callable[[], Any]] = [lambda x=inputs: call(before, x), lambda x=inputs: call(after, x)]  # type: ignore[misc]
            times = by_turns(pair, device, seconds)
            rounds = max(rounds, len(times[0]))
            rows.append(tuple(_timing(batch, t, run) for t, run in zip(times, pair, strict=True)))  # type: ignore[arg-type]
    first, second = zip(*rows, strict=True)
    return Measured(first, second, torch.get_num_threads(), str(device), rounds)


def repeated(example: Example, batch: int) -> Example:
    """The example with `batch` entries along the axis that all its tensors share first."""
    sizes = {x.shape[0] for x in leaves(arguments(example)) if x.ndim}
    size = max(sizes, default=1)

    def fit(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.ndim or x.shape[0] != size:
            return x
        return x.repeat(-(-batch // size), *[1] * (x.ndim - 1))[:batch].contiguous()

    args, kwargs = pytree.tree_map(fit, arguments(example))
    return kwargs or args


def by_turns(runs: Sequence[Callable[[], Any]], device: torch.device, seconds: float) -> list[list[float]]:
    """Seconds of every call, the runs taking turns for about `seconds` each, after warming up."""

    def once(run: Callable[[], Any]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for run in runs:
        for _ in range(3):
            once(run)
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end or len(times[0]) < 5:
        for run, into in zip(runs, times, strict=True):
            into.append(once(run))
    return times


def _timing(batch: int, times: list[float], run: Callable[[], Any]) -> Timing:
    with _Alive() as alive:
        run()
    cuts = statistics.quantiles(times, n=20)
    return Timing(batch, min(times), statistics.median(times), cuts[-1], alive.peak)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors made inside that are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in leaves((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for x in leaves(out):
            storage = x.untyped_storage()
            key = storage.data_ptr()
            if key not in given and key not in self.known and storage.nbytes():
                self.known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
