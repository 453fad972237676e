"""The proof: both models run on the example and on other inputs, and what came of it in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from winnow.errors import ProofError
from winnow.trace import Example, arguments, call, cast, evaluating, leaves

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference of outputs allowed, relative to the largest output: some thousand roundings, as sums are reordered."""
ROUNDS = 3
RANDOM = 1e-3
"""A relative difference between two calls that no order of sums explains."""


def within(errors: Mapping[str, float]) -> bool:
    """Whether relative differences, by dtype's name, are within `TOLERANCES`."""
    return all(error <= TOLERANCES[getattr(torch, name)] for name, error in errors.items())


@final
@dataclass(frozen=True)
class Proof:
    """What was compared, and what became smaller. Counts are (before, after)."""

    errors: Mapping[str, float]
    """Per dtype, the largest |Δoutput| over the example and random inputs, divided by the largest |output|."""
    max_error: float
    """Largest |Δoutput| itself, in float32."""
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    macs: tuple[int, int]
    channels: Mapping[str, tuple[int, int]]
    """Per weight that was cut its output channels, per input its features."""
    form: str
    """The class of the smaller model, or "graph" with the reason."""
    kept: Mapping[str, int]
    """Channels that are dead but stay, by reason."""
    pinned: Mapping[str, int]
    """Channels that no zeros could remove, by reason."""
    unknown: Mapping[str, int]
    """Operators without a rule, whose inputs stay whole, and how often they occur."""

    @property
    def proved(self) -> bool:
        """Whether all differences are within `TOLERANCES`."""
        return within(self.errors)

    def __str__(self) -> str:
        errors = ", ".join(f"{error:.1e} in {name}" for name, error in self.errors.items())
        lines = [
            f"outputs {'equal' if self.proved else 'DIFFER'}: relative difference {errors}; max |Δoutput| {self.max_error:.1e}"
        ]
        counts = {"parameters": self.parameters, "bytes": self.bytes, "MACs on the example": self.macs}
        for word, (before, after) in counts.items():
            share = f" ({before / after:.2f}× fewer)" if after and after < before else ""
            lines.append(f"{word}: {before:,} → {after:,}{share}")
        if self.parameters[0] == self.parameters[1]:
            lines.append("nothing to take out: no channel is zero (in a run that is attached none is, before settle())")
        lines.append(f"form: {self.form}")
        for word, table in (("dead but kept", self.kept), ("cannot be removed", self.pinned)):
            lines += [f"{word}: {count} channels: {why}" for why, count in sorted(table.items(), key=lambda x: -x[1])]
        lines += [f"no rule for {name} ({count}×): what goes into it stays" for name, count in self.unknown.items()]
        return "\n".join(lines)


def inputs_like(example: Example, seed: int) -> Example:
    """Random inputs of the same shapes: normal with the example's mean and spread; integers shuffled."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.numel() < 2:
            return x
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.device)
            spread = x.float().std() if bool(x.float().std() > 0) else 1.0
            return (x.float().mean() + spread * noise).to(x.dtype)
        order = torch.randperm(x.numel(), generator=generator).to(x.device)
        return x.reshape(-1)[order].view(x.shape)

    args, kwargs = pytree.tree_map(fresh, arguments(example))
    return kwargs or args


@torch.no_grad()
def comparable(model: nn.Module, example: Example) -> None:
    """Raise `ProofError` for a model whose outputs cannot be compared: other ones on each call in eval mode, or none at all."""
    with evaluating(model):
        first, second = (leaves(call(model, example)) for _ in range(2))
    name = type(model).__name__
    if not all(bool(x.isfinite().any()) for x in first if x.numel()):
        raise ProofError(f"outputs of {name} on the example are not finite: are its weights, and the example?")
    apart = [
        _apart(a.double(), b.double()) if a.shape == b.shape else (math.inf, 1.0)
        for a, b in zip(first, second, strict=True)
    ]
    if any(far > RANDOM * large for far, large in apart):
        raise ProofError(
            f"{name} gives other outputs each time, in eval mode as well (random numbers in forward, dropout that does not ask "
            "self.training?), so nothing can be proved about a smaller one"
        )


@torch.no_grad()
def difference(before: nn.Module, after: nn.Module, example: Example, dtype: torch.dtype) -> tuple[float, float]:
    """(largest |Δoutput|, the same over the largest |output|) of two models in `dtype`, both in eval mode."""
    worst, scale = 0.0, 0.0
    with evaluating(before), evaluating(after):
        for seed in range(ROUNDS):
            inputs = inputs_like(example, seed) if seed else example
            inputs = cast(inputs, dtype)
            old, new = leaves(call(before, inputs)), leaves(call(after, inputs))
            if [x.shape for x in old] != [x.shape for x in new]:
                return math.inf, math.inf
            for a, b in zip(old, new, strict=True):
                far, large = _apart(a.double(), b.double())
                worst, scale = max(worst, far), max(scale, large)
    return worst, worst / scale if scale else worst


def _apart(a: Tensor, b: Tensor) -> tuple[float, float]:
    """(max |a − b|, max |a|); infinitely far if one is finite where the other is not."""
    if not a.numel():
        return 0.0, 0.0
    if not torch.equal(a.isfinite(), b.isfinite()):
        return math.inf, 1.0
    return float((a - b).nan_to_num(0, 0, 0).abs().max()), float(a.nan_to_num(0, 0, 0).abs().max())


def _attention_flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _lstm_flops(x: tuple[int, ...], w_ih: tuple[int, ...], w_hh: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * (math.prod(w_ih) + math.prod(w_hh))


_UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
}
"""What torch's counter leaves out: attention and LSTMs on a CPU."""


@torch.no_grad()
def macs(model: nn.Module, example: Example) -> int:
    """Multiply–accumulates of one call on the example: half of what torch's own counter finds."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that does it all, which is not counted
    try:
        with evaluating(model), FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
            call(model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def size(model: nn.Module) -> tuple[int, int]:
    """(parameters, bytes of parameters and buffers), tied ones once."""
    count = sum(theta.numel() for theta in model.parameters())
    held = {id(t): t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]}
    return count, sum(held.values())
