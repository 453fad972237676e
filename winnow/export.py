"""Shipping: ONNX, checked in ONNX Runtime, and torch.export's own files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from winnow.errors import FileError
from winnow.smaller.proof import inputs_like
from winnow.trace import Example, arguments, call, evaluating, leaves, quiet

TOLERANCE = 1e-4
"""Largest difference between a file and its model, relative to the largest output: runtimes fuse and reorder in float32."""


def export(model: nn.Module, path: str | os.PathLike[str], example: Example, *, dynamic_batch: bool = False) -> float:
    """Write the model in eval mode to `path` (`.onnx`, or `.pt2` for `torch.export.load`); read it back and compare.

    Sizes are the example's: a file is called with inputs of these shapes.  With `dynamic_batch` the first dimension is
    free in every input that has the first one's number of rows, and other batch sizes are compared too.
    Returns the largest |Δoutput| relative to the largest |output|, on the example and on random inputs.
    Raises `FileError` if the suffix is neither, the model cannot be written (in this form), or what is read back
    computes otherwise; then there is no file.
    """
    if not isinstance(path, (str, Path)):
        raise FileError(f'export(model, "model.onnx", example): the path comes second, got {type(path).__name__}')
    path = Path(path)
    writers = {".onnx": _onnx, ".pt2": _pt2}
    if path.suffix not in writers:
        raise FileError(f"{path} must end in {' or '.join(writers)}, to say in which format to write")
    with evaluating(model), torch.no_grad(), quiet():
        try:
            error = writers[path.suffix](model, path, _Batch.of(example) if dynamic_batch else _Batch(example))
        except FileError:
            raise
        except Exception as problem:
            cause = problem.__cause__ or problem  # the writer's own words are about its stages
            text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).strip().splitlines()
            path.unlink(missing_ok=True)
            how = (
                " for every batch size (leave dynamic_batch out to write it for the example's)" if dynamic_batch else ""
            )
            raise FileError(
                f"{type(model).__name__} cannot be written to {path}{how}: {text[0] if text else type(problem).__name__}"
            ) from problem
    if not error <= TOLERANCE:
        path.unlink(missing_ok=True)
        raise FileError(
            f"{path} was read back and its outputs differ by {error:.1e} of the largest; the file was removed"
        )
    return error


@final
@dataclass(frozen=True)
class _Batch:
    """What a file is written and compared with: the example, and how many rows of it may vary (None: none)."""

    example: Example
    rows: int | None = None

    @classmethod
    def of(cls, example: Example) -> _Batch:
        """The first tensor's rows are free; at least two are written, as torch.export takes a size of one for a constant."""
        first = next((x for x in leaves(example) if x.dim()), None)
        if first is None:
            raise FileError("dynamic_batch frees the first dimension of the inputs; the example has no tensor with one")
        return cls(cls(example, len(first)).resized(max(2, len(first))), max(2, len(first)))

    def _map(self, batched: Callable[[Tensor], Any], rest: Callable[[Any], Any]) -> Any:
        def one(x: Any) -> Any:
            return (batched if isinstance(x, Tensor) and x.dim() > 0 and len(x) == self.rows else rest)(x)

        args, kwargs = arguments(self.example)
        return pytree.tree_map(one, kwargs or args)

    def resized(self, rows: int) -> Example:
        """The example with so many rows, repeated from the top."""
        chosen: Example = self._map(lambda x: x[torch.arange(rows, device=x.device) % len(x)], lambda x: x)
        return chosen

    def shapes(self) -> Any:
        """`dynamic_shapes` as torch.export takes them."""
        free = torch.export.Dim("batch", min=1)
        return None if self.rows is None else self._map(lambda x: {0: free}, lambda x: None)

    def inputs(self) -> list[Example]:
        """What is compared: the example, random inputs, and with free rows one row and two batches more."""
        free = [] if self.rows is None else [self.resized(n) for n in (1, self.rows + 1, 3 * self.rows)]
        return [self.example, inputs_like(self.example, 1), *free]


def _onnx(model: nn.Module, path: Path, batch: _Batch) -> float:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch writes with it
    except ImportError as error:
        raise FileError(f"{error.name} is needed for .onnx files: pip install 'torch-winnow[onnx]'") from error
    args, kwargs = arguments(batch.example)
    torch.onnx.export(
        model,
        args,
        str(path),
        kwargs=kwargs,
        dynamo=True,
        dynamic_shapes=batch.shapes(),
        verbose=False,
        external_data=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Example) -> list[Tensor]:
        found, keywords = arguments(inputs)
        given = [*leaves(found), *(x for x in keywords.values() if isinstance(x, Tensor))]
        feed = {name: x.cpu().numpy() for name, x in zip(names, given, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, feed)]

    return _worst(model, run, batch)


def _pt2(model: nn.Module, path: Path, batch: _Batch) -> float:
    args, kwargs = arguments(batch.example)
    torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=batch.shapes(), strict=False), path)
    again = torch.export.load(path).module()
    return _worst(model, lambda inputs: leaves(call(again, inputs)), batch)


def _worst(model: nn.Module, run: Callable[[Example], list[Tensor]], batch: _Batch) -> float:
    worst, scale = 0.0, 0.0
    for inputs in batch.inputs():
        for a, b in zip(leaves(call(model, inputs)), run(inputs), strict=True):
            if a.shape != b.shape:
                return math.inf
            worst = max(worst, float((a.double() - b.double()).abs().max()))
            scale = max(scale, float(a.double().abs().max()))
    return worst / scale if scale else worst
