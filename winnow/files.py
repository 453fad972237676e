"""Saved models: weights in safetensors, what became smaller in JSON; no pickle, and nothing of a file is ever executed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from winnow.errors import FileError
from winnow.packed import pack, unpack
from winnow.smaller.plan import Plan, keeping
from winnow.smaller.rewrite import RECIPE, as_graph, memory_format, resize
from winnow.trace import Tracer

FORMAT = 2
"""2: tensors may be packed (format 1 is still written where none is)."""
WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"
LIMIT = 64 * 2**20
"""Largest structure.json that is read: a real one has a line per weight."""


def tensor_files() -> Any:
    """The library that reads and writes tensors; raises `FileError` where it is not installed."""
    try:
        import safetensors.torch
    except ImportError as missing:
        raise FileError('models are kept in safetensors files: pip install "torch-winnow[files]"') from missing
    return safetensors


def save(model: nn.Module, folder: str | os.PathLike[str], *, compress: bool = False) -> Path:
    """Write a model (smaller or not) to a folder: `model.safetensors` and `structure.json`.

    The structure names every tensor's shape, and for a model that is a graph what was cut of the original.  `compress`
    leaves zeros out: each tensor is written as a bitmask or as compressed rows, with its nonzero values, where that is
    smaller, so that the file shrinks with the density; `load` gives the same tensors.

    The folder appears whole or not at all.  Raises `FileError` if something else is there already.
    """
    library = tensor_files()
    folder = Path(folder)
    if not isinstance(model, nn.Module):
        raise FileError(f"save takes a model, as the structure is kept with the tensors, got {type(model).__name__}")
    model = _bare(model)
    if folder.is_file():
        raise FileError(f"{folder} is a file; save writes a folder: choose another name")
    local = next((name for name, module in model.named_modules() if not getattr(module, "portable", True)), None)
    if local is not None:
        raise FileError(f"{local!r} is in a format chosen for this machine; save the model that to_runtime was given")
    if folder.exists() and any(folder.iterdir()) and not (folder / STRUCTURE).exists():
        raise FileError(f"{folder} exists and holds other things than a saved model; choose another folder")
    tensors, tied = _tensors(model)
    tensors, packed = pack(tensors) if compress else (tensors, {})
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    library.torch.save_file(tensors, part / WEIGHTS)
    recipe = model.meta.get(RECIPE) if isinstance(model, fx.GraphModule) else None
    structure = {
        "format": FORMAT if packed else 1,
        "form": "class" if recipe is None else "graph",
        "class": type(model).__name__,
        "sha256": _digest(part / WEIGHTS),
        "tensors": {name: {"shape": list(t.shape), "dtype": _short(t.dtype)} for name, t in tensors.items()},
        "tied": tied,
        "recipe": recipe,
    }
    if packed:
        structure["packed"] = packed
    (part / STRUCTURE).write_text(json.dumps(structure, indent=1) + "\n", encoding="utf-8")
    folder.mkdir(exist_ok=True)
    for name in (WEIGHTS, STRUCTURE):  # the structure last: a folder with one is complete
        os.replace(part / name, folder / name)
    part.rmdir()
    return folder


def load(folder: str | os.PathLike[str], make_model: Callable[[], nn.Module]) -> nn.Module:
    """The saved model, built by cutting a fresh `make_model()` to the saved shapes and filling it.

    Raises `FileError`, and returns nothing, if files are missing, damaged, from a newer Winnow, or do not fit the model.
    """
    folder = Path(folder)
    if isinstance(make_model, nn.Module):
        raise FileError(
            f"make_model must be a function that builds the model, got a {type(make_model).__name__} already built"
        )
    structure = _structure(folder)
    tensors = unpack(_weights(folder, structure), structure["packed"])
    model = make_model()
    if not isinstance(model, nn.Module):
        raise FileError(f"make_model must return an nn.Module, got {type(model).__name__}")
    if structure["form"] == "graph":
        model = _graph(model, structure["recipe"], folder)
    else:
        _fit(model, {**tensors, **{a: tensors[b] for a, b in structure["tied"].items()}}, folder)
    try:
        saved = {**tensors, **{a: tensors[b] for a, b in structure["tied"].items()}}
        _cast(model, saved)
        model.load_state_dict(saved)
    except RuntimeError as error:
        raise FileError(f"{folder} does not fit {type(model).__name__}: {error}") from error
    return model.eval()


def _cast(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Each parameter and buffer in the dtype it was saved with, so that nothing is rounded."""
    for name, theta in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if name in saved and theta.dtype != saved[name].dtype:
            theta.data = theta.data.to(saved[name].dtype)


# ---- writing -----------------------------------------------------------------------------------------------------


