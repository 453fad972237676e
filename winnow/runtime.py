"""Zeros that no whole channel holds: linear layers kept in the format that is fastest here, each measured."""

from __future__ import annotations

import functools
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.errors import ProofError, RuntimeFormatError
from winnow.measure import by_turns
from winnow.smaller.proof import TOLERANCES, difference
from winnow.trace import Example, call, clone, evaluating

DENSE, AUTO = "dense", "auto"
MARGIN = 1.1
"""A format must be this much faster than dense to be taken: less is within what a machine varies."""
SECONDS = 0.1


class Packed(nn.Module, ABC):
    """A linear layer for inference whose weight is kept without its zeros: (..., inputs) -> (..., outputs)."""

    word: ClassVar[str]
    bias: Tensor | None
    portable: ClassVar = False
    """Chosen for one machine: `save` refuses it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = linear.weight.shape
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse tensors a beta, once
            self._pack(linear.weight.detach())

    @classmethod
    @abstractmethod
    def refuses(cls, weight: Tensor) -> str:
        """Why this format is not for this weight; empty if it is."""

    @abstractmethod
    def _pack(self, weight: Tensor) -> None:
        """Keep the weight as buffers, so that it moves, is cast and is saved with the module."""

    @abstractmethod
    def _linear(self, x: Tensor) -> Tensor:
        """(n, inputs) -> (n, outputs), the bias added."""

    def forward(self, input: Tensor) -> Tensor:
        return self._linear(input.reshape(-1, self.inputs)).reshape(*input.shape[:-1], self.outputs)

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, {self.word}, bias={self.bias is not None}"


class Compressed(Packed):
    """Rows of nonzeros, or of nonzero blocks, with 32-bit indices (twice as fast as 64-bit ones, as measured)."""

    crow: Tensor
    col: Tensor
    values: Tensor

    def _keep(self, sparse: Tensor) -> None:
        self.register_buffer("crow", sparse.crow_indices().int())
        self.register_buffer("col", sparse.col_indices().int())
        self.register_buffer("values", sparse.values())

    def _linear(self, x: Tensor) -> Tensor:
        weight = torch.sparse_compressed_tensor(
            self.crow, self.col, self.values, (self.outputs, self.inputs), layout=self._layout(), check_invariants=False
        )
        columns = x.t().contiguous()
        if self.bias is None:
            return (weight @ columns).t()
        return torch.addmm(self.bias[:, None].expand(-1, len(x)), weight, columns).t()  # one pass less than adding it behind

    @abstractmethod
    def _layout(self) -> torch.layout: ...


@final
class CSRLinear(Compressed):
    """Compressed sparse rows: single nonzeros."""

    word = "csr"

    @classmethod
    def refuses(cls, weight: Tensor) -> str:
        return _too_full(float((weight != 0).float().mean()))

    def _pack(self, weight: Tensor) -> None:
        self._keep(weight.to_sparse_csr())

    def _layout(self) -> torch.layout:
        return torch.sparse_csr


@final
class BSRLinear(Compressed):
    """Block compressed sparse rows: square blocks, of the size that stores the fewest entries."""

    word = "bsr"
    BLOCKS: ClassVar = (16, 8, 4)

    @classmethod
    def _best(cls, weight: Tensor) -> tuple[float, int]:
        """(share stored, block size)."""
        fits = [b for b in cls.BLOCKS if weight.shape[0] % b == 0 and weight.shape[1] % b == 0]
        stored, block = min(((float(_filled(weight, b).float().mean()), -b) for b in fits), default=(1.0, 0))
        return stored, -block  # of sizes that store as much, the largest

    @classmethod
    def refuses(cls, weight: Tensor) -> str:
        stored, block = cls._best(weight)
        return _too_full(stored) if block else "its sides are no multiples of 4"

    def _pack(self, weight: Tensor) -> None:
        block = self._best(weight)[1]
        self._keep(weight.to_sparse_bsr((block, block)))

    def _layout(self) -> torch.layout:
        return torch.sparse_bsr


@final
class SemiStructuredLinear(Packed):
    """2:4, for the sparse tensor cores of NVIDIA GPUs (compute capability 8.0 on) in half precision."""

    word = "2:4"

    @classmethod
    def refuses(cls, weight: Tensor) -> str:
        if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < (8, 0):
            return "needs an NVIDIA GPU of compute capability 8.0 or later"
        if weight.dtype not in (torch.float16, torch.bfloat16):
            return "needs float16 or bfloat16"
        if weight.shape[0] % 64 or weight.shape[1] % 64:
            return "its sides are no multiples of 64"
        full = bool(((weight.view(len(weight), -1, 4) != 0).sum(-1) > 2).any())
        return "has more than two nonzeros in some group of four" if full else ""

    def _pack(self, weight: Tensor) -> None:
        self.register_buffer("weight", torch.sparse.to_sparse_semi_structured(weight))

    def _linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]


FORMATS: tuple[type[Packed], ...] = (CSRLinear, BSRLinear, SemiStructuredLinear)


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
        head = f"{won} of {len(self.choices)} linear layers are faster in a sparse format" if taken else (
            "nothing wins: every linear layer is fastest dense on this machine"
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
        raise RuntimeFormatError(f"no linear layer takes {format!r}: it {'; '.join(sorted(why))}; 'auto' measures what fits")
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


def _note(found: dict[str, int], name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
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
            except (RuntimeError, NotImplementedError) as error:  # a build of torch without this kernel, dtype or device
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


def _filled(weight: Tensor, block: int) -> Tensor:
    """Which square blocks hold a nonzero."""
    rows, columns = weight.shape
    return (weight.view(rows // block, block, columns // block, block) != 0).any(3).any(1)


def _too_full(stored: float) -> str:
    return "" if stored <= 0.5 else f"would store {stored:.0%} of the entries, and an index for each"
