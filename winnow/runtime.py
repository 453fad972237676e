"""Zeros that no whole channel holds: linear layers kept in the format that is fastest here, each measured."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from winnow.errors import ProofError, RuntimeFormatError
from winnow.formats import FORMATS
from winnow.measure import by_turns
from winnow.smaller.proof import TOLERANCES, difference
from winnow.trace import Example, call, clone, evaluating

DENSE, AUTO = "dense", "auto"
MARGIN = 1.1
"""A format must be this much faster than dense to be taken: less is within what a machine varies."""
SECONDS = 0.1


@final
@dataclass(frozen=True)
class Choice:
    """One linear layer: what was tried, and what is kept."""

    name: str
    shape: tuple[int, int]
    density: float
    rows: int
    """Rows of input that it was timed with: batch size times positions."""
    format: str
    seconds: Mapping[str, float]
    """Median per format tried."""
    refused: Mapping[str, str]
    """Why other formats were not tried."""

    @property
    def speedup(self) -> float:
        """Dense over what is kept."""
        return self.seconds[DENSE] / self.seconds[self.format]

    def __str__(self) -> str:
        tried = ", ".join(f"{word} {1e3 * t:.3f} ms" for word, t in self.seconds.items())
        words = f"{self.format}, {self.speedup:.2f}× as fast as dense"
        kept = words if self.format != DENSE else "stays dense, nothing is faster"
        return f"{self.name} {self.shape[0]}×{self.shape[1]}, {self.density:.1%} nonzero, {self.rows} rows: {kept} ({tried})"


@final
@dataclass(frozen=True)
class Chosen:
    """What `to_runtime` did."""

    choices: tuple[Choice, ...]
    error: float
    """Largest |Δoutput| over the largest |output|."""
    device: str
    threads: int

    def __str__(self) -> str:
        if not self.choices:
            return "nothing to choose: the model has no nn.Linear whose weight is its own (a graph has none)"
        taken = [choice for choice in self.choices if choice.format != DENSE]
        won = sum(choice.speedup > 1 for choice in taken)
        head = (
            f"{won} of {len(self.choices)} linear layers are faster in a sparse format"
            if taken
            else ("nothing wins: every linear layer is fastest dense on this machine")
        )
        tail = f"outputs equal, relative difference {self.error:.1e}; {self.threads} threads on {self.device}"
        return "\n".join([head, *map(str, self.choices), tail])


def to_runtime(model: nn.Module, example: Example, format: str = AUTO) -> tuple[nn.Module, Chosen]:
    """A copy for inference whose linear layers are stored in the format that is fastest on this machine, and the measurements.

    Every `nn.Linear` is timed with the rows of input that it gets on `example`, dense and in each format that fits its
    zeros: CSR for single zeros, BSR for blocks, 2:4 on a GPU in half precision.  A format is kept where it is a tenth
    faster than dense.  `format` names one ("csr", "bsr", "2:4") to take it wherever it fits, faster or not.  Compact
    first: channels that are gone are faster than any format.

    Raises `RuntimeFormatError` for an unknown format or one that fits nowhere, and `ProofError` if the outputs differ.
    """
    words = [kind.word for kind in FORMATS]
    if format not in (AUTO, DENSE, *words):
        raise RuntimeFormatError(f"no format {format!r}: choose from {', '.join((AUTO, DENSE, *words))}")
    fast = clone(model).eval()
    choices = []
    for name, rows in _rows(fast, example).items():
        linear = fast.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        choice, module = _choose(name, linear, rows, format)
        choices.append(choice)
        if module is not linear:
            owner, _, leaf = name.rpartition(".")
            setattr(fast.get_submodule(owner), leaf, module)
    why = {reason for choice in choices for word, reason in choice.refused.items() if word == format}
    if choices and format in words and not any(choice.format == format for choice in choices):
        raise RuntimeFormatError(
            f"no linear layer takes {format!r}: it {'; '.join(sorted(why))}; 'auto' measures what fits"
        )
    dtype = next(theta.dtype for theta in model.parameters() if theta.is_floating_point())
    _, error = difference(model, fast, example, dtype)
    if error > TOLERANCES.get(dtype, 100 * torch.finfo(dtype).eps):
        raise ProofError(f"the outputs of sparse formats differ by {error:.1e} of the largest; nothing was changed")
    return fast, Chosen(tuple(choices), error, str(next(model.parameters()).device), torch.get_num_threads())


def _rows(model: nn.Module, example: Example) -> dict[str, int]:
    """Rows of input that every linear layer gets, by its name; layers that share their weight are left alone."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for theta in module.parameters(recurse=False):
            owners[id(theta)] = owners.get(id(theta), 0) + 1
    found: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name and owners[id(module.weight)] == 1:
            note = functools.partial(_note, found, name)
            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _note(
    found: dict[str, int], name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    x = args[0] if args else kwargs["input"]
    found[name] = x.numel() // max(x.shape[-1], 1)


@torch.no_grad()
def _choose(name: str, linear: nn.Linear, rows: int, wanted: str) -> tuple[Choice, nn.Module]:
    """The fastest of what fits, or what is wanted if it fits."""
    weight = linear.weight.detach()
    x = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    refused, modules = {}, {DENSE: linear}
    for kind in FORMATS:
        why = kind.refuses(weight)
        if not why:
            try:
                modules[kind.word] = kind(linear)  # type: ignore[assignment]
                modules[kind.word](x)
            except (
                RuntimeError,
                NotImplementedError,
            ) as error:  # a build of torch without this kernel, dtype or device
                why = str(error).strip().splitlines()[0]
                modules.pop(kind.word, None)
        if why:
            refused[kind.word] = why
    runs = [lambda m=m: m(x) for m in modules.values()]
    times = [statistics.median(t) for t in by_turns(runs, weight.device, SECONDS)]
    seconds = dict(zip(modules, times, strict=True))
    best = min(seconds, key=seconds.__getitem__)
    if wanted == AUTO:
        kept = best if seconds[DENSE] > MARGIN * seconds[best] else DENSE
    else:
        kept = wanted if wanted in modules else DENSE
    density = float((weight != 0).float().mean())
    shape = (weight.shape[0], weight.shape[1])
    return Choice(name, shape, density, rows, kept, seconds, refused), modules[kept]
