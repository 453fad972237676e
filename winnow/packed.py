"""Tensors without their zeros, for files: a bit per entry, or compressed rows, whichever is smaller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor

from winnow.errors import FileError

Parts = dict[str, Tensor]


class Packing(ABC):
    """A way to write a tensor as its nonzero values and where they stand."""

    word: ClassVar[str]

    @staticmethod
    @abstractmethod
    def pack(x: Tensor) -> Parts:
        """Named parts of a flat tensor seen as rows, (rows, columns)."""

    @staticmethod
    @abstractmethod
    def where(parts: Mapping[str, Tensor], rows: int, columns: int) -> Tensor:
        """The flat positions of the values, ascending; raises `ValueError` if the parts do not say."""


@final
class Bitmask(Packing):
    """One bit per entry, low bit first."""

    word = "bitmask"

    @staticmethod
    def pack(x: Tensor) -> Parts:
        alive = (x != 0).flatten()
        bits = torch.nn.functional.pad(alive, (0, -len(alive) % 8)).view(-1, 8)
        return {"bits": (bits * _POWERS).sum(1).to(torch.uint8), "values": x.flatten()[alive]}

    @staticmethod
    def where(parts: Mapping[str, Tensor], rows: int, columns: int) -> Tensor:
        bits = parts["bits"]
        if bits.dtype != torch.uint8 or bits.shape != (-(-rows * columns // 8),):
            raise ValueError("bits of the wrong size")
        places = ((bits[:, None] & _POWERS) != 0).flatten().nonzero()[:, 0]
        if len(places) and int(places[-1]) >= rows * columns:
            raise ValueError("bits beyond the end")
        return places


@final
class CompressedRows(Packing):
    """Compressed sparse rows: where each row starts, and the column of each value, in 16 bits where they suffice."""

    word = "csr"

    @staticmethod
    def pack(x: Tensor) -> Parts:
        row, column = (x != 0).nonzero(as_tuple=True)
        starts = torch.zeros(len(x) + 1, dtype=torch.int64)
        starts[1:] = row.bincount(minlength=len(x)).cumsum(0)
        short = torch.uint16 if x.shape[1] <= 2**16 else torch.int32
        return {"starts": starts.to(torch.int32), "columns": column.to(short), "values": x[row, column]}

    @staticmethod
    def where(parts: Mapping[str, Tensor], rows: int, columns: int) -> Tensor:
        starts, column = parts["starts"].long(), parts["columns"].long()
        if starts.shape != (rows + 1,) or int(starts[0]) != 0 or bool((starts.diff() < 0).any()):
            raise ValueError("row starts that do not ascend from 0")
        if int(starts[-1]) != len(column) or bool(((column < 0) | (column >= columns)).any()):
            raise ValueError("columns out of range")
        return torch.repeat_interleave(torch.arange(rows), starts.diff()) * columns + column


_POWERS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
PACKINGS: Mapping[str, type[Packing]] = {kind.word: kind for kind in (Bitmask, CompressedRows)}
LIMIT = 2**31 - 1
"""Entries of a tensor that is packed: indices have 32 bits."""


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, object]]]:
    """(what to write, per packed tensor how): each tensor in its smallest form, itself where it has few zeros."""
    written: dict[str, Tensor] = {}
    packed: dict[str, dict[str, object]] = {}
    for name, x in tensors.items():
        best, how = {"": x}, ""
        if x.ndim and x.is_floating_point() and 0 < x.numel() <= LIMIT and bool((x == 0).any()):
            for word, kind in PACKINGS.items():
                parts = kind.pack(x.reshape(len(x), -1))
                if _bytes(parts) < _bytes(best):
                    best, how = parts, word
        if how:
            packed[name] = {"packing": how, "shape": list(x.shape), "parts": list(best)}
        written.update({f"{name}:{part}" if part else name: t.contiguous() for part, t in best.items()})
    return written, packed


def unpack(written: Mapping[str, Tensor], packed: Mapping[str, Mapping[str, object]]) -> dict[str, Tensor]:
    """The tensors again, bit for bit (but −0, which masks leave by the thousand, becomes 0).

    Raises `FileError` if the parts contradict one another.
    """
    tensors = dict(written)
    for name, spec in packed.items():
        try:
            shape = [int(n) for n in spec["shape"]]  # type: ignore[attr-defined]
            parts = {str(part): tensors.pop(f"{name}:{part}") for part in spec["parts"]}  # type: ignore[attr-defined]
            rows = shape[0]
            columns = torch.Size(shape[1:]).numel()
            if min(shape) < 1 or rows * columns > LIMIT:
                raise ValueError(f"shape {shape}")
            places = PACKINGS[str(spec["packing"])].where(parts, rows, columns)
            values = parts["values"]
            if places.shape != values.shape or bool((places.diff() <= 0).any()):
                raise ValueError(f"{len(values)} values for {len(places)} places")
        except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise FileError(f"packed tensor {name!r} is damaged ({why}); nothing was loaded") from error
        whole = torch.zeros(rows * columns, dtype=values.dtype)
        whole[places] = values
        tensors[name] = whole.view(shape)
    return tensors


def _bytes(parts: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in parts.values())
