"""PROCESS: what a job sets for its whole process, which a library must leave alone."""

from __future__ import annotations

import torch


def prepare(threads: int | None = None) -> None:
    """Before a training: denormals are zero, and torch's threads if given."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # dying weights are denormal for a while, and those make a CPU crawl
