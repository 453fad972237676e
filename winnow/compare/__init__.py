"""COMPARE: Winnow's routes and what people use instead, under one roof: equal steps, equal tuning, the same weights counted."""

from __future__ import annotations

from . import ours, rivals
from .base import Method, Setting, Training, density
from .loop import train

METHODS: dict[str, Method] = {method.name: method for method in (*rivals.METHODS, *ours.METHODS)}

__all__ = ["METHODS", "Method", "Setting", "Training", "density", "train"]
