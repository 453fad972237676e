"""The smaller model itself: the user's class with cut weights, or, where `forward` holds fixed sizes, its graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from winnow.errors import TraceError
from winnow.smaller.plan import Plan, new_shape
from winnow.trace import Example, Tracer, arguments, clone, graph_of, quiet
from winnow.trace.tracer import argument, operator

Select = Callable[[Tracer], Plan]
"""What is to go, told of one traced graph; a model may be traced more than once."""

RECIPE = "winnow"
"""Under which a smaller graph's `meta` says how to make it again from the model it came from."""

SIZES: dict[type[nn.Module], dict[str, int]] = {
    nn.Linear: {"out_features": 0, "in_features": 1},
    nn.Embedding: {"num_embeddings": 0, "embedding_dim": 1},
    nn.EmbeddingBag: {"num_embeddings": 0, "embedding_dim": 1},
}
"""Attributes of torch's own modules that repeat a length of their weight."""


def memory_format(theta: Tensor) -> torch.memory_format:
    """That of a convolution's weight which its owner keeps channels last, else the usual one.

    By the strides: `is_contiguous` says yes to both where channels or kernels are of length 1.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(theta.dim())
    if last is None:
        return torch.contiguous_format
    plain, strides = (
        torch.empty(theta.shape, device="meta", memory_format=form).stride() for form in (torch.contiguous_format, last)
    )
    return last if theta.stride() == strides != plain else torch.contiguous_format


@torch.no_grad()
def cut(theta: Tensor, keep: Mapping[int, Tensor]) -> Tensor:
    """The entries that stay, a copy in the same memory format."""
    form = memory_format(theta)
    for axis, indices in keep.items():
        theta = theta.index_select(axis, indices.to(theta.device))
    return theta.clone(memory_format=form)


@torch.no_grad()
def cut_weights(module: nn.Module, plan: Plan) -> None:
    """Fold and cut all weights of a module or graph by name, in place; tied weights stay tied."""
    done: dict[int, Tensor] = {}
    first: dict[int, tuple[str, Tensor]] = {}
    for name, theta in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if name in plan.keep or name in plan.folds:
            first.setdefault(id(theta), (name, theta))
    for name, theta in first.values():
        value = theta.detach()
        if name in plan.folds:
            value = (value.double() + plan.folds[name].to(value.device)).to(value.dtype)
        value = cut(value, plan.keep.get(name, {}))
        done[id(theta)] = nn.Parameter(value, theta.requires_grad) if isinstance(theta, nn.Parameter) else value
    for owner in module.modules():
        tables: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for table in tables:
            table.update({key: done[id(theta)] for key, theta in table.items() if id(theta) in done})


def resize(module: nn.Module) -> None:
    """Attributes of torch's modules set to what their weights say."""
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        for kind, sizes in SIZES.items():
            if isinstance(part, kind):
                for key, axis in sizes.items():
                    setattr(part, key, weight.shape[axis])
        if isinstance(part, nn.modules.conv._ConvNd):
            _resize_convolution(part, weight)
        elif isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
            vars(part)["num_features"] = len(weight)
        elif isinstance(part, nn.GroupNorm):  # groups were removed whole
            part.num_groups, part.num_channels = part.num_groups * len(weight) // part.num_channels, len(weight)
        elif type(part).__name__ == "Conv1D" and hasattr(part, "nf"):  # transformers' linear, stored transposed
            vars(part).update(nf=weight.shape[1], nx=weight.shape[0])


def _resize_convolution(part: Any, weight: Tensor) -> None:
    a, b = weight.shape[:2]
    if part.transposed:
        part.in_channels, part.out_channels = a, b * part.groups
    elif part.groups == 1:
        part.in_channels, part.out_channels = b, a
    else:  # groups were removed whole
        part.groups = part.groups * a // part.out_channels
        part.in_channels, part.out_channels = b * part.groups, a


