"""PLOTS: one look for all figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A", "#4D4D4D", "#8C6D31", "#B15928")
MARKS = "os^Dv<>Ph*"


def panels(
    count: int, title: str = "", width: float = 4.2, height: float = 3.4, columns: int = 3
) -> tuple[Any, list[Any]]:
    """A figure of `count` axes, at most `columns` beside one another.

    Drawn without a display or a global state.  Raises `WinnowError` where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise WinnowError('figures need matplotlib: pip install "torch-winnow[papers]"') from error
    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down + 0.3 * bool(title)), dpi=110, layout="constrained")
    axes = [figure.add_subplot(down, across, i + 1) for i in range(count)]
    for ax in axes:
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, axes


def save(figure: Any, folder: Path) -> None:
    """figure.png and figure.svg, the same bytes for the same figure."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "winnow"}):
        figure.savefig(folder / "figure.png")
        figure.savefig(folder / "figure.svg", metadata={"Date": None})


def label(ax: Any, title: str = "", x: str = "", y: str = "", legend: bool = True) -> None:
    """Names an axis, and shows its legend if it has one."""
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)
    if legend and ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, frameon=False)


def colour(index: int) -> str:
    """The index-th colour, told apart by colour-blind readers too (Okabe and Ito)."""
    return COLOURS[index % len(COLOURS)]


def curve(ax: Any, index: int, x: Sequence[float], y: Sequence[float], name: str, marked: bool = True) -> None:
    """The index-th line, dashed where the colours begin again."""
    mark = MARKS[index % len(MARKS)] if marked else None
    style = "-" if index < len(COLOURS) else "--"
    ax.plot(x, y, style, color=colour(index), marker=mark, markersize=3.5, linewidth=1.3, label=name)
