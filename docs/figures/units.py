"""Draws units.png: the weights of a small network before and after compaction, and the proof. `python docs/figures/units.py`"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn

import winnow
from winnow.units import find_units, weight, zero_units

matplotlib.use("agg")
COLOURS = {"stays": "#b9c4d0", "gated: what has to be zero": "#e4572e", "goes along": "#f6c6a8"}
STAYS, GATED, ALONG = range(3)
DEAD = {"bn.weight": [1, 4, 5], "fc1.weight": [2, 3, 7, 10, 11, 14]}
SHAPES = {
    "conv.weight": "8 filters of 3×3×3; the colours\nare an input of the model: pinned",
    "bn.weight": "γ",
    "bn.bias": "β",
    "fc1.weight": "16 neurons; each channel\nfills 4 columns, one a pixel",
    "fc1.bias": "",
    "fc2.weight": "the classes are an\noutput: pinned",
}
GAPS = {"conv.weight": 0, "bn.weight": 3, "bn.bias": 6, "fc1.weight": 5, "fc1.bias": 2, "fc2.weight": 5}


class Net(nn.Module):
    """conv → batch norm → ReLU → pool → linear → ReLU → linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.bn(self.conv(x)).relu(), 3)
        return self.fc2(self.fc1(x.flatten(1)).relu())


def picture(model: nn.Module, layers: list[winnow.UnitLayer]) -> dict[str, Tensor]:
    """Per weight a matrix of what becomes of each entry."""
    found = {name: torch.full_like(flat(weight(model, name)), STAYS) for name in SHAPES}
    found["conv.weight"][DEAD["bn.weight"]] = ALONG  # in front of a normalisation, so it need not be zero
    for layer in layers:
        for member in (*layer.reads, *layer.members):
            where = member.indices[DEAD[layer.members[0].name]].flatten()
            if member.name in found:  # running means are no parameters
                found[member.name].movedim(member.axis, 0)[where] = GATED if member in layer.members else ALONG
    return found


def flat(theta: Tensor) -> Tensor:
    """A weight as a matrix: one row per index of its first axis."""
    return theta.detach().flatten(1) if theta.ndim > 1 else theta.detach()[:, None]


def main() -> None:
    """Zero, compact, draw."""
    torch.manual_seed(0)
    model, example = Net().eval(), torch.randn(2, 3, 8, 8)
    layers = [layer for layer in find_units(model, example) if layer.members[0].name in DEAD]
    before = picture(model, layers)
    marks = [torch.zeros(layer.count, dtype=torch.bool).index_fill(0, torch.tensor(DEAD[layer.members[0].name]), True)
             for layer in layers]
    zero_units(model, layers, marks)
    small, proof = winnow.compact(model, example)
    draw(before, {name: weight(small, name) for name in SHAPES}, proof)


def draw(before: dict[str, Tensor], after: dict[str, Tensor], proof: winnow.Proof) -> None:
    """Two rows of matrices on one scale, and the proof's own words."""
    plt.rcParams.update({"font.family": "DejaVu Sans"})
    figure, axis = plt.subplots(figsize=(11, 5.8), layout="constrained")
    colours, left, low = list(COLOURS.values()), 0.0, -24.0
    for name, words in SHAPES.items():
        left += GAPS[name]
        matrix(axis, before[name], left, 0, colours)
        axis.text(left, 1, name, weight="bold", fontsize=8.5)
        axis.text(left, -len(before[name]) - 0.6, words, va="top", fontsize=7.5, color="#444")
        matrix(axis, torch.full_like(flat(after[name]), STAYS), left, low, colours)
        axis.text(left, low + 1, " × ".join(map(str, after[name].shape)), fontsize=8.5)
        left += before[name].shape[1]
    axis.text(0, 5, "Nine units are zero: three channels and six neurons", fontsize=11)
    axis.text(0, low + 4.5, "What compact() hands back, and its proof", fontsize=11)
    axis.text(0, low - 12, str(proof), va="top", family="DejaVu Sans Mono", fontsize=7.5)
    handles = [Patch(color=colour, label=word) for word, colour in COLOURS.items()]
    axis.legend(handles=handles, loc="upper right", frameon=False, ncols=3, fontsize=8.5)
    axis.set(xlim=(-1, left + 3), ylim=(low - 22, 7), aspect="equal")
    axis.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150, metadata={"Software": None})
    plt.close(figure)


def matrix(axis: plt.Axes, kinds: Tensor, left: float, top: float, colours: list[str]) -> None:
    """One cell per entry, the first row on top."""
    for i, row in enumerate(kinds.tolist()):
        for j, kind in enumerate(row):
            axis.add_patch(Rectangle((left + j, top - i - 1), 0.88, 0.88, color=colours[int(kind)], linewidth=0))


if __name__ == "__main__":
    main()
