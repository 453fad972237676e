"""Which weights are penalised, and how they are grouped: `where=` resolved against a model and its optimizer."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from torch.optim import Optimizer

from winnow.counts import Count, Spending
from winnow.errors import AttachError, GroupError, warn
from winnow.groups import Grouping, Groups, Rows
from winnow.routes.base import Share, Site
from winnow.trace import Example
from winnow.units import UnitLayer, read_units


@final
@dataclass(frozen=True, eq=False)
class Channels:
    """WHERE, for zeros that can be taken out: one group per channel, neuron or head, with its slices of all weights.

    `example` is what the model is called with, as in `winnow.compact`.  Groups are those of `find_units`; weights that
    belong to no unit are not penalised.  `weighted=True` multiplies each group's penalty by √size.

    `count` is what a density is a share of, in `Toward`, `run.density()` and `run.cut()`: `MACs()` or `Parameters()` of the
    smaller model.  Without it, units count with the entries of all weights that go with them.

    `inputs=True` makes a group of every feature of the model's inputs too (the weights that read it), for feature selection;
    `compact(…, inputs=True)` takes them out.  Groups must not overlap, so neurons that are made of these same weights are
    then no groups of their own (filters with a normalisation behind them still are).

    `only` takes the layers of units of which some weight's name matches a shell-style pattern, as ("*attn*", "*mlp*").
    """

    example: Example
    weighted: bool = False
    count: Count | None = None
    inputs: bool = False
    only: Sequence[str] = ("*",)


Where = Grouping | Mapping[str, Grouping] | Channels
Owners = Mapping[nn.Parameter, tuple[tuple[nn.Module, str], ...]]
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def find_sites(model: nn.Module, optimizer: Optimizer, where: Where) -> tuple[list[Site], Spending | None]:
    """The penalised weights, and what a density of them is a share of, if that is not the sum of their entries.

    A `Grouping` takes every trainable weight of two or more dimensions that the optimizer holds; a mapping takes the
    weights whose names match its shell-style patterns ("fc*.weight"), each exactly once.  Tied weights count once and
    may be named by any of their names.  Raises `AttachError` or `GroupError`, naming what would have fitted.
    """
    names, owners = _names(model)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if isinstance(where, Channels):
        return _unit_sites(model, optimizer, where, held, owners)
    if isinstance(where, Grouping):
        wide = [theta for theta in names if theta.ndim >= 2 and theta.requires_grad]
        chosen = {theta: where for theta in wide if id(theta) in held}
        if not chosen:
            raise AttachError(
                "no trainable weight of two or more dimensions is held by the optimizer; "
                "build the optimizer from this model's parameters, or name the weights with where={pattern: grouping}"
            )
        if len(chosen) < len(wide):
            left = [names[theta][0] for theta in wide if theta not in chosen]
            warn(
                f"{len(left)} of {len(wide)} trainable weights are not held by this optimizer and stay dense: "
                f"{', '.join(left[:3])}{', …' if len(left) > 3 else ''}. Densities are of the others"
            )
    elif isinstance(where, Mapping) and where:
        chosen = _match(names, where)
    else:
        raise AttachError(
            f"where must be a grouping, Channels(example) or a non-empty mapping from name pattern to grouping, got {where!r}"
        )
    for theta in chosen:
        _check(names[theta][0], theta, held, owners[theta])
    return [
        Site(names[theta][0], theta, _bind(names[theta][0], theta, rule), owners[theta])
        for theta, rule in chosen.items()
    ], None


def _unit_sites(
    model: nn.Module, optimizer: Optimizer, where: Channels, held: set[int], owners: Owners
) -> tuple[list[Site], Spending | None]:
    """One site per layer of units, put together of its members' slices."""
    bare = model
    while inner := [child for name, child in bare.named_children() if name in _WRAPPERS]:
        bare = inner[0]
    tracer, every = read_units(bare, where.example, where.inputs)
    if where.count is not None and not isinstance(where.count, Count):
        raise AttachError(f"count must be MACs() or Parameters(), got {where.count!r}; leave it out to count entries")
    params = dict(bare.named_parameters(remove_duplicate=False))
    every = _some([learnt for layer in every if (learnt := layer.of(params)).members], where.only)
    read = {member.name for layer in every if layer.feature for member in layer.members}
    layers = [
        layer for layer in every if layer.count > 1 and (layer.feature or not read & {m.name for m in layer.members})
    ]
    if not layers:
        raise AttachError(f"{type(bare).__name__} has no layer with two units or more that could be removed")
    covered: dict[str, int] = {}
    for member in (m for layer in layers for m in layer.members):
        covered[member.name] = covered.get(member.name, 0) + member.indices.numel()
    sites, anchors = [], set[int]()
    for layer in layers:
        shares = []
        for member in layer.members:
            theta = params[member.name]
            _check(member.name, theta, held, ())
            if hasattr(theta, "placements"):
                raise AttachError(f"{member.name!r} is sharded, and Channels needs whole weights: use DDP instead")
            width = member.indices.shape[1] * theta.numel() // theta.shape[member.axis]
            whole = covered[member.name] == theta.shape[member.axis]
            shares.append(Share(member, theta, width, whole, owners[theta]))
        sites.append(_unit_site(layer, shares, anchors, optimizer, where.weighted))
    return sites, None if where.count is None else where.count.spending(tracer, layers)


