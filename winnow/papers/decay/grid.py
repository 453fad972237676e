"""GRID: p and λ of p-norm decay on a network, beside AdamW, proximal L1 and the L_p gradient on the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import winnow
from winnow.penalties import Lp
from winnow.routes import Decay

from ..base import Cell, Found, Row, Settings, Table, among, claim
from ..plots import colour, curve, label, panels

OTHERS = ("AdamW", "L1 proximal", "L_p gradient")
TINY = 1e-13  # the authors' threshold
NOISE = {"test error %": 0.5, "validation loss": 0.02}
"""A standard error of 10,000 test images; for the loss about three times what a seed changes (0.007 for a model of like size in
records/path-shakespeare.json, half of the weights kept)."""


def cells(settings: Settings, seeds: int) -> list[Cell]:
    ours = [{"method": "decay", "p": p, "lambda_c": c} for p in settings["p"] for c in settings["lambda_c"]]
    l1 = [{"method": "L1 proximal", "p": 1.0, "lambda_c": c} for c in settings["lambda_c"]]
    gradient = [{"method": "L_p gradient", "p": 0.8, "lambda_c": c} for c in settings["gradient_lambda"]]
    return [{"method": "AdamW", "p": 2.0, "lambda_c": w / 2} for w in settings["adamw"]] + ours + l1 + gradient


Penalised = Callable[[], Tensor] | None


def prepare(
    cell: Cell, model: nn.Module, lr: float, betas: tuple[float, float]
) -> tuple[torch.optim.Optimizer, Penalised]:
    """The cell's optimizer on `model`, its weights of two or more dimensions decayed; and what goes on the loss."""
    weights = [theta for theta in model.parameters() if theta.dim() >= 2]
    rest = [theta for theta in model.parameters() if theta.dim() < 2]
    p, c = cell["p"], cell["lambda_c"]
    decay = 2 * c if cell["method"] == "AdamW" else 0.0
    groups = [{"params": weights, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr, betas=betas)
    if cell["method"] == "decay":
        where = winnow.Elements()
        winnow.attach(model, optimizer, how=Decay(Lp(p), rescale=False), where=where, when=p * c, fused=False)
    if cell["method"] == "L1 proximal":
        optimizer.register_step_post_hook(lambda *_: _shrink(weights, optimizer.param_groups[0]["lr"] * c))
    if cell["method"] == "L_p gradient":
        return optimizer, lambda: c * torch.stack([(w.abs() + TINY).pow(p).sum() for w in weights]).sum()
    return optimizer, None


@torch.no_grad()
def _shrink(weights: list[nn.Parameter], by: float) -> None:
    """The decoupled soft threshold lr·λ (the authors' Adam_L1)."""
    for w in weights:
        w.copy_(w.sign() * (w.abs() - by).clamp_min(0))


def sparsity(model: nn.Module) -> float:
    """Share of the decayed weights below 1e-13."""
    weights = [theta.detach() for theta in model.parameters() if theta.dim() >= 2]
    return float(sum((w.abs() < TINY).sum() for w in weights) / sum(w.numel() for w in weights))


def _sparsities(rows: list[Row], settings: Settings) -> dict[float, list[float]]:
    """Per p, by rising λ."""
    ours = among(rows, method="decay")
    return {p: [r["sparsity"] for r in sorted(among(ours, p=p), key=lambda r: r["lambda_c"])] for p in settings["p"]}


def _adamw(rows: list[Row]) -> float:
    """AdamW's best score; a score is what should be small: an error in %, or a loss."""
    return min(float(row["score"]) for row in among(rows, method="AdamW"))


@claim("p < 1 reaches high sparsity with a loss or error near AdamW's", published="up to 99.5 %, accuracy near AdamW")
def sparse_and_good(rows: list[Row], settings: Settings) -> Found:
    best, near, unit = _adamw(rows), settings["near"], settings["unit"]
    small = [row for row in among(rows, method="decay") if row["p"] < 1 and row["score"] <= best + near]
    reference = f"AdamW {best:.2f} {unit}, near: within {near:g}"
    if not small:
        return f"none; {reference}", False
    top = max(small, key=lambda row: float(row["sparsity"]))
    said = f"{100 * top['sparsity']:.1f} % zeros at {top['score']:.2f} {unit} (p = {top['p']:g}); {reference}"
    return said, top["sparsity"] > 0.9


@claim(
    "the transition in λ is sharp at p = 0.8: half of the change in sparsity within a factor of about three",
    published="3 → 65 → 90 % for λ_c .002 → .005 → .01",
)
def sharp_transition(rows: list[Row], settings: Settings) -> Found | None:
    jumps = {p: _jump(among(rows, method="decay", p=p)) for p in settings["p"] if p < 1}
    said = "; ".join(f"p = {p:g}: {100 * jump:.1f} % of the change" for p, jump in jumps.items())
    return (said, jumps[0.8] >= 0.5) if 0.8 in jumps else None


@claim("at equal λ_c sparsity grows as p falls to 1 and below; p > 1 leaves no zeros", published="strongest for p < 1")
def sparser_for_smaller_p(rows: list[Row], settings: Settings) -> Found:
    found = _sparsities(rows, settings)
    falling = [found[p] for p in sorted(found) if p <= 1]
    ordered = all(x >= y - 0.02 for a, b in itertools.pairwise(falling) for x, y in zip(a, b, strict=True))
    above = max((max(found[p]) for p in found if p > 1), default=0.0)
    said = "most zeros " + ", ".join(f"p = {p:g}: {100 * max(found[p]):.1f} %" for p in sorted(found))
    return said, ordered and above < 0.01


@claim("the best generalisation is at 1 < p < 2", published="yes")
def best_between(rows: list[Row], settings: Settings) -> Found:
    best, ours = _adamw(rows), among(rows, method="decay")
    tops = {p: min(float(row["score"]) for row in among(ours, p=p)) for p in settings["p"]}
    said = (
        "best " + ", ".join(f"p = {p:g}: {x:.3f}" for p, x in tops.items()) + f"; AdamW {best:.3f} {settings['unit']}"
    )
    if max(*tops.values(), best) - min(*tops.values(), best) < NOISE[settings["unit"]]:
        return f"{said}: one seed, all within noise", None
    return said, min(tops, key=lambda p: tops[p]) > 1 and min(tops.values()) < best


@claim("the L_p gradient on the loss under Adam gives no exact zeros (negative control)", published="not sparse")
def no_zeros_from_gradients(rows: list[Row], settings: Settings) -> Found:
    most = max((row["sparsity"] for row in among(rows, method="L_p gradient")), default=0.0)
    return f"at most {100 * most:.2f} % zeros", most < 0.01


CLAIMS = (sparse_and_good, sharp_transition, sparser_for_smaller_p, best_between, no_zeros_from_gradients)


def _jump(rows: list[Row]) -> float:
    """Largest share of the whole change in sparsity that lies between two neighbouring strengths."""
    values = [row["sparsity"] for row in sorted(rows, key=lambda row: row["lambda_c"])]
    steps = [b - a for a, b in itertools.pairwise(values)]
    return float(max(steps, default=0.0) / max(values[-1] - values[0], 1e-9))


def draw(rows: list[Row], settings: Settings) -> Any:
    figure, (transition, trade) = panels(2, width=5.0, height=3.8)
    for i, p in enumerate(settings["p"]):
        found = sorted(among(rows, method="decay", p=p), key=lambda row: row["lambda_c"])
        curve(transition, i, [row["lambda_c"] for row in found], [100 * row["sparsity"] for row in found], f"p = {p:g}")
        trade.plot(
            [100 * row["sparsity"] for row in found],
            [row["score"] for row in found],
            "o-",
            ms=3.5,
            color=colour(i),
            label=f"p = {p:g}",
        )
    for k, method in enumerate(OTHERS):
        found = [row for row in among(rows, method=method) if row["score"] is not None]
        trade.plot(
            [100 * r["sparsity"] for r in found],
            [r["score"] for r in found],
            "*^x"[k],
            color=colour(5 + k),
            label=method,
        )
    transition.set_xscale("log")
    label(transition, "sparsity against strength", "λ_c (authors')", "zeros %")
    label(trade, "what it costs", "zeros %", settings["unit"], legend=True)
    return figure


def table(rows: list[Row], settings: Settings) -> Table:
    lines = [
        [row["method"], f"{row['p']:g}", f"{row['lambda_c']:g}", f"{row['score']:.3f}", f"{100 * row['sparsity']:.2f}"]
        for row in rows
    ]
    return Table(("method", "p", "λ_c", settings["unit"], "zeros %"), lines)
