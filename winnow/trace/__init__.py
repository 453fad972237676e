"""The graph of a model, and which slices of which tensors vanish together."""

from winnow.trace import contract, einsum, pointwise, shapes  # noqa: F401 - their rules are registered on import
from winnow.trace.graph import Example, arguments, call, cast, clone, evaluating, graph_of, leaves, quiet
from winnow.trace.tracer import RULES, Tracer, rule

__all__ = [
    "RULES",
    "Example",
    "Tracer",
    "arguments",
    "call",
    "cast",
    "clone",
    "evaluating",
    "graph_of",
    "leaves",
    "quiet",
    "rule",
]
