"""What can go wrong, by name: every error says what was given, what was expected and what to try next."""

from __future__ import annotations

import sys
import warnings


class WinnowError(ValueError):
    """Base of all errors raised by Winnow."""


class PenaltyError(WinnowError):
    """A penalty's parameter is out of range, or it lacks what a route needs."""


class GroupError(WinnowError):
    """A grouping does not fit the tensor it was asked to cut."""


class AttachError(WinnowError):
    """`attach` was asked for something that cannot be trained so; nothing was changed."""


class CheckpointError(WinnowError):
    """A checkpoint does not belong to this run; nothing was loaded."""


class GradientError(WinnowError):
    """A gradient is not finite; the step was not taken."""


class ScheduleError(WinnowError):
    """A schedule's numbers are out of range."""


class TraceError(WinnowError):
    """A model that cannot be read or made smaller."""


class RuntimeFormatError(WinnowError):
    """A format for inference that does not exist."""


class ProofError(WinnowError):
    """A smaller model whose outputs differ from the original's."""


class FileError(WinnowError):
    """A saved model that cannot be read, or does not fit; nothing was loaded."""


class WinnowWarning(UserWarning):
    """Training goes on, but probably not the way that was meant."""


def warn(text: str) -> None:
    """A `WinnowWarning` at the line of the user's own that led here: the nearest outside Winnow and torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("winnow", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, WinnowWarning, stacklevel=level)
