"""SHAKESPEARE: p-norm decay of a nanoGPT on Tiny Shakespeare, over p and λ."""

from __future__ import annotations

from typing import Any

import torch

from winnow.jobs.models import GPTConfig, NanoGPT
from winnow.jobs.train import evaluate

from ..base import Bench, Cell, Experiment, Outcome, Settings, Verdict
from ..data import text
from ..texts import DECAY
from ..training import Stream, Training, cosine
from . import grid


def run(cell: Cell, settings: Settings, bench: Bench) -> dict[str, Any]:
    data = text(settings["block"])
    torch.manual_seed(0)
    model = NanoGPT(
        GPTConfig(data.classes, settings["layers"], settings["heads"], settings["width"], settings["block"])
    )
    optimizer, extra = grid.prepare(cell, model, settings["lr"], (0.9, 0.99))

    batches = Stream(data, settings["batch"], 0, settings["steps"])
    Training(model, optimizer, batches, batches.parts, cosine(optimizer, settings["steps"]), extra=extra).fit(bench)
    return {"score": evaluate(model, data)[0], "sparsity": grid.sparsity(model)}


FULL = {
    "p": [0.5, 0.8, 1.0, 1.5],
    "lambda_c": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "gradient_lambda": [1e-6, 1e-5],
    "adamw": [0.0, 0.1, 1.0],
    "lr": 2e-3,
    "layers": 2,
    "heads": 4,
    "width": 128,
    "block": 64,
    "steps": 1000,
    "batch": 16,
    "near": 0.1,
    "unit": "validation loss",
}
EXPERIMENT = Experiment(
    name="decay-shakespeare",
    paper=DECAY,
    title="nanoGPT on Tiny Shakespeare over p and λ",
    claims=grid.CLAIMS,
    differs="Shrunk for two cores: 2 layers, width 128, context 64, 1,000 steps of 16 windows (published: 6 layers, "
    "width 384, context 256, 5,000 steps); Adam 2e-3, β₂ 0.99, cosine, no dropout, warm-up or clipping, threshold 1e-13 "
    "(published 1e-10), one seed. Near AdamW means within 0.1 nats of its best loss.",
    failed="1,000 steps do not bring dense training to its end either, and a sparse one needs longer. Σlr is 1 in so "
    "short a training: λ_c = 0.03 takes at most 0.03 off a weight at p = 1, so at p = 1 the grid's upper end is only "
    "where the transition begins. Proximal L1 has no zeros where decay with p = 1 has 3.5 %: decay's are for good (its "
    "factor is 0 at 0), a proximal zero is left again at Adam's next step, which is of size lr, more than lr·λ_c.",
    beyond=(Verdict("the same at the published size", "up to 99.5 % (text)", "days on two cores", Outcome.NOT_RUN),),
    full=FULL,
    quick=FULL
    | {
        "p": [0.5],
        "lambda_c": [1e-2, 1e-1],
        "gradient_lambda": [1e-5],
        "adamw": [0.0],
        "layers": 1,
        "width": 32,
        "steps": 30,
    },
    cells=grid.cells,
    run=run,
    draw=grid.draw,
    table=grid.table,
    minutes=30.0,
)
