"""PAGE: run folders as one HTML file that needs nothing else: `winnow report RUN…`."""

from __future__ import annotations

from .html import write
from .runs import Run, only, read, read_all
from .still import KINDS, draw

__all__ = ["KINDS", "Run", "draw", "only", "read", "read_all", "write"]
