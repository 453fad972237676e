"""`compact`: trace, plan, rewrite, prove."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from winnow.errors import ProofError, TraceError, warn
from winnow.smaller.plan import Plan, plan
from winnow.smaller.proof import TOLERANCES, Proof, comparable, difference, macs, size, within
from winnow.smaller.rewrite import Select, as_graph, same_class
from winnow.trace import Example, Tracer, cast, clone, graph_of
from winnow.units import ATTACHED


def compact(
    model: nn.Module, example: Example, *, inputs: bool = False, round_to: int = 1, check: bool = True
) -> tuple[nn.Module, Proof]:
    """A physically smaller model with the same outputs, and the proof.

    Channels, neurons and heads whose removal no output notices are taken out of all tensors at once: weights, biases,
    normalisations, and the inputs of what follows; constants that they emit are folded into biases.  The result is of
    the model's own class where its `forward` allows, else its graph.  The model itself is not changed.

    `inputs` takes out features of the inputs that nothing reads any more: the smaller model is called with all of them as
    before, and selects those that it reads (its buffers `kept_…`) first.

    `round_to=8` leaves a few dead channels in, so that widths are multiples of 8, which some kernels like better: `measure`
    tells.  `example` is what the model is called with: a tensor, a tuple of arguments or a dict of keyword arguments.

    Raises `TraceError` if `torch.export` cannot read the model, and `ProofError` if the outputs differ by more than
    `TOLERANCES` (`check=False` returns the proof that says so instead).
    """
    if round_to < 1:
        raise TraceError(f"round_to must be an integer >= 1, got {round_to}; 8 suits many kernels")
    graph = graph_of(model, example)
    if check:
        comparable(model, example)
    if any(hasattr(theta, ATTACHED) for theta in model.parameters()):
        warn("a run is attached to this model and not settled: its zeros are not final; call run.settle() first")
    tracer = Tracer(graph, features=inputs).run()
    select = functools.partial(plan, round_to=round_to)
    found = select(tracer)
    small, form, errors, worst = _rewrite(model, example, found, select, inputs)
    before, after = size(model), size(small)
    proof = Proof(
        errors,
        worst,
        (before[0], after[0]),
        (before[1], after[1]),
        (macs(model, example), macs(small, example)),
        _channels(tracer, found),
        form,
        found.kept,
        found.pinned,
        tracer.unknown,
    )
    if check and not proof.proved:
        raise ProofError(f"the smaller model's outputs differ; nothing was changed. {proof}")
    return small, proof


def _rewrite(
    model: nn.Module, example: Example, found: Plan, select: Select, inputs: bool
) -> tuple[nn.Module, str, dict[str, float], float]:
    """The user's class if it runs and agrees, else the graph."""
    try:
        if found.inputs:
            raise TraceError("input features are selected in front")
        small = same_class(model, found)
        errors, worst = _errors(model, example, lambda wide: same_class(wide, found))
        if within(errors):
            return small, type(model).__name__, errors, worst
        reason = "outputs of the cut class differ"
    except Exception as error:  # whatever a foreign forward raises: its sizes are fixed somewhere
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    try:
        graph = as_graph(model, example, select, inputs)
        errors, worst = _errors(
            model, example, lambda wide: as_graph(wide, cast(example, _dtype(wide)), select, inputs)
        )
    except Exception as error:
        raise ProofError(
            f"{type(model).__name__} cannot run with fewer channels ({reason}), nor can its graph ({error}); the model is "
            "unchanged"
        ) from error
    why = reason if found.inputs else f"as {type(model).__name__}.forward holds fixed sizes ({reason})"
    return graph, f"graph, {why}", errors, worst


def _errors(
    model: nn.Module, example: Example, build: Callable[[nn.Module], nn.Module]
) -> tuple[dict[str, float], float]:
    """Differences per dtype, the cutting itself done in that dtype as well; and the largest in float32."""
    errors, worst = {}, 0.0
    for dtype in TOLERANCES:
        wide = clone(model).to(dtype)
        largest, errors[str(dtype).removeprefix("torch.")] = difference(wide, build(wide), example, dtype)
        worst = largest if dtype == torch.float32 else worst
    return errors, worst


def _dtype(model: nn.Module) -> torch.dtype:
    return next(theta.dtype for theta in model.parameters() if theta.is_floating_point())


def _channels(tracer: Tracer, found: Plan) -> dict[str, tuple[int, int]]:
    sizes = {node.name: len(block.ids) for node, block in tracer.inputs.items()}
    features = {f"input {name}": (sizes[name], len(kept)) for name, (_, kept) in found.inputs.items()}
    return features | {
        name: (tracer.weights[name].shape[axis], len(found.keep[name][axis]))
        for name, axis in sorted(tracer.makers)
        if axis in found.keep.get(name, {})
    }
