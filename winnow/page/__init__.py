"""PAGE: run folders as one HTML file that needs nothing else: `winnow report RUN…`."""

from __future__ import annotations

from .html import write
from .runs import Run, read

__all__ = ["Run", "read", "write"]
