"""No silent failure: what is said, as a `WinnowWarning`, before, during and after training."""
from __future__ import annotations

def at_start(model, optimizer, how, schedule, sites): pass
def under_way(run): pass
def at_end(run): pass
