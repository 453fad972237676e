"""PAGE: run folders as one HTML file that needs nothing else: `winnow report RUN…`."""

from __future__ import annotations

from .html import write
from .runs import Run, read, read_all
from .still import KINDS, draw

__all__ = ["KINDS", "Run", "draw", "read", "read_all", "write"]
