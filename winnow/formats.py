"""Linear layers without their zeros: CSR, BSR and 2:4, each a module for inference."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        return torch.addmm(
            self.bias[:, None].expand(-1, len(x)), weight, columns
        ).t()  # one pass less than adding it behind

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


def _filled(weight: Tensor, block: int) -> Tensor:
    """Which square blocks hold a nonzero."""
    rows, columns = weight.shape
    return (weight.view(rows // block, block, columns // block, block) != 0).any(3).any(1)


def _too_full(stored: float) -> str:
    return "" if stored <= 0.5 else f"would store {stored:.0%} of the entries, and an index for each"
