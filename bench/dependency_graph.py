"""How far a dependency graph over modules gets where `compact` works: Torch-Pruning on every model of the tests' zoo.

    pip install torch-pruning && python bench/dependency_graph.py

Both have to take zeros out without changing outputs. Winnow: about half of all units zeroed, then `compact`. Torch-Pruning:
its own pruner picks half of the channels of each of its groups (whole heads, where it is told the heads; the last layers
ignored); what the group says makes them (filters, neurons, normalisations behind them, biases) is zeroed in one copy of the
model and removed from another; the (first) outputs have to be equal. Then the same with each group alone, and with all those
groups together that passed alone: the best that somebody could do who knew which of its groups to trust.
"""

from __future__ import annotations

import copy
import importlib.metadata
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

import winnow
from winnow.jobs.report import environment, write_json
from winnow.trace import call, leaves
from winnow.units import zero_units

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import zoo  # noqa: E402

OUT = ROOT / "records" / "dependency-graph.json"
SECONDS = 60.0  # of processor time, for each attempt
EQUAL = 1e-5  # max |Δoutput| / max |output|
HEADS = {  # layers whose outputs are heads, by the ends of their names: what Torch-Pruning calls num_heads
    "nanoGPT": {"c_attn": 4},
    "ViT": {"q": 4, "k": 4, "v": 4},
    "fixed sizes": {"qkv": 3},
    "BERT": {"query": 4, "key": 4, "value": 4},
    "Llama": {"q_proj": 4, "k_proj": 2, "v_proj": 2},
    "T5": {"q": 4, "k": 4, "v": 4},
    "ViT of transformers": {"q_proj": 4, "k_proj": 4, "v_proj": 4},
}
ENDLESS = {"Llama": ("q_proj", "k_proj", "v_proj")}  # ignored in a second attempt: the search for their groups does not end
Group = tuple[str, bool, list[int], list[tuple[str, int, list[int]]]]  # root, of its outputs?, indices, what makes them


def within_seconds(work: Callable[[], Any]) -> Any:
    """What `work` returns, or `TimeoutError` after `SECONDS`."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end within {SECONDS:g} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def graph(model: nn.Module, example: Any) -> tp.DependencyGraph:
    return tp.DependencyGraph().build_dependency(model, example, forward_fn=call, verbose=False)


def groups_of(name: str, ignored: tuple[str, ...] = ()) -> list[Group]:
    """Torch-Pruning's groups, each with the half of its channels that the pruner would remove."""
    model, example = zoo.build(name)
    named = dict(model.named_modules())
    skip = [m for n, m in named.items() if n.endswith(ignored) and ignored]
    plain = graph(model, example)
    for group in plain.get_all_groups(ignored_layers=skip):
        if any(plain.is_out_channel_pruning_fn(dep.handler) and not dep.target.outputs for dep, _ in group):
            skip.append(group[0].dep.target.module)  # it reaches an output of the model
    ends = HEADS.get(name, {})
    heads = {m: n for end, n in ends.items() for k, m in named.items() if k.split(".")[-1] == end and m not in skip}
    several = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    pruner = tp.pruner.BasePruner(
        model, example, tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=skip, forward_fn=call,
        num_heads=heads, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5,
        in_channel_groups=dict(several), out_channel_groups=dict(several), root_module_types=[nn.modules.conv._ConvNd, nn.Linear],
    )  # fmt: skip
    weights, found = {id(p): n for n, p in model.named_parameters()}, []
    for group in pruner.step(interactive=True):
        makers = [
            (pruner.DG._module2name[m] if isinstance(m, nn.Module) else weights[id(m)], dep.target.pruning_dim, list(indices))
            for dep, indices in group
            if pruner.DG.is_out_channel_pruning_fn(dep.handler)
            and (m := dep.target.module) is not None and (m in named.values() or id(m) in weights)
        ]  # fmt: skip
        root = group[0].dep
        outward = pruner.DG.is_out_channel_pruning_fn(root.handler)
        found.append((pruner.DG._module2name[root.target.module], outward, list(group[0].idxs), makers))
    return found
