"""VGG: the network whose filters are taken out, and how they are."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

PLAN = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)
"""Widths over 64, 0 a pooling."""


class VGG16(nn.Module):
    """VGG-16 with batch normalisation and one dense layer (the paper's): (n, 3, 32, 32) -> (n, 10)."""

    def __init__(self, width: int = 64, eps: float = 1e-5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for times in PLAN:
            if times:
                layers += [
                    nn.Conv2d(before, times * width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(times * width, eps),
                    nn.ReLU(),
                ]
                before = times * width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.dense, self.head = nn.Linear(before, 8 * width), nn.Linear(8 * width, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.dense(self.features(x).flatten(1))))
        return out


def pairs(model: VGG16) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution and the normalisation behind it."""
    layers = itertools.pairwise(model.features)
    return [(a, b) for a, b in layers if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)]


@torch.no_grad()
def silence(model: VGG16) -> None:
    """A zero filter's normalisation goes with it: its output would be the constant shift."""
    for conv, norm in pairs(model):
        kill(conv, norm, ~conv.weight.flatten(1).any(1))


def kill(conv: nn.Conv2d, norm: nn.BatchNorm2d, dead: Tensor) -> None:
    for theta in (conv.weight, norm.weight, norm.bias):
        theta[dead] = 0


def remove(model: VGG16, ratio: float, method: str) -> None:
    """The globally smallest filters (by norm) or normalisation scales, at least one per layer kept."""
    found = pairs(model)
    sizes = [b.weight.abs() if method == "slimming" else a.weight.flatten(1).norm(dim=1) for a, b in found]
    threshold = torch.cat(sizes).sort().values[round(ratio * sum(map(len, sizes))) - 1]
    for (conv, norm), size in zip(found, sizes, strict=True):
        dead = size <= threshold
        dead[size.argmax()] = False
        kill(conv, norm, dead)
