"""COMPARE: Winnow's routes and what people use instead, under one roof: equal steps, equal tuning, the same weights counted."""

from __future__ import annotations

from collections.abc import Mapping

from . import ours, rivals, structured
from .base import Method, Setting, Training, Trial, density
from .loop import train

METHODS: dict[str, Method] = {method.name: method for method in (*rivals.METHODS, *ours.METHODS)}
"""On single weights; shares are of them."""
STRUCTURED: dict[str, Method] = {method.name: method for method in structured.METHODS}
"""On whole units; shares are of the parameters of the smaller model."""
ROSTERS: Mapping[str, Mapping[str, Method]] = {"elements": METHODS, "channels": STRUCTURED}

__all__ = ["METHODS", "ROSTERS", "STRUCTURED", "Method", "Setting", "Training", "Trial", "density", "train"]
