"""TEXTS: the four publications and the dictionary between them, in our words."""

from .base import Paper

PILOT = Paper(
    "pilot",
    "Masking: PILoT",
    "Tom Jacobs, Rebekka Burkholz, *Mask in the Mirror: Implicit Sparsification*, ICLR 2025, arXiv 2408.09966; Sign-In, "
    "arXiv 2504.12801; HAM, arXiv 2506.02630.",
    """
Write every weight as a product x = m·v and put L2 of strength λ_t on both factors (λ = 2α in the paper's letters).
Gradient flow on m and v is then a mirror flow on x, and its geometry is a matter of the gap m² − v², which shrinks as
β·e^(−2Λ), Λ the dose of λ so far: a wide gap treats x like L2 does, a closed one like L1. A strength that is high first
and then falls to zero therefore leaves a sparse *bias* and no penalty on what survives. [How to use it](../masking.md).
""",
)

DROPOUT = Paper(
    "dropout",
    "Adaptive dropout: the reweighted coin",
    "Daniel LeJeune, Hamid Javadi, Richard G. Baraniuk, *The Flip Side of the Reweighted Coin: Duality of Adaptive Dropout "
    "and Regularization*, NeurIPS 2021, arXiv 2106.07769.",
    """
Multiply each weight by noise of mean 1 whose variance is large for small weights. In a linear model the expected loss
gains exactly one reweighted ridge problem, and resetting the variance from the weights turns the pair into descent on a
subquadratic penalty: adaptive dropout, the η-trick and the penalty are the same objective. Which penalty a dropout
strategy stands for is then a matter of calculus. [How to use it](../dropout.md).
""",
)

DECAY = Paper(
    "decay",
    "Decay: p-norm weight decay",
    "Nadav Joseph Outmezguine, Noam Levi, *Decoupled Weight Decay for Any p Norm*, 2024, arXiv 2404.10824.",
    """
After any optimizer's step, shrink every weight by X/(X + lr·λ) with X = |w|^(2−p) from before the step. For p = 2 that
is decoupled weight decay, up to O(lr²); for p < 1, and for p = 1 where the loss pulls with less than λ, weights fall to
exact zero and stay there, the last stretch, below (lr·λ)^(1/(2−p)), in some ten steps. No proximal map has to be solved
and nothing diverges at zero. [How to use it](../decay.md).
""",
)

GATING = Paper(
    "gating",
    "Gating: D-Gating and deep weight factorisation",
    "Chris Kolb, Laetitia Frost, Bernd Bischl, David Rügamer, *Differentiable Sparsity via D-Gating: Simple and Versatile "
    "Structured Penalization*, NeurIPS 2025, arXiv 2509.23898; Kolb, Weber, Bischl, Rügamer, *Deep Weight Factorization*, "
    "ICLR 2025, arXiv 2502.02496.",
    """
Multiply every group of weights by D − 1 scalar gates and put plain L2 on the group and its gates. At balance the L2
costs exactly λ·(D/2)·‖w‖^(2/D): a non-smooth, for D > 2 non-convex group penalty, minimised by ordinary differentiable
training, with the same local minima (λ = 2·λ_paper/D). Imbalance dies at the rate 2λ, so the smooth problem becomes the
sparse one as training goes on. [How to use it](../gating.md).
""",
)

DICTIONARY = Paper(
    "dictionary",
    "One dictionary: the same penalty on every route",
    "[PILoT](pilot.md), [adaptive dropout](dropout.md), [p-norm decay](decay.md) and [D-Gating](gating.md) in one convention: "
    "F(w) = L(w) + λΣΩ(‖w_g‖).",
    """
Decay, reweighting, dropout, gates and masks are five mechanics for one objective. With one convention for the penalty
(Ω_p = |w|^p/p) the same number λ means the same thing on each of them, and a gate w = v·s with penalty (λ/2)(‖v‖² +
f(s²)), f the dual of Ω, carries LogSum and variational dropout's penalty as well; penalties that end in a plateau (MCP,
SCAD) take a gate bounded by 1, p < 2/3 a power gate. [The objective](../objective.md).
""",
)

PAPERS = (PILOT, DROPOUT, DECAY, GATING, DICTIONARY)
