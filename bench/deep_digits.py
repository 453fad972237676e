"""A task on which latent weights break: digits, six narrow hidden layers with BatchNorm (docs/latent.md).

    winnow train --task bench/deep_digits.py --how latent --keep 0.05 --no-dense --threads 1
"""

from torch import nn

from winnow.jobs.tasks import TASKS, Task


def network(data, width):
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, data.classes))


TASK = Task("deep-digits", "digits · 64, six hidden layers of 64 with BatchNorm, 10", TASKS["digits"].load, network, epochs=34,
            batch=32, optimizer="sgd", lr={"sgd": 0.1, "adamw": 1e-3})  # fmt: skip
