"""The papers' methods as points of HOW × WHERE × WHEN, with their published settings; strengths in this library's λ.

Each recipe only builds the words; give them your model and optimizer through `attach(model, optimizer, **recipe)`:

    run = winnow.attach(model, optimizer, **recipes.d_gating(depth=3, strength=1e-4))
"""

from __future__ import annotations

from typing import Any

from winnow.groups import Elements, Grouping, Rows
from winnow.penalties import LogSum, Lp, Penalty
from winnow.routes import Decay, Dropout, Gating, Hyperbolic, Masking, Route
from winnow.schedules import Feedback, Schedule, Toward
from winnow.sites import Where
from winnow.starts import Balanced, Truncated

Words = dict[str, Any]


def pilot(epochs: int, strength: float = 2e-4, delta: float = 1.02, K: float = 0.0, beta: float = 1.0) -> Words:
    """PILoT (Jacobs, Burkholz, arXiv 2408.09966): m ⊙ v with gap β = 1 and the per-epoch controller.

    `strength` is λ = 2·alpha_init.  Use SGD with momentum 0.9 at twice the dense learning rate, and call
    `run.feedback(training_accuracy)` at the end of every epoch.  δ, K and alpha_init are ours; the paper leaves them open.
    """
    return {"how": Masking(beta), "where": Elements(), "when": Feedback(epochs, strength, delta, K)}


def sign_in(beta: float = 1.0) -> Words:
    """Sign-In (Gadhikar et al., arXiv 2504.12801): m ⊙ v without a penalty, for training under a mask of your own.

    Call `run.rebalance(beta)` every few epochs: without the reset the gap dies and signs freeze.  How often is open there.
    """
    return {"how": Masking(beta), "where": Elements(), "when": 0.0}


def ham(alpha: float = 200.0, strength: Schedule | float = 1e-3) -> Words:
    """HAM (Jacobs et al., arXiv 2506.02630) as its authors run it, ρ = lr also under momentum; their β is λ.

    It makes no zeros by itself: combine it with a mask, or give a target (`when=Toward(density=…, steps=…)`).
    """
    return {"how": Hyperbolic(alpha, rescale=False), "where": Elements(), "when": strength}


def d_gating(depth: float = 3, strength: Schedule | float = 1e-4, where: Where | None = None) -> Words:
    """D-Gating (Kolb et al., arXiv 2509.23898): gates at 1, weights untouched; the paper's λ is λ·D/2.

    One group per row (neuron or filter) unless said otherwise; SGD momentum 0.9, cosine to 0, D in {3, 4}.
    """
    return {"how": Gating(depth=depth), "where": where or Rows(), "when": strength}


def deep_weight_factorisation(depth: int = 3, strength: Schedule | float = 1e-4, seed: int = 0) -> Words:
    """Deep weight factorisation (Kolb et al., arXiv 2502.02496): D full-size factors from the truncated draw (ε = ¼σ_w).

    Draws new weights, so use it from scratch; needs larger learning rates than plain training.
    """
    return {"how": Gating(depth=depth, start=Truncated(seed)), "where": Elements(), "when": strength}


def spred(strength: Schedule | float = 1e-4) -> Words:
    """spred (Ziyin, Wang, arXiv 2210.01212), balanced start: w = u ⊙ v with weight decay κ = λ on both, exactly the lasso."""
    return {"how": Gating(depth=2, start=Balanced()), "where": Elements(), "when": strength}


def p_norm_decay(p: float = 0.8, strength: Schedule | float = 8e-4, where: Grouping | None = None) -> Words:
    """p-norm weight decay (Outmezguine, Levi, arXiv 2404.10824) as its authors run it, under Adam, λ = p·λ_c.

    Under Adam its strength is relative to the gradients' RMS; `Decay(Lp(p), metric="adaptive")` makes it absolute.
    """
    return {"how": Decay(Lp(p), rescale=False), "where": where or Elements(), "when": strength}


def adaptive_dropout(penalty: Penalty | None = None, strength: Schedule | float = 1e-3) -> Words:
    """Adaptive dropout (LeJeune et al., arXiv 2106.07769) with the notebooks' LogSum(2) and tolerance 0.05."""
    return {"how": Dropout(penalty or LogSum(2.0)), "where": Elements(), "when": strength}


def auto(density: float, steps: int, where: Where | None = None) -> Words:
    """Toward a density by a route that does well wherever it was tried (docs/league.md, league-units.md, rates.md).

    A gate of depth 2.  Under Adam, on single weights, it does best at `rate` times the learning rate of dense training.
    """
    return {"how": best(), "where": where or Elements(), "when": Toward(density, steps)}


def best() -> Route:
    """The route `auto` takes."""
    return Gating(depth=2)


def rate(single: bool, adaptive: bool) -> float:
    """By how much the learning rate should be above that of dense training for `auto`'s route (docs/rates.md)."""
    return 3.0 if single and adaptive else 1.0