def same_class(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model, of its own class, with the weights cut; whether it runs is for the proof to say."""
    small = clone(model)
    cut_weights(small, plan)
    resize(small)
    return small


# ---- the graph ---------------------------------------------------------------------------------------------------


def as_graph(model: nn.Module, example: Example, select: Select, inputs: bool = False) -> fx.GraphModule:
    """The model's graph, batch size free where possible, with the weights cut and every fixed size set right."""
    tracer = Tracer(graph_of(model, example, free=True), features=inputs).run()
    plan = select(tracer)
    with quiet():
        graph_module = copy.deepcopy(tracer.module)
    copies = dict(zip(tracer.module.graph.nodes, graph_module.graph.nodes, strict=True))
    for node, twin in copies.items():
        if node.op == "call_function":
            _patch(tracer, plan, node, twin)
    for twin in list(graph_module.graph.nodes):
        if twin.op == "call_module" and twin.target == "_guards_fn":
            graph_module.graph.erase_node(twin)
    for node, twin in copies.items():
        if node.op == "placeholder" and node.name in plan.inputs:
            _select(graph_module, twin, *plan.inputs[node.name])
    result = fx.GraphModule(graph_module, graph_module.graph)
    cut_weights(result, plan)
    result.recompile()
    result.meta[RECIPE] = _recipe(model, example, plan) | {"inputs": inputs}
    return result


def _recipe(model: nn.Module, example: Example, plan: Plan) -> dict[str, Any]:
    """Shapes of the model and of a call, and the indices kept: plain numbers, for a file."""
    keep = {name: {str(axis): kept.tolist() for axis, kept in axes.items()} for name, axes in plan.keep.items()}
    base = {name: list(theta.shape) for name, theta in model.state_dict().items()}
    earlier = model.meta.get(RECIPE) if isinstance(model, fx.GraphModule) else None
    if earlier is not None:  # cut a second time: one cut, as seen from the first model
        base = earlier["base"]
        for name, axes in earlier["keep"].items():
            for axis, kept in axes.items():
                again = keep.setdefault(name, {}).get(axis)
                keep[name][axis] = kept if again is None else [kept[i] for i in again]
    args, kwargs = arguments(example)
    spec = {name: _spec(x) for name, x in kwargs.items()}
    return {"base": base, "args": [_spec(x) for x in args], "kwargs": spec, "keep": keep}


def _select(module: fx.GraphModule, placeholder: fx.Node, axis: int, kept: Tensor) -> None:
    """Only the features that are read, right behind an input that has them all."""
    name = f"kept_{placeholder.name}"
    module.register_buffer(name, kept.to(next(module.parameters()).device))
    users = list(placeholder.users)
    with module.graph.inserting_after(placeholder):
        index = module.graph.get_attr(name)
    with module.graph.inserting_after(index):
        chosen = module.graph.call_function(torch.ops.aten.index_select.default, (placeholder, axis, index))
    for user in users:
        user.replace_input_with(placeholder, chosen)


def _spec(x: Any) -> Any:
    """A tensor's shape and type; of anything else the value."""
    if isinstance(x, Tensor):
        return {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
    return {"value": x}


def _patch(tracer: Tracer, plan: Plan, node: fx.Node, twin: fx.Node) -> None:
    name = operator(node)
    if name in ("aten.view", "aten.reshape", "aten.expand", "aten._unsafe_view", "aten.broadcast_to"):
        sizes = new_shape(plan, tracer, node)
        given = list(twin.args[1])  # type: ignore[arg-type]
        new = [
            g if n is None or g == -1 else n if isinstance(g, int) else -1 for g, n in zip(given, sizes, strict=True)
        ]
        twin.args = (twin.args[0], new, *twin.args[2:])
    elif name == "aten.unflatten":
        _unflatten(tracer, plan, node, twin)
    elif name in ("aten.split", "aten.split_with_sizes", "aten.chunk"):
        _split(tracer, plan, node, twin)
    elif name in ("aten.slice", "aten.select"):
        _slice(tracer, plan, node, twin)
    elif name == "aten.group_norm":
        after = new_shape(plan, tracer, node)[1]
        if after is not None:
            twin.args = (twin.args[0], int(node.args[1]) * after // tracer.sizes(node)[1], *twin.args[2:])  # type: ignore[arg-type]
    elif name in ("aten.conv1d", "aten.conv2d", "aten.conv3d") and int(argument(node, 6, "groups", 1)) > 1:
        groups, before = int(argument(node, 6, "groups", 1)), tracer.sizes(node)[1]
        after = new_shape(plan, tracer, node)[1]
        if after is not None:
            filled = [*twin.args, *[None] * (7 - len(twin.args))]
            for i, (key, default) in enumerate({"bias": None, "stride": 1, "padding": 0, "dilation": 1}.items(), 2):
                filled[i] = argument(twin, i, key, default)
            twin.args, twin.kwargs = (*filled[:6], groups * after // before), {}


def _unflatten(tracer: Tracer, plan: Plan, node: fx.Node, twin: fx.Node) -> None:
    axis = int(argument(node, 1, "dim")) % len(tracer.sizes(node.args[0]))
    sizes, given = new_shape(plan, tracer, node), list(argument(twin, 2, "sizes"))
    new = [g if n is None or g == -1 else n for g, n in zip(given, sizes[axis : axis + len(given)], strict=True)]
    twin.args, twin.kwargs = (twin.args[0], axis, new), {}


def _split(tracer: Tracer, plan: Plan, node: fx.Node, twin: fx.Node) -> None:
    axis = int(argument(node, 2, "dim", 0)) % len(tracer.sizes(node.args[0]))
    if plan.kept_along(tracer.layout(node.args[0]), axis) is None:
        return
    pieces = tracer.layouts[node]
    assert isinstance(pieces, tuple)
    sizes = []
    for piece in pieces:
        kept = plan.kept_along(piece, axis)
        sizes.append(piece.shape[axis] if kept is None else len(kept))
    twin.target = torch.ops.aten.split_with_sizes.default
    twin.args, twin.kwargs = (twin.args[0], sizes, axis), {}


def _slice(tracer: Tracer, plan: Plan, node: fx.Node, twin: fx.Node) -> None:
    source = tracer.layout(node.args[0])
    axis = int(argument(node, 1, "dim", 0)) % len(source.shape)
    kept = plan.kept_along(source, axis)
    if kept is None:
        return
    size = source.shape[axis]
    if operator(node) == "aten.select":
        index = int(argument(node, 2, "index")) % size
        twin.args, twin.kwargs = (twin.args[0], axis, int((kept < index).sum())), {}
        return
    start, end, step = (
        argument(node, i, key, default) for i, key, default in ((2, "start", 0), (3, "end", size), (4, "step", 1))
    )
    if step != 1 or not all(isinstance(x, int) or x is None for x in (start, end)):
        raise TraceError(
            f"{node.name} takes every {step}th channel of a layer that loses some; this cannot be rewritten"
        )
    bounds = [0 if start is None else start, size if end is None else min(end, size)]
    bounds = [b + size if b < 0 else b for b in bounds]
    twin.args, twin.kwargs = (twin.args[0], axis, *(int((kept < b).sum()) for b in bounds), 1), {}