def _bare(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DDP and torch.compile, whose names for its tensors are others."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _bare(model.module)
    compiled = model._modules.get("_orig_mod")
    return model if compiled is None else _bare(compiled)


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, each once; other names of the same tensors)."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, theta in model.state_dict().items():
        key = theta.data_ptr(), tuple(theta.shape)
        if theta.numel() and key in first:
            tied[name] = first[key]
        else:
            first[key] = name
            tensors[name] = theta.detach().cpu().contiguous().clone()
    return tensors, tied


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- reading -----------------------------------------------------------------------------------------------------


def _structure(folder: Path) -> dict[str, Any]:
    path = folder / STRUCTURE
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise FileError(f"{folder} is no saved model: it needs {STRUCTURE} and {WEIGHTS}; winnow.save writes both")
    if path.stat().st_size > LIMIT:
        raise FileError(f"{path} is larger than any structure that Winnow writes")
    try:
        structure = json.loads(path.read_text(encoding="utf-8"))
        if int(structure["format"]) > FORMAT:
            raise FileError(
                f"{path} has format {structure['format']}, newer than this Winnow reads ({FORMAT}); upgrade Winnow"
            )
        structure.setdefault("packed", {})
        wanted = {
            "packed": dict,
            "format": int,
            "form": str,
            "class": str,
            "sha256": str,
            "tensors": dict,
            "tied": dict,
        }
        if not all(isinstance(structure[key], kind) for key, kind in wanted.items()):
            raise TypeError("a field has the wrong type")
    except FileError:
        raise
    except Exception as error:
        raise FileError(
            f"{path} is damaged or foreign ({type(error).__name__}: {error}); nothing was loaded"
        ) from error
    return dict(structure)


def _weights(folder: Path, structure: Mapping[str, Any]) -> dict[str, Tensor]:
    library = tensor_files()
    path = folder / WEIGHTS
    if _digest(path) != structure["sha256"]:
        raise FileError(f"{path} is not the file that {STRUCTURE} describes (its checksum differs); nothing was loaded")
    try:
        tensors: dict[str, Tensor] = library.torch.load_file(path)
    except (library.SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is damaged or foreign ({error}); nothing was loaded") from error
    said = {name: (list(t.shape), _short(t.dtype)) for name, t in tensors.items()}
    if said != {name: (spec["shape"], spec["dtype"]) for name, spec in structure["tensors"].items()}:
        raise FileError(f"{path} and {STRUCTURE} name different tensors; nothing was loaded")
    return tensors


def _fit(model: nn.Module, shapes: Mapping[str, Tensor], folder: Path) -> None:
    """Every weight replaced by an empty one of the saved shape, if that is not larger along any axis."""
    done: dict[int, Tensor] = {}
    for prefix, owner in model.named_modules():
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for table in tables:
            for key, theta in table.items():
                name = f"{prefix}.{key}" if prefix else key
                if theta is None or name not in shapes or theta.shape == shapes[name].shape:
                    continue
                new = shapes[name]
                if new.ndim != theta.ndim or any(a > b for a, b in zip(new.shape, theta.shape, strict=True)):
                    raise FileError(
                        f"{folder} does not fit {type(model).__name__}: {name} was saved as {list(new.shape)} and is "
                        f"{list(theta.shape)} here; make_model must build the model as it was before it became smaller"
                    )
                if id(theta) not in done:
                    form = memory_format(theta)
                    empty = torch.empty(new.shape, dtype=theta.dtype, device=theta.device, memory_format=form)
                    done[id(theta)] = (
                        nn.Parameter(empty, theta.requires_grad) if isinstance(theta, nn.Parameter) else empty
                    )
                table[key] = done[id(theta)]
    resize(model)


def _graph(model: nn.Module, recipe: Any, folder: Path) -> fx.GraphModule:
    """The original's graph, cut again."""
    try:
        base = {str(name): torch.empty(shape, device="meta") for name, shape in recipe["base"].items()}
        args = [_zeros(spec) for spec in recipe["args"]]
        kwargs = {str(name): _zeros(spec) for name, spec in recipe["kwargs"].items()}
        keep = {
            str(name): {int(axis): torch.tensor(kept, dtype=torch.long) for axis, kept in axes.items()}
            for name, axes in recipe["keep"].items()
        }
    except Exception as error:
        raise FileError(
            f"{folder / STRUCTURE} is damaged ({type(error).__name__}: {error}); nothing was loaded"
        ) from error

    _fit(model, base, folder)

    def select(tracer: Tracer) -> Plan:
        return keeping(tracer, keep)

    return as_graph(model, kwargs or tuple(args), select, bool(recipe.get("inputs", False)))


def _zeros(spec: Mapping[str, Any]) -> Any:
    if "value" in spec:
        return spec["value"]
    dtype = getattr(torch, spec["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{spec['dtype']} is no dtype")
    return torch.zeros([int(n) for n in spec["shape"]], dtype=dtype)
