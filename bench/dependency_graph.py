"""How far a dependency graph over modules gets where `compact` works: Torch-Pruning on every model of the tests' zoo.

    pip install torch-pruning && python bench/dependency_graph.py

Both take zeros out without changing outputs. Winnow: half of all units zeroed, then `compact`. Torch-Pruning: its own pruner
picks half of every group (whole heads; output layers ignored); what makes those channels (filters, normalisations, embeddings,
biases) is zeroed, then removed; the first output before and after has to be equal. So with all groups, with each alone, and
with those together that passed alone ("trusted": as if one knew which are right). `known` and `repair` do its user's part.
"""

import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

import winnow
from winnow.jobs.report import environment, version, write_json
from winnow.trace import call, leaves
from winnow.units import zero_units

ROOT = Path(__file__).resolve().parents[1]
SECONDS, EQUAL = 60.0, 1e-5  # processor time for each step of Torch-Pruning; bar for max |Δoutput| / max |output|
QKV = dict.fromkeys(("q", "k", "v", "query", "key", "value", "q_proj", "k_proj", "v_proj", "c_attn"), 4)
HEADS = {"Llama": QKV | {"k_proj": 2, "v_proj": 2}, "fixed sizes": {"qkv": 3}}  # by the ends of layers' names; else QKV


