"""A model's graph, as `torch.export` sees it: operators on tensors, nothing of the modules but the weights' names."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from winnow.errors import TraceError

Example = Any
"""What the model is called with: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of the call that an example stands for."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


def call(model: nn.Module, example: Example) -> Any:
    """The model's output on the example."""
    args, kwargs = arguments(example)
    return model(*args, **kwargs)


def cast(example: Example, dtype: torch.dtype) -> Example:
    """The example with its floating-point tensors in `dtype`."""
    args, kwargs = pytree.tree_map(
        lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, arguments(example)
    )
    return kwargs or args


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a nested output, in order (model outputs of transformers too)."""
    if isinstance(tree, Mapping) and not isinstance(tree, dict):
        tree = dict(tree)
    found = [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode for a while, each put back as it was."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was:
            module.training = training


def graph_of(model: nn.Module, example: Example, free: bool = False) -> fx.GraphModule:
    """The model in eval mode as a functional graph of ATen operators, sharing the model's weights.

    `free` leaves the batch size open where the model allows (slower to trace).
    Raises `TraceError` if `torch.export` cannot read the model.
    """
    _check(model, example)
    args, kwargs = arguments(example)
    problem: Exception | None = None
    with evaluating(model), quiet(), torch.no_grad():
        for open_ in (True, False) if free else (False,):
            try:
                shapes = pytree.tree_map(_batch, (args, kwargs)) if open_ else None
                dynamic = None if shapes is None else {**_positional(model, shapes[0]), **shapes[1]}
                program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
                if any(_mutates(node) for node in program.graph.nodes):
                    program = program.run_decompositions({})  # the same operators, without changes in place
                module = program.module()
                assert isinstance(module, fx.GraphModule)
                return module
            except Exception as error:  # the second try's message is the simpler one
                problem = error
    text = _first_line(problem)
    if "Cache" in text:
        text += (
            ". A cache of keys and values is in the way: set model.config.use_cache = False, or give use_cache=False "
            "with the example"
        )
    raise TraceError(
        f"torch.export cannot read {type(model).__name__}: {text}. Control flow must not depend on the data, and custom "
        "autograd functions must be operators that torch.export knows; compact the part of the model that can be read"
    ) from problem


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _positional(model: nn.Module, shapes: tuple[Any, ...]) -> dict[str, Any]:
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    if len(names) < len(shapes) or any(name in ("args", "kwargs") for name in names[: len(shapes)]):
        raise TypeError("positional arguments without names")
    return dict(zip(names, shapes, strict=False))


def _batch(x: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(x, Tensor) and x.ndim and x.shape[0] > 1 else None


def _check(model: nn.Module, example: Example) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"model must be an nn.Module, got {type(model).__name__}")
    args, kwargs = arguments(example)
    tensors = leaves((args, kwargs))
    if not tensors:
        raise TraceError(
            f"the example holds no tensor: {example!r}; give a tensor, a tuple of arguments or a dict of them"
        )
    weight = next(model.parameters(), None)
    if weight is None:
        raise TraceError(f"{type(model).__name__} has no parameters")
    for x in tensors:
        if x.device != weight.device:
            raise TraceError(f"the example is on {x.device} and the model on {weight.device}; move one to the other")
        if x.is_floating_point() and x.dtype != weight.dtype:
            raise TraceError(f"the example is {x.dtype} and the model {weight.dtype}; convert one: example.to(dtype)")
    try:
        with evaluating(model), torch.no_grad():
            call(model, example)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} fails on the example: {_first_line(error)}. An example is a tensor, a tuple of "
            "positional arguments, or a dict of keyword arguments, as the model is called with"
        ) from error


def _first_line(error: Exception | None) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What torch warns of, logs and prints while it traces or copies graphs is about itself, not about the user's model."""
    was = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was)


def clone(model: nn.Module) -> nn.Module:
    """A deep copy, without gradients."""
    memo: dict[int, Any] = {}
    for theta in model.parameters():
        if theta.grad is not None:
            memo[id(theta.grad)] = None
    with quiet():
        return copy.deepcopy(model, memo)
