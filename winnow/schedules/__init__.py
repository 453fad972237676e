"""WHEN: the strength λ as a function of the step, and what happens at the end."""

from winnow.schedules.base import Clock, Gauge, Pace, Schedule
from winnow.schedules.fixed import Constant, Feedback, Geometric, Harmonic, Off, Quadratic, Ramp
from winnow.schedules.toward import Toward

__all__ = [
    "Clock",
    "Constant",
    "Feedback",
    "Gauge",
    "Geometric",
    "Harmonic",
    "Off",
    "Pace",
    "Quadratic",
    "Ramp",
    "Schedule",
    "Toward",
]
