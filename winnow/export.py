"""Shipping: ONNX, checked in ONNX Runtime, and torch.export's own files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import nn

from winnow.errors import FileError
from winnow.smaller.proof import inputs_like
from winnow.trace import Example, arguments, call, evaluating, leaves, quiet

TOLERANCE = 1e-4
"""Largest difference between a file and its model, relative to the largest output: runtimes fuse and reorder in float32."""


def export(model: nn.Module, path: str | os.PathLike[str], example: Example) -> float:
    """Write the model in eval mode to `path` (`.onnx`, or `.pt2` for `torch.export.load`); read it back and compare.

    Sizes are the example's, the batch size too: a file is called with inputs of these shapes.
    Returns the largest |Δoutput| relative to the largest |output|, on the example and on random inputs.
    Raises `FileError` if the suffix is neither, the model cannot be written, or what is read back computes otherwise;
    then there is no file.
    """
    if not isinstance(path, (str, Path)):
        raise FileError(f'export(model, "model.onnx", example): the path comes second, got {type(path).__name__}')
    path = Path(path)
    writers = {".onnx": _onnx, ".pt2": _pt2}
    if path.suffix not in writers:
        raise FileError(f"{path} must end in {' or '.join(writers)}, to say in which format to write")
    with evaluating(model), torch.no_grad(), quiet():
        try:
            error = writers[path.suffix](model, path, example)
        except FileError:
            raise
        except Exception as problem:
            cause = problem.__cause__ or problem  # the writer's own words are about its stages
            text = re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).strip().splitlines()
            path.unlink(missing_ok=True)
            raise FileError(
                f"{type(model).__name__} cannot be written to {path}: {text[0] if text else type(problem).__name__}"
            ) from problem
    if not error <= TOLERANCE:
        path.unlink(missing_ok=True)
        raise FileError(
            f"{path} was read back and its outputs differ by {error:.1e} of the largest; the file was removed"
        )
    return error


def _onnx(model: nn.Module, path: Path, example: Example) -> float:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch writes with it
    except ImportError as error:
        raise FileError(f"{error.name} is needed for .onnx files: pip install 'torch-winnow[onnx]'") from error
    args, kwargs = arguments(example)
    torch.onnx.export(model, args, str(path), kwargs=kwargs, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Example) -> list[torch.Tensor]:
        found, keywords = arguments(inputs)
        given = [*leaves(found), *(x for x in keywords.values() if isinstance(x, torch.Tensor))]
        feed = {name: x.cpu().numpy() for name, x in zip(names, given, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, feed)]

    return _worst(model, run, example)


def _pt2(model: nn.Module, path: Path, example: Example) -> float:
    args, kwargs = arguments(example)
    torch.export.save(torch.export.export(model, args, kwargs, strict=False), path)
    again = torch.export.load(path).module()
    return _worst(model, lambda inputs: leaves(call(again, inputs)), example)


def _worst(model: nn.Module, run: object, example: Example) -> float:
    assert callable(run)
    worst, scale = 0.0, 0.0
    for inputs in (example, inputs_like(example, 1)):
        for a, b in zip(leaves(call(model, inputs)), run(inputs), strict=True):
            worst = max(worst, float((a.double() - b.double()).abs().max()))
            scale = max(scale, float(a.double().abs().max()))
    return worst / scale if scale else worst
