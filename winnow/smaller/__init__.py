"""THEN: take the zeros out and prove that nothing else changed."""

from winnow.smaller.compact import compact
from winnow.smaller.proof import Proof, difference, macs
from winnow.smaller.remove import magnitude, remove

__all__ = ["Proof", "compact", "difference", "macs", "magnitude", "remove"]
