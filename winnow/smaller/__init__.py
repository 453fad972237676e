"""THEN: take the zeros out and prove that nothing else changed."""

from winnow.smaller.compact import compact
from winnow.smaller.proof import Proof, difference, macs

__all__ = ["Proof", "compact", "difference", "macs"]
