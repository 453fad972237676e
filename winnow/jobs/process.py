"""PROCESS: what a job sets for its whole process, which a library must leave alone."""

from __future__ import annotations

import ctypes

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # mallopt's names of its settings
KEEP = 2**31 - 1


def prepare(threads: int | None = None) -> None:
    """Before a training on a CPU: denormals are zero, freed memory stays with the process, torch's threads if given."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # dying weights are denormal for a while, and those make a CPU crawl
    keep_memory()


def keep_memory() -> bool:
    """Have glibc's malloc keep what is freed; whether it could be told so.

    As it comes it returns large blocks to the kernel at once, and every training step then takes its megabytes anew, a
    page fault for every 4 kB of them: with two trainings side by side up to a quarter of a small model's step
    (bench/memory.py).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    settings = ((TRIM_THRESHOLD, KEEP), (TOP_PAD, 64 * 2**20), (MMAP_THRESHOLD, KEEP))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings)
