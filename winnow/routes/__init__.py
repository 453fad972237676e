"""HOW: the routes down L(w) + λ·ΣΩ(‖w_g‖). One file each; no route imports another."""

from winnow.routes.base import Route
from winnow.routes.decay import Decay
from winnow.routes.dropout import Bernoulli, Dropout, Expected, Gaussian
from winnow.routes.gating import Gating
from winnow.routes.hyperbolic import Hyperbolic
from winnow.routes.latent import Latent
from winnow.routes.masking import Masking
from winnow.routes.variational import Local, Variational, WeightNoise

__all__ = [
    "Bernoulli",
    "Decay",
    "Dropout",
    "Expected",
    "Gating",
    "Gaussian",
    "Hyperbolic",
    "Latent",
    "Local",
    "Masking",
    "Route",
    "Variational",
    "WeightNoise",
]
