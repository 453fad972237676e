"""HOW, gating: w_g = v_g·s_g with plain L2 on both, equivalent to λΩ(‖w_g‖) for every subquadratic Ω.

D-Gating (Kolb, Frost, Bischl, Rügamer, arXiv 2509.23898) is Ω = ‖w‖^p/p with p = 2/D; single entries with their own
full-size factors are deep weight factorisation (arXiv 2502.02496) and, for D = 2, spred (arXiv 2210.01212).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch

from winnow.errors import AttachError, PenaltyError
from winnow.factors import BoundedGate, Factorisation, PlainGate, PowerGate, Product
from winnow.penalties import Lp, Penalty
from winnow.penalties.base import require_penalty
from winnow.routes.base import Lane, Route, Site
from winnow.routes.factored import FactoredLane
from winnow.starts import Balanced, Start


@final
@dataclass(frozen=True, init=False)
class Gating(Route):
    """Smooth gates. `Gating(depth=3)` is D-Gating of depth 3; `Gating(LogSum(1.0))` gates any subquadratic penalty.

    `depth` D ≥ 2, integer or real, gives Lp with p = 2/D. `start` (single entries, integer D only) replaces the shared
    gate by D full-size factors that begin as it says. Raises `PenaltyError` for a penalty that no gate can carry.
    """

    penalty: Penalty
    start: Start | None

    def __init__(
        self, penalty: Penalty | None = None, *, depth: float | None = None, start: Start | None = None
    ) -> None:
        if (penalty is None) == (depth is None):
            raise PenaltyError(f"give either a penalty or a depth, got penalty={penalty}, depth={depth}; try depth=3")
        if depth is not None and not (isinstance(depth, Real) and math.isfinite(depth) and depth >= 2):
            raise PenaltyError(f"depth must be a finite number >= 2, got {depth!r}; try depth=3")
        if start is not None and not isinstance(start, Start):
            raise PenaltyError(
                f"start must be a start such as Balanced() or Gap(1.0), got {start!r}; leave it out for gates"
            )
        chosen = Lp(2 / depth) if depth is not None else penalty
        require_penalty(chosen, "a depth goes by name: Gating(depth=3)")
        object.__setattr__(self, "penalty", chosen)
        object.__setattr__(self, "start", start)
        self.factorisation()

    def factorisation(self) -> Factorisation:
        """The coordinates for this penalty (dictionary section 6.4's last column)."""
        penalty = self.penalty
        if self.start is not None:
            count = round(2 / penalty.p) if isinstance(penalty, Lp) else 0
            if count < 2 or not math.isclose(count, 2 / getattr(penalty, "p", 1)):
                raise PenaltyError(f"full-size factors need Lp with 2/p an integer >= 2, got {penalty}; try depth=3")
            return Product(count, self.start)
        if isinstance(penalty, Lp):
            if penalty.p >= 2:
                raise PenaltyError(f"{penalty} is plain weight decay and has no gate; use p < 2, or Decay({penalty})")
            depth = 2 / penalty.p
            depth = float(round(depth)) if math.isclose(depth, round(depth), rel_tol=1e-12) else depth
            return PowerGate(depth) if penalty.p <= 1 else PlainGate(penalty)
        if math.isinf(penalty.slope_at_zero):  # its gate's decay is infinite at zero; Lp alone has a power gate
            raise PenaltyError(
                f"no gate carries {penalty}, whose slope at zero is infinite; use Lp and scale the strength"
            )
        if math.isfinite(penalty.knot):
            return BoundedGate(penalty)
        penalty.dual_slope(torch.ones(1))  # raises PenaltyError where there is no dual
        return PlainGate(penalty)

    def check(self, site: Site, optimizer: torch.optim.Optimizer) -> None:
        if self.start is not None and site.groups.size > 1:
            raise AttachError(
                f"full-size factors act on single entries, but {site.name!r} has {site.groups}; "
                "use where=Elements(), or drop start= to gate groups"
            )

    def lane(self, site: Site, optimizer: torch.optim.Optimizer) -> Lane:
        return FactoredLane(site, self.factorisation())

    @property
    def holds_zero(self) -> bool:
        return isinstance(self.start, Balanced)

    @property
    def reach(self) -> float:
        """16/D for Lp (D-Gating section 2.4); 8 for penalties that act like L1 near zero."""
        return 8 * self.penalty.p if isinstance(self.penalty, Lp) else 8.0