def known(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """Every `Conv1D` of transformers as the linear layer that it is, which Torch-Pruning knows."""
    parts = [(o, k, p) for o in model.modules() for k, p in o.named_children() if type(p).__name__ == "Conv1D"]
    for owner, key, part in parts:
        setattr(owner, key, nn.Linear(part.nx, part.nf))
        owner.get_submodule(key).load_state_dict({"weight": part.weight.T, "bias": part.bias})
    return model, example


def plan(name: str, build: Any, ignored: tuple[str, ...] = ()) -> list[Any]:
    """The groups that its pruner would prune: (root layer, its pruning function, which half of its channels)."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    model, example = build(name)
    ends = {module: key.split(".")[-1] for key, module in model.named_modules()}
    skip, roots = [module for module, end in ends.items() if end in ignored], [nn.modules.conv._ConvNd, nn.Linear]
    roots += [nn.Embedding] if name == "LSTM" else []  # only there it helps; LSTM cells as roots raise IndexError
    graph = tp.DependencyGraph().build_dependency(model, example, forward_fn=call, verbose=False)
    skip += [module for module, node in graph.module2node.items() if not node.outputs]  # the layers of the outputs
    heads, ways = HEADS.get(name, QKV), {m: m.num_heads for m in ends if isinstance(m, nn.MultiheadAttention)}
    pruner = tp.pruner.BasePruner(
        model, example, tp.importance.RandomImportance(), pruning_ratio=0.5, head_pruning_ratio=0.5, ignored_layers=skip,
        num_heads={module: heads[end] for module, end in ends.items() if end in heads and module not in skip},
        prune_num_heads=True, prune_head_dims=False, in_channel_groups=dict(ways), out_channel_groups=dict(ways),
        root_module_types=roots, forward_fn=call,
    )  # fmt: skip
    chosen, names = (group[0] for group in pruner.step(interactive=True)), pruner.DG._module2name
    return [(names[dep.target.module], dep.handler.__name__, list(indices)) for dep, indices in chosen]


@torch.no_grad()
def zero(module: Any, axis: int, indices: list[int]) -> None:
    """Zero what makes these channels of a layer, or along `axis` of a parameter that belongs to none."""
    across = isinstance(module, nn.Embedding | nn.modules.conv._ConvTransposeNd)
    parts = [(getattr(module, "weight", None), int(across)), (getattr(module, "bias", None), 0)]
    if isinstance(module, nn.Parameter):
        parts = [(module, axis)]
    elif isinstance(module, nn.MultiheadAttention):
        parts = [(theta.unflatten(0, (3, -1)), 1) for theta in (module.in_proj_weight, module.in_proj_bias)]
        parts += [(theta, 0) for theta in module.out_proj.parameters()]
    for theta, along in parts:
        if theta is not None:
            theta.movedim(along, 0)[indices] = 0


def repair(model: nn.Module, tied: list[list[str]]) -> None:
    """Tie weights again, and set the sizes that classes keep for themselves."""
    for first, owner, _, end in ((names[0], *name.rpartition(".")) for names in tied for name in names[1:]):
        if torch.equal(model.get_parameter(first), getattr(model.get_submodule(owner), end)):
            setattr(model.get_submodule(owner), end, model.get_parameter(first))
    for module in model.modules():
        if isinstance(module, nn.Transformer):
            module.d_model = module.decoder.norm.normalized_shape[0]
        elif hasattr(module, "key_value_proj_dim"):  # T5's attention
            module.n_heads, module.inner_dim = module.q.out_features // module.key_value_proj_dim, module.q.out_features


def attempt(name: str, build: Any, groups: list[Any]) -> dict[str, Any]:
    """These groups zeroed, then removed: are the outputs equal, and how many parameters are left?"""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    model, example = build(name)
    every = list(model.named_parameters(remove_duplicate=False))
    tied = [[key for key, other in every if other is theta] for theta in model.parameters()]
    result: dict[str, Any] = {"groups": len(groups), "parameters": [tp.utils.count_params(model)]}
    result |= {"outcome": "fails", "at": "grouping"}
    try:
        graph, chosen = tp.DependencyGraph().build_dependency(model, example, forward_fn=call, verbose=False), []
        for key, function, indices in groups:
            root = model.get_submodule(key)
            chosen.append((root, getattr(graph.get_pruner_of_module(root), function), indices))
            for dep, those in graph.get_pruning_group(*chosen[-1]):
                if graph.is_out_channel_pruning_fn(dep.handler):
                    zero(dep.target.module, dep.target.pruning_dim, those)
        before, result["at"] = leaves(call(model, example))[0], "pruning"
        for group in chosen:
            graph.get_pruning_group(*group).prune()
        repair(model, tied)
        result["at"] = "running"
        result["parameters"].append(tp.utils.count_params(model))
        result["difference"] = float((leaves(call(model, example))[0] - before).abs().max() / before.abs().max())
        result["outcome"] = "equal" if result["difference"] <= EQUAL else "differs"
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return result


def compare(name: str, build: Any) -> dict[str, Any]:
    """Half of all units zeroed and compacted; and all groups of Torch-Pruning, each alone, those that passed alone."""
    model, example = build(name)
    start = time.process_time()
    layers = winnow.find_units(model, example)
    zero_units(model, layers, [torch.randperm(layer.count) >= max(layer.count // 2, 1) for layer in layers])
    proof = winnow.compact(model, example)[1]
    ours = {"parameters": proof.parameters, "proved": proof.proved, "form": proof.form, "seconds": time.process_time() - start}
    made, start = lambda name: known(*build(name)), time.process_time()
    try:
        every = attempt(name, made, groups := plan(name, made))
        every |= {} if groups else {"outcome": "fails", "at": "grouping", "error": "no groups"}
    except Exception as error:
        every = {"outcome": "fails", "at": "grouping", "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        groups = plan(name, made, ("q_proj", "k_proj", "v_proj"))  # Llama's: their own group is what has no end
    theirs = {"groups": len(groups), "all": every, "seconds": time.process_time() - start}
    alone = [{"root": group[:2], **attempt(name, made, [group])} for group in groups]
    passed = [group for group, result in zip(groups, alone, strict=True) if result["outcome"] == "equal"]
    theirs |= {"trusted": attempt(name, made, passed), "not trusted": [one for one in alone if one["outcome"] != "equal"]}
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {"model": name, "winnow": ours, "torch-pruning": theirs}


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from zoo import MODELS, build

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end within {SECONDS:g} s")

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, stop)
    record: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "environment": environment(), "results": []}
    record["environment"]["versions"]["torch-pruning"] = version("torch-pruning")
    print("model                 before  winnow trusted  groups     all  Torch-Pruning, all groups")
    for row in (compare(name, build) for name in MODELS):
        ours, (found, every, _, best, _) = row["winnow"], row["torch-pruning"].values()
        counts = [*ours["parameters"], best["parameters"][-1], f"{best['groups']}/{found}", every.get("parameters", "-")[-1]]
        why = f"at {every['at']}: {every['error']}" if "error" in every else f"{every['difference']:.0e}"
        print(f"{row['model']:20}", *(f"{n!s:>7}" for n in counts), "", every["outcome"], why)
        record["results"].append(row)
        write_json(ROOT / "records" / "dependency-graph.json", record)


if __name__ == "__main__":
    main()
