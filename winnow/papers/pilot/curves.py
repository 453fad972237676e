"""CURVES: accuracy over sparsity right after removal, the claims on it, its figure and table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..base import Found, Row, Settings, Table, among, claim, mean
from ..plots import curve, label, panels

METHODS = ("plain", "m⊙v", "PILoT", "balanced (spred)", "L1 on x", "continuous sparsification", "STR", "HAM")


ALSO = ("PILoT, controller", "L1 on m", "spred, independent start")
"""Compared on the smaller network only."""


GRID = [1 - 0.8**k for k in range(1, 26)]
"""The published sparsities."""


def methods(net: Settings) -> tuple[str, ...]:
    """What is compared on a network."""
    return (*METHODS, *(ALSO if net["also"] else ()))


def strengths(method: str, net: Settings, settings: Settings) -> list[float]:
    """The grid of a method on a network: fewer points where the network says so."""
    grid = settings["strengths"].get(method, [0.0])
    return [s for s in grid if s in net["only"].get(method, grid)]


def best(rows: list[Row], net: str, method: str, settings: Settings) -> list[float]:
    """Mean accuracy at each sparsity, the best strength for each, as published; NaN where all diverged.

    A strength of which some seed diverged does not count: the mean of those that are left would flatter it.
    """
    found = [
        among(rows, net=net, method=method, strength=s) for s in strengths(method, settings["nets"][net], settings)
    ]
    full = [some for some in found if some and len(some) == max(map(len, found))]
    means = [[mean([row["accuracy"][k][1] for row in some]) for some in full] for k in range(len(settings["grid"]))]
    return [max(values, default=float("nan")) for values in means]


MILD, SPARSE = 0.5, 0.949
"""Sparsities at which the figure's middle and its tail begin."""
CHANCE = 15
"""Accuracy in % up to which ten classes are told apart by chance."""


@dataclass(frozen=True)
class Curves:
    """Accuracy of each method's best strength at every sparsity of the grid, on the networks that ran."""

    rows: list[Row]
    settings: Settings

    @property
    def nets(self) -> list[str]:
        return [net for net in self.settings["nets"] if among(self.rows, net=net)]

    @property
    def also(self) -> list[str]:
        """Networks with the comparisons beyond the figure's."""
        return [net for net in self.nets if self.settings["nets"][net]["also"]]

    def __call__(self, net: str, method: str) -> list[float]:
        return best(self.rows, net, method, self.settings)

    def between(self, low: float, high: float = 1.0) -> list[int]:
        """Where in the grid the sparsity lies in [low, high)."""
        return [i for i, k in enumerate(self.settings["grid"]) if low <= GRID[k - 1] < high]

    def ahead(self, net: str, method: str, rival: str, low: float, high: float = 1.0) -> float:
        """Points by which a method leads on the mean over these sparsities."""
        ours, theirs = self(net, method), self(net, rival)
        return mean([ours[i] - theirs[i] for i in self.between(low, high)])


@claim("m ⊙ v without regularisation already beats plain magnitude removal", published="yes (curves)")
def masks_help(rows: list[Row], settings: Settings) -> Found:
    curves = Curves(rows, settings)
    gain = {net: curves.ahead(net, "m⊙v", "plain", MILD) for net in curves.nets}
    return _each(gain, "{:+.1f} points on the mean"), min(gain.values()) > 0


@claim(
    "PILoT is at or above every comparison at 95 % sparsity and more",
    published="yes (curves; ImageNet 95 %: 71.30, spred 69.47, STR 64.94)",
)
def leads_where_sparse(rows: list[Row], settings: Settings) -> Found:
    curves, said, holds = Curves(rows, settings), {}, True
    for net in curves.nets:
        ours = curves(net, "PILoT")
        rivals = [curves(net, m) for m in methods(settings["nets"][net]) if not m.startswith("PILoT")]
        best_of = {i: max(rival[i] for rival in rivals) for i in curves.between(SPARSE)}
        alive = [i for i, top in best_of.items() if max(top, ours[i]) > CHANCE]
        first = sum(ours[i] >= best_of[i] - 0.05 for i in alive)
        said[net] = f"{first} of {len(alive)} sparsities at which any method is above {CHANCE} %"
        holds &= first == len(alive) > 0
    return _each(said, "first or level at {}"), holds


