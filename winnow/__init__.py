"""Winnow: train any PyTorch model sparse with the optimizer and loop you have.

One objective, L(w) + λ·ΣΩ(‖w_g‖), said in words: WHAT (`penalties`), WHERE (`groups`), HOW (`routes`) and WHEN
(`schedules`).
"""

from importlib.metadata import PackageNotFoundError, version

from winnow import recipes
from winnow.census import Layer
from winnow.certificate import Certificate
from winnow.counts import MACs, Parameters
from winnow.curve import Path, Point, choose, pick
from winnow.errors import WinnowError, WinnowWarning
from winnow.export import export
from winnow.files import load, save
from winnow.groups import NM, Axes, Blocks, Columns, Elements, Grouping, Heads, Rows
from winnow.hold import hold
from winnow.ladder import path
from winnow.measure import Measured, measure
from winnow.penalties import (
    L1,
    MCP,
    SCAD,
    Fair,
    Garrote,
    HardConcrete,
    Log2Sum,
    LogSum,
    Lp,
    Penalty,
    Scaled,
    Standout,
    VariationalDropout,
    VariationalDropoutFit,
)
from winnow.routes import (
    Bernoulli,
    Decay,
    Dropout,
    Expected,
    Gating,
    Gaussian,
    Hyperbolic,
    Latent,
    Local,
    Masking,
    Route,
    Variational,
    WeightNoise,
)
from winnow.run import Run, attach
from winnow.runtime import to_runtime
from winnow.schedules import Constant, Feedback, Geometric, Harmonic, Off, Pace, Quadratic, Ramp, Schedule, Toward
from winnow.sites import Channels
from winnow.smaller import Proof, compact, magnitude, remove
from winnow.starts import Balanced, Truncated
from winnow.units import UnitLayer, find_units

try:
    __version__ = version("torch-winnow")
except PackageNotFoundError:  # running from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "L1",
    "MCP",
    "NM",
    "SCAD",
    "Axes",
    "Balanced",
    "Bernoulli",
    "Blocks",
    "Certificate",
    "Channels",
    "Columns",
    "Constant",
    "Decay",
    "Dropout",
    "Elements",
    "Expected",
    "Fair",
    "Feedback",
    "Garrote",
    "Gating",
    "Gaussian",
    "Geometric",
    "Grouping",
    "HardConcrete",
    "Harmonic",
    "Heads",
    "Hyperbolic",
    "Latent",
    "Layer",
    "Local",
    "Log2Sum",
    "LogSum",
    "Lp",
    "MACs",
    "Masking",
    "Measured",
    "Off",
    "Pace",
    "Parameters",
    "Path",
    "Penalty",
    "Point",
    "Proof",
    "Quadratic",
    "Ramp",
    "Route",
    "Rows",
    "Run",
    "Scaled",
    "Schedule",
    "Standout",
    "Toward",
    "Truncated",
    "UnitLayer",
    "Variational",
    "VariationalDropout",
    "VariationalDropoutFit",
    "WeightNoise",
    "WinnowError",
    "WinnowWarning",
    "attach",
    "choose",
    "compact",
    "export",
    "find_units",
    "hold",
    "load",
    "magnitude",
    "measure",
    "path",
    "pick",
    "recipes",
    "remove",
    "save",
    "to_runtime",
]
