"""Winnow: train any PyTorch model sparse with the optimizer and loop you have."""

from winnow.errors import WinnowError, WinnowWarning
from winnow.groups import Axes, Blocks, Columns, Elements, Grouping, Heads, Rows
from winnow.penalties import MCP, SCAD, Log2Sum, LogSum, Lp, Penalty
from winnow.routes import Bernoulli, Decay, Dropout, Expected, Gating, Gaussian, Masking, Route
from winnow.run import Run, attach
from winnow.schedules import Constant, Feedback, Geometric, Harmonic, Off, Quadratic, Ramp, Schedule, Toward