@claim("strong L1 on the weights competes up to high sparsity, then collapses", published="yes (curves)")
def l1_collapses(rows: list[Row], settings: Settings) -> Found:
    curves, said, holds = Curves(rows, settings), [], True
    edge = curves.between(SPARSE)[0]
    for net in curves.nets:
        l1, ours = curves(net, "L1 on x"), curves(net, "PILoT")
        lost = max(curves(net, "plain")[0] - l1[i] for i in curves.between(MILD, SPARSE))
        fall, own = l1[edge] - l1[-1], ours[edge] - ours[-1]
        then = f"then {fall:.1f} to the end (PILoT {own:.1f})" if l1[edge] > CHANCE else "from 95 % on at chance"
        said.append(f"{net}: at most {lost:.1f} points lost below 95 %, {then}")
        holds &= lost < 5 and fall >= 10 and fall > own
    return "; ".join(said), holds


@claim("the balanced start (spred) is worse than PILoT until extreme sparsity", published="yes (curves)")
def balanced_lags(rows: list[Row], settings: Settings) -> Found:
    curves = Curves(rows, settings)
    lag = {net: curves.ahead(net, "PILoT", "balanced (spred)", MILD, SPARSE) for net in curves.nets}
    return _each(lag, "{:+.1f} points for PILoT on the mean below 95 %"), min(lag.values()) > 0


@claim(
    "the published controller of the strength does as well as a dose given beforehand",
    published="used in the published version, its numbers open",
)
def controller_level(rows: list[Row], settings: Settings) -> Found:
    curves = Curves(rows, settings)
    ahead = {net: curves.ahead(net, "PILoT", ALSO[0], SPARSE) for net in curves.also}
    said = _each(ahead, "{:+.1f} points for the dose on the mean from 95 % on")
    return said, all(abs(points) < 1 for points in ahead.values())


@claim("L1 on m is below PILoT at 95 % sparsity and more", published="yes (curves)")
def l1_on_m_below(rows: list[Row], settings: Settings) -> Found:
    return _below(rows, settings, "L1 on m")


@claim("spred from independent factors is below PILoT at 95 % sparsity and more", published="yes (curves)")
def spred_below(rows: list[Row], settings: Settings) -> Found:
    return _below(rows, settings, "spred, independent start")


@claim("continuous sparsification is below PILoT in this set-up, from 95 % on", published="yes (curves)")
def continuous_below(rows: list[Row], settings: Settings) -> Found | None:
    return (
        _below(rows, settings, "continuous sparsification")
        if "continuous sparsification" in settings["strengths"]
        else None
    )


def _below(rows: list[Row], settings: Settings, method: str) -> Found:
    """At how many sparsities of the tail PILoT is ahead of it, on the network with all comparisons."""
    curves = Curves(rows, settings)
    won = {
        net: [curves(net, "PILoT")[i] > curves(net, method)[i] for i in curves.between(SPARSE)] for net in curves.also
    }
    said = {net: f"PILoT is ahead at {sum(found)} of {len(found)}" for net, found in won.items()}
    mean_lead = {net: curves.ahead(net, "PILoT", method, SPARSE) for net in curves.also}
    words = "; ".join(f"{net}: {said[net]}, by {mean_lead[net]:+.1f} points on the mean" for net in said)
    return words, all(all(found) for found in won.values())


def _each(values: dict[str, Any], words: str) -> str:
    return "; ".join(f"{net}: {words.format(value)}" for net, value in values.items())


def draw(rows: list[Row], settings: Settings) -> Any:
    nets = [net for net in settings["nets"] if among(rows, net=net)]
    figure, axes = panels(len(nets), "accuracy right after removal by magnitude, no retraining", width=5.2, height=4.0)
    for ax, net in zip(axes, nets, strict=True):
        for i, method in enumerate(methods(settings["nets"][net])):
            left = [1 - GRID[k - 1] for k in settings["grid"]]
            curve(ax, i, left, best(rows, net, method, settings), method)
        ax.set_xscale("log")
        ax.invert_xaxis()
        label(ax, settings["nets"][net]["title"], "share of weights left", "test accuracy %", legend=net == nets[0])
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    shown = [i for i, k in enumerate(settings["grid"]) if k in (5, 10, 14, 18, 21, 25)]
    lines = [
        [net, method, *(f"{best(rows, net, method, settings)[i]:.1f}" for i in shown)]
        for net in settings["nets"]
        if among(rows, net=net)
        for method in methods(settings["nets"][net])
    ]
    return Table(
        ("network", "accuracy % at sparsity", *(f"{100 * GRID[settings['grid'][i] - 1]:.1f} %" for i in shown)), lines
    )
