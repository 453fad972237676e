"""Schedules by themselves: what they say over time, against their formulas."""

import math

import pytest

from winnow import Toward
from winnow.errors import ScheduleError
from winnow.schedules import Clock


class Gauge:
    """A fixed reading."""

    def __init__(self, balance=1.0, density=1.0, rate=1e-6):
        self.readings = balance, density, rate

    def balance(self):
        return self.readings[0]

    def density(self):
        return self.readings[1]

    def rate(self):
        return self.readings[2]


def told(when, step, gauge, memory=None):
    """λ after the schedule has looked at the gauge at this step."""
    clock = Clock(step=step, memory=when.observe(Clock(step=step, memory=memory or {}), gauge))
    return when.strength(clock), clock.memory


def test_the_cap_falls_with_the_cube_of_the_time_left():
    when = Toward(density=0.2, steps=1000, begin=0.1, heal=0.4)
    assert when.last == 600 and when.stride == 10
    assert when.cap(0) == when.cap(100) == 1 and when.cap(600) == pytest.approx(0.2) and when.cap(999) == pytest.approx(0.2)
    assert when.cap(350) == pytest.approx(0.2 + 0.8 * 0.5**3)
    assert when.freeze(Clock(step=350)) == when.cap(350) and when.freeze(Clock(step=355)) is None
    assert when.freeze(Clock(step=50)) is None and when.freeze(Clock(step=600)) == 0.2 and when.freeze(Clock(step=610)) is None


@pytest.mark.parametrize("pull", [0.0, 0.3, 0.7])
def test_the_pull_is_a_share_of_the_unit(pull):
    assert told(Toward(0.2, 1000, pull=pull), 200, Gauge(balance=0.25))[0] == pytest.approx(pull * 0.25)


def test_the_dose_of_a_run_is_bounded():
    """However large the unit, λ·rate·last ≤ dose; the peak of the rate counts, so that its decay does not raise λ."""
    when = Toward(0.1, 1000, dose=2.0)
    strength, memory = told(when, 200, Gauge(balance=1e9, rate=0.5))
    assert strength * 0.5 * when.last == pytest.approx(2.0)
    later, _ = told(when, 210, Gauge(balance=1e9, rate=0.01), memory)
    assert later == pytest.approx(strength)


def test_the_strength_halves_when_groups_die_ahead_of_the_cap_and_recovers_slowly():
    when, memory, seen = Toward(0.1, 1000, pull=1.0), {}, []
    for step, density in ((200, 0.5), (210, 0.5), (220, 1.0), (230, 1.0)):
        strength, memory = told(when, step, Gauge(density=density), memory)
        seen.append(strength)
    assert when.cap(200) * 0.95 > 0.5
    assert seen == pytest.approx([0.5, 0.25, 0.25 * 1.15, 0.25 * 1.15**2])


def test_nothing_pulls_at_the_target_or_while_healing():
    when = Toward(0.1, 1000)
    assert told(when, 200, Gauge(density=0.101))[0] == 0.0
    _, memory = told(when, 590, Gauge())
    assert when.strength(Clock(step=599, memory=memory)) > 0 == when.strength(Clock(step=600, memory=memory))
    assert [when.phase(Clock(step=s)) for s in (0, 599, 600)] == ["sparsify", "sparsify", "heal"]


@pytest.mark.parametrize("pull", [-0.1, math.nan, math.inf, "much"])
def test_a_pull_that_makes_no_sense(pull):
    with pytest.raises(ScheduleError, match="pull"):
        Toward(0.1, 100, pull=pull)
