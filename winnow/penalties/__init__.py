"""WHAT: what does one group's magnitude cost?

The objective is F(w) = L(w) + λ·Σ Ω(‖w_g‖). Letters, here and in spec/:

    w     the weights of one group          r     its magnitude ‖w‖ >= 0, the argument of every method
    λ     strength, outside of a penalty     Ω     ``value``: the cost of magnitude r, λ = 1
    Ω'    ``slope``                          η     how freely a group may be large: 0 is dead, ∞ pays no more
    η̂(r)  ``eta``: r/Ω'(r), the best η       f     ``dual``: Ω(r) = ½ min over η of [r²/η + f(η)]
    p, q  of Lp: Ω = r^p/p, f = η^q/q        D     ``depth`` 2/p: the number of factors that make Lp
    t     lr·λ; η̂/(η̂ + t) is ``keep``        α     η/(η + c), a bounded gate squared; φ(α) = f(η)

One class is one penalty; ``Scaled`` varies it. Small print of each method: ``Penalty``.
"""

from winnow.penalties.base import Penalty, Scaled
from winnow.penalties.classical import MCP, SCAD, Fair, Garrote, Log2Sum, LogSum, Lp
from winnow.penalties.noise import HardConcrete, Standout, VariationalDropout, VariationalDropoutFit

L1 = Lp(1.0)

__all__ = [
    "L1",
    "MCP",
    "SCAD",
    "Fair",
    "Garrote",
    "HardConcrete",
    "Log2Sum",
    "LogSum",
    "Lp",
    "Penalty",
    "Scaled",
    "Standout",
    "VariationalDropout",
    "VariationalDropoutFit",
]