def _some(layers: list[UnitLayer], only: Sequence[str]) -> list[UnitLayer]:
    """The layers of which some weight matches some pattern; each pattern must match one."""
    chosen: dict[int, UnitLayer] = {}
    for pattern in [only] if isinstance(only, str) else only:
        found = {i: x for i, x in enumerate(layers) if any(fnmatch.fnmatchcase(m.name, pattern) for m in x.members)}
        if layers and not found:
            raise AttachError(f"only: {pattern!r} matches none of these units: {'; '.join(map(str, layers))}")
        chosen |= found
    return [chosen[i] for i in sorted(chosen)]


def _unit_site(layer: UnitLayer, shares: list[Share], anchors: set[int], optimizer: Optimizer, weighted: bool) -> Site:
    rates = {float(g["lr"]) for s in shares for g in optimizer.param_groups if any(p is s.weight for p in g["params"])}
    if len(rates) > 1:
        raise AttachError(
            f"{layer} are stepped as one group, but the optimizer has learning rates {sorted(rates)} for them; give these "
            "weights one rate"
        )
    shares.sort(key=lambda s: id(s.weight) in anchors)  # the first keeps the state, so it must be nobody else's
    if id(shares[0].weight) in anchors:
        raise AttachError(f"{layer} share all their weights with other units; leave this layer out with a mapping")
    anchors.add(id(shares[0].weight))
    theta = nn.Parameter(torch.cat([s.member.take(s.weight.detach()) for s in shares], 1))
    return Site(layer.name, theta, Rows(weighted=weighted).bind(theta.shape), (), tuple(shares), layer.cost)


def _names(
    model: nn.Module,
) -> tuple[dict[nn.Parameter, list[str]], dict[nn.Parameter, tuple[tuple[nn.Module, str], ...]]]:
    """All names and all owners of every parameter."""
    names: dict[nn.Parameter, list[str]] = {}
    owners: dict[nn.Parameter, tuple[tuple[nn.Module, str], ...]] = {}
    for prefix, module in model.named_modules(remove_duplicate=True):
        for attribute, theta in module._parameters.items():
            if theta is None:
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            bare = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
            names.setdefault(theta, []).extend([bare] if bare == name else [bare, name])
            owners[theta] = (*owners.get(theta, ()), (module, attribute))
    return names, owners


def _match(names: Mapping[nn.Parameter, Sequence[str]], where: Mapping[str, Grouping]) -> dict[nn.Parameter, Grouping]:
    every = [name for aliases in names.values() for name in aliases]
    chosen: dict[nn.Parameter, tuple[str, Grouping]] = {}
    for pattern, rule in where.items():
        if isinstance(rule, Channels):
            raise AttachError(
                f"where[{pattern!r}] is Channels, which finds its weights itself: give where=Channels(example, "
                f"only=[{pattern!r}])"
            )
        if not (isinstance(rule, Grouping) and isinstance(pattern, str)):
            raise AttachError(
                f"where[{pattern!r}] must be a grouping such as Rows() under a name's pattern, got {rule!r}"
            )
        matched = [theta for theta, aliases in names.items() if any(fnmatch.fnmatchcase(a, pattern) for a in aliases)]
        if not matched:
            near = difflib.get_close_matches(pattern, every, n=3, cutoff=0.0)
            raise AttachError(f"pattern {pattern!r} matches no weight; the nearest names are {', '.join(near)}")
        for theta in matched:
            if theta in chosen:
                raise AttachError(
                    f"{names[theta][0]!r} matches two rules, {chosen[theta][0]!r} and {pattern!r}; make them disjoint"
                )
            chosen[theta] = (pattern, rule)
    return {theta: rule for theta, (_, rule) in chosen.items()}


def _check(name: str, theta: nn.Parameter, held: set[int], owners: Sequence[tuple[nn.Module, str]]) -> None:
    if isinstance(theta, nn.parameter.UninitializedParameter):
        raise AttachError(f"{name!r} has no shape yet; run one batch through the lazy module before attach()")
    if not theta.is_floating_point():
        raise AttachError(
            f"{name!r} has dtype {theta.dtype}, but penalties need a real floating-point weight; leave it out"
        )
    if not theta.requires_grad:
        raise AttachError(f"{name!r} is frozen (requires_grad=False); unfreeze it, or leave it out of where=")
    if id(theta) not in held:
        raise AttachError(f"{name!r} is not held by the optimizer; add it, or leave it out of where=")
    for module, _ in owners:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise AttachError(f"{name!r} belongs to an embedding with sparse gradients; build it with sparse=False")
    if not bool(torch.isfinite(theta.detach()).all()):
        raise AttachError(f"{name!r} holds values that are not finite; attach to a healthy model")


def _bind(name: str, theta: nn.Parameter, rule: Grouping) -> Groups:
    try:
        groups = rule.bind(theta.shape)
    except GroupError as error:
        raise GroupError(f"{name!r}: {error}") from None
    if (mesh := getattr(theta, "device_mesh", None)) is not None:
        try:
            groups.split(theta.detach())
        except RuntimeError as error:
            raise GroupError(
                f"{name!r}: {rule} cuts through the shards of {getattr(theta, 'placements', None)} on {mesh}; use groups "
                "whose number along the sharded axis is a multiple of the ranks, or shard the weight along another axis"
            ) from error
    return groups
