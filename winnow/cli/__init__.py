"""CLI: `winnow train digits --keep 0.1`, a network made sparse while you watch."""

from __future__ import annotations

try:
    from . import ship, study, training
    from .words import app
except ModuleNotFoundError as missing:
    raise ImportError('the winnow command needs its extra: pip install "torch-winnow[cli]"') from missing

__all__ = ["app", "ship", "study", "training"]
