"""Noise on a weight in the forward pass only: the module, its parameters and its `state_dict` keys stay as they are.

A forward pre-hook puts a perturbed tensor in the parameter's place for the length of the call; gradients flow through
it to the parameter.  Active in training mode only.  Unlike `nn.utils.parametrize` this renames no key, unties no tied
weight and compiles with `fullgraph=True`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn


@final
class ForwardNoise:
    """Hooks on every module that holds the weight; `perturb(weight)` gives what its forward pass sees."""

    def __init__(self, owners: tuple[tuple[nn.Module, str], ...], perturb: Callable[[Tensor], Tensor]) -> None:
        self.fired = False
        self._handles: list[Any] = []
        for module, name in owners:
            self._hang(module, name, perturb)

    def _hang(self, module: nn.Module, name: str, perturb: Callable[[Tensor], Tensor]) -> None:
        shelf: list[nn.Parameter] = []

        def put(module: nn.Module, _args: Any) -> None:
            if module.training and not shelf:
                theta = module._parameters[name]
                assert theta is not None
                self.fired = True
                shelf.append(theta)
                module._parameters[name] = perturb(theta)  # type: ignore[assignment]

        def take(module: nn.Module, _args: Any, _output: Any) -> None:
            if shelf:
                module._parameters[name] = shelf.pop()

        self._handles += [
            module.register_forward_pre_hook(put),
            # innermost of the hooks, as `put` is: FSDP swaps the parameter as well, outside of ours
            module.register_forward_hook(take, always_call=True, prepend=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
