"""The main job: its models, its command line, its run folder, and the ways it can end."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from torch import nn

from winnow import Run, WinnowError

pytest.importorskip("typer", reason="the command needs the extra cli")
from typer.testing import CliRunner

from winnow.cli import app
from winnow.jobs import data, models, options, report, shrink, train, walk
from winnow.jobs.options import Options
from winnow.jobs.screen import Quiet
from winnow.jobs.tasks import TASKS


@pytest.fixture(autouse=True)
def put_back() -> Any:
    """The job sets torch's threads and denormals for its process, which here is shared."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def winnow(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def count(model: nn.Module, least: int = 0) -> int:
    return sum(p.numel() for p in model.parameters() if p.dim() >= least)


# ---- models ----


def test_lenet() -> None:
    model = models.LeNet300100()
    assert count(model, 2) == 266_200
    assert count(model) == 266_610
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_nanogpt() -> None:
    model = models.NanoGPT(models.GPTConfig.benchmark())
    assert count(model) == 10_745_088
    assert model.lm_head.weight is model.wte.weight
    untied = models.NanoGPT(models.GPTConfig(n_layer=1, n_embd=32, vocab=11, tied=False, bias=True, dropout=0.1))
    assert untied.lm_head.weight is not untied.wte.weight
    assert untied(torch.zeros(3, 7, dtype=torch.int64)).shape == (3, 7, 11)
    with pytest.raises(WinnowError, match="multiple of n_head"):
        models.GPTConfig(n_embd=30)


def test_nanogpt_is_causal() -> None:
    model = models.NanoGPT(models.GPTConfig(n_layer=2, n_embd=32, vocab=11)).eval()
    codes = torch.randint(11, (2, 9))
    other = codes.clone()
    other[:, 5] = (codes[:, 5] + 1) % 11
    change = (model(codes) - model(other)).abs().amax((0, 2))
    assert change[:5].max() == 0
    assert change[5:].min() > 0


def test_resnet20() -> None:
    model = models.ResNet20()
    assert 265_000 < count(model) < 275_000
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == 19
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# ---- options ----


def test_groupings_leave_the_output_layer_whole() -> None:
    lenet, gpt = models.LeNet300100(), models.NanoGPT(models.GPTConfig(65, block_size=128))
    assert list(options.GROUPINGS["rows"](lenet, None, None)) == ["fc1.weight", "fc2.weight"]
    assert list(options.GROUPINGS["columns"](lenet, None, None)) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert len(options.GROUPINGS["rows"](gpt, None, None)) == len(options.GROUPINGS["columns"](gpt, None, None)) == 16
    assert list(options.GROUPINGS["heads"](gpt, None, None)) == [f"h.{n}.attn.c_attn.weight" for n in range(4)]


BAD = {
    "--keep 0.1 --strength 1e-4": "give one of them",
    "--keep 0.1 --keep-macs 0.3 --where channels": "--keep and --keep-macs.*give one of them",
    "--keep-params 0.1 --strength 1 --where channels": "--keep-params and --strength.*give one of them",
    "--keep-macs 0.3": "add --where channels",
    "--keep-params 1.5 --where channels": r"--keep-params is the share to keep, in \(0, 1\], got 1.5",
    "--keep 0": r"in \(0, 1\], got 0",
    "--keep 1.5": r"in \(0, 1\], got 1.5",
    "--keep nan": r"in \(0, 1\], got nan",
    "--strength -1": "positive number, got -1",
    "--strength nan": "positive number, got nan",
    "--how prayer": "choose from decay, gating, masking, dropout",
    "--where diagonals": "choose from elements, rows, columns, blocks, 2:4, heads",
    "--where heads": "has none: train shakespeare",
    "--optimizer lion": "choose from sgd, adamw",
    "--how decay --depth 3": "leave it out",
    "--how masking --where rows": "--where elements",
    "--how masking --penalty lp": "leave --penalty out",
    "--how decay --penalty l7": "choose from lp",
    "--depth 3 --penalty lp": "give one of the two",
    "--depth 0": "depth",
    "--how dropout --p 0.5": "--penalty lp",
    "--width 32": "the model of digits has one size",
    "--epochs 0": "positive number, got 0",
    "--batch -5": "positive number, got -5",
    "--lr 0": "positive number, got 0",
    "--weight-decay -1": "--weight-decay must be a positive number, got -1",
    "--seed -1": "--seed must be in",
}


@pytest.mark.parametrize(("words", "complaint"), BAD.items())
def test_bad_usage_is_one_line_and_exit_code_2(words: str, complaint: str, tmp_path: Path) -> None:
    done = winnow("train", "digits", "--epochs", 1, "--out", tmp_path / "run", *words.split())
    assert done.exit_code == 2
    assert re.search(complaint, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["train", "train cifar", "train digits --keep much", "train digits --frob", "plough"])
def test_other_bad_usage_is_exit_code_2(words: str) -> None:
    assert winnow(*words.split()).exit_code == 2


def test_help_and_version() -> None:
    shown = winnow("train", "--help").output
    assert all(word in shown for word in ("--keep", "--strength", "--how", "--where", "--out", "Exit code"))
    assert winnow("--version").output == f"winnow {report.environment()['versions']['winnow']}\n"


def test_the_recorded_command_repeats_the_run() -> None:
    asked = Options("digits", how="decay", penalty="lp", p=0.7, dense=False, seed=3).filled()
    words = asked.command().split()
    assert words[:3] == ["winnow", "train", "digits"]
    assert "--no-dense" in words
    told = dict(zip(words[3:-1:2], words[4:-1:2], strict=True))
    assert told["--p"] == "0.7"
    assert told["--keep"] == "0.1"
    assert told["--seed"] == "3"
    assert told["--epochs"] == "60"


def test_two_of_four_leaves_out_what_has_no_fours() -> None:
    assert list(options.GROUPINGS["2:4"](models.LeNet300100(), None, None)) == ["fc1.weight", "fc2.weight"]
    names = list(options.GROUPINGS["2:4"](models.ResNet9(), None, None))
    assert names[0].startswith("layer1"), "three colours make no fours"
    assert len(names) == 7


def test_the_width_is_the_models() -> None:
    text = SimpleNamespace(classes=65, block=128)
    assert TASKS["shakespeare"].model(text, 32).wte.weight.shape == (65, 32)
    assert TASKS["cifar10"].model(SimpleNamespace(classes=10), 8).fc.weight.shape == (10, 64)
    chosen = options.Options(data="cifar10", width=8).filled()
    assert "--width 8" in chosen.command()
    images = data.Images("cifar10", "", *(torch.zeros(1) for _ in range(6)))
    assert shrink.make(chosen, images).fc.in_features == 64


@pytest.mark.parametrize("word", ["keep_macs", "keep_params"])
def test_a_share_of_the_smaller_model_is_met_and_recorded(word: str, tmp_path: Path) -> None:
    flag = f"--{word.replace('_', '-')}"
    words = ["train", "digits", "--epochs", 3, "--where", "channels", flag, 0.4, "--no-dense", "--threads", 1]
    done = winnow(*words, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert f"{flag} 0.4" in record["command"]
    assert "--keep 0" not in record["command"]
    before, after = record["smaller"]["proof"]["macs" if word == "keep_macs" else "parameters"]
    assert 0.4 - record["sparse"]["grain"] < after / before <= 0.4
    assert after / before == pytest.approx(record["sparse"]["density"], abs=1e-12)
    assert {"keep_macs": "MACs kept asked", "keep_params": "parameters kept asked"}[word] in done.output


@pytest.mark.parametrize(("macs", "missed"), [((100, 40), False), ((100, 41), False), ((100, 55), True)])
def test_a_smaller_model_larger_than_asked_is_missed(macs: tuple[int, int], missed: bool) -> None:
    smaller = {"proof": {"macs": macs, "parameters": (100, 99)}}
    assert shrink.larger(smaller, Options("digits", keep_macs=0.4), 0.02) is missed
    assert shrink.larger(smaller, Options("digits", keep=0.4), 0.02) is False


def test_two_of_four_is_met(tmp_path: Path) -> None:
    words = ["train", "digits", "--epochs", 3, "--where", "2:4", "--keep", 0.5, "--no-dense", "--threads", 1]
    assert winnow(*words, "--out", tmp_path / "run").exit_code == 0
    model = models.LeNet300100(64, hidden=(64, 32))
    load_model(model, str(tmp_path / "run" / "model.safetensors"))
    for name in ("fc1.weight", "fc2.weight"):
        groups = model.get_parameter(name).detach().unflatten(1, (-1, 4))
        assert (groups != 0).sum(-1).unique().tolist() == [2]


# ---- the job ----


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One short run through the command line, looked at by several tests."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return winnow("train", "digits", "--epochs", 3, "--keep", 0.3, "--threads", 1, "--out", folder), folder


def test_the_table(digits_run: tuple[Any, Path]) -> None:
    done, _ = digits_run
    assert done.exit_code in (0, 3), done.output  # three epochs are few: the density may be missed, but said so
    assert ("missed" in done.stdout) == (done.exit_code == 3)
    for word in (
        "test accuracy",
        "density asked",
        "density obtained",
        "parameters",
        "certificate",
        "seconds",
    ):
        assert word in done.stdout
    assert all(f"groups alive, fc{n}.weight" in done.stdout for n in (1, 2, 3))


def test_the_record(digits_run: tuple[Any, Path]) -> None:
    _, folder = digits_run
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"
    assert record["steps"] == 135
    assert record["seed"] == 0
    assert record["command"].startswith("winnow train digits --keep 0.3 --how gating")
    assert {"python", "torch", "numpy", "winnow"} <= record["environment"]["versions"].keys()
    assert record["environment"]["threads"] == 1
    dense, sparse = record["dense"], record["sparse"]
    assert dense["steps"] == sparse["steps"] == 135
    assert dense["nonzero"] == dense["parameters"] == 6570
    assert dense["accuracy"] > 0.8
    assert dense["error"] == pytest.approx(1 - dense["accuracy"])
    layers = sparse["layers"]
    assert sparse["penalised"] == sum(layer["size"] for layer in layers) == 6464
    assert sparse["density"] == pytest.approx(sum(layer["nonzero"] for layer in layers) / 6464, abs=1e-4)
    assert sparse["certificate"]["words"]
    assert str(Path.home()) not in json.dumps(record)
    assert str(folder) not in json.dumps(record)


def test_the_history(digits_run: tuple[Any, Path]) -> None:
    _, folder = digits_run
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert tuple(rows[0]) == train.COLUMNS
    assert [(row["side"], row["step"]) for row in rows] == [
        (side, str(step)) for side in ("dense", "sparse") for step in (45, 90, 135)
    ]
    assert float(rows[2]["lr"]) == pytest.approx(0, abs=1e-9)
    assert float(rows[2]["train_loss"]) < float(rows[0]["train_loss"])


def test_the_models_come_back(digits_run: tuple[Any, Path]) -> None:
    from safetensors.torch import load_model

    _, folder = digits_run
    record, digits = json.loads((folder / "run.json").read_text()), data.load("digits")
    for file, side in (("model", "sparse"), ("dense", "dense")):
        model = models.LeNet300100(64, hidden=(64, 32))
        load_model(model, folder / f"{file}.safetensors")
        assert train.evaluate(model, digits)[1] == record[side]["accuracy"]
        assert sum(int(p.count_nonzero()) for p in model.parameters()) == record[side]["nonzero"]


def test_a_folder_with_a_run_is_not_overwritten(digits_run: tuple[Any, Path]) -> None:
    _, folder = digits_run
    before = (folder / "run.json").read_bytes()
    done = winnow("train", "digits", "--epochs", 1, "--out", folder)
    assert done.exit_code == 2
    assert "holds a run already" in done.stderr
    assert (folder / "run.json").read_bytes() == before


def test_a_missed_density_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MISS", -1.0)
    monkeypatch.setattr(Run, "grain", -1.0)
    done = winnow("train", "digits", "--epochs", 1, "--no-dense", "--out", tmp_path / "run")
    assert done.exit_code == 3
    assert "missed" in done.stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sparse"]["missed"]
    assert record["dense"] is None
    assert not (tmp_path / "run" / "dense.safetensors").exists()


def test_runs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [report.new_folder(None, "digits-gating-rows-seed0") for _ in range(2)]
    assert [str(folder) for folder in folders] == [f"runs/digits-gating-rows-seed0-{n}" for n in (1, 2)]


def test_without_penalty_both_sides_are_one(tmp_path: Path) -> None:
    asked = Options("digits", how="decay", strength=0.0, epochs=2)
    record = train.job(asked, tmp_path / "run").record
    assert record["dense"]["loss"] == pytest.approx(record["sparse"]["loss"], rel=1e-5)


class Stopper(Quiet):
    """Presses Ctrl-C at a step of a side."""

    def __init__(self, side: int, step: int) -> None:
        self.countdown, self.side, self.sides = step, side, 0

    def begin(self, name: str, steps: int) -> None:
        self.sides += 1

    def step(self, loss: float, run: Any, keep: float | None) -> None:
        self.countdown -= self.sides == self.side
        if self.countdown == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("side", [1, 2])
def test_ctrl_c_saves_what_there_is(side: int, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    outcome = train.job(Options("digits", epochs=2), tmp_path / "run", Stopper(side, 7))
    assert outcome.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert record[("dense", "sparse")[side - 1]]["steps"] == 7
    assert (tmp_path / "run" / "model.safetensors").exists() == (side == 2)
    assert (tmp_path / "run" / "dense.safetensors").exists()
    report.table(record)


def test_broken_training_is_recorded(tmp_path: Path) -> None:
    done = winnow("train", "digits", "--lr", "1e30", "--epochs", 1, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "smaller --lr" in done.stderr.replace("\n", " ")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "loss is" in record["error"]


@pytest.mark.parametrize("how", options.ROUTES)
@pytest.mark.parametrize("where", [word for word in options.GROUPINGS if word != "heads"])
def test_every_route_takes_every_grouping(how: str, where: str) -> None:
    digits = data.load("digits")
    if how == "masking" and where != "elements":
        pytest.skip("masking acts on single weights")
    side = train.prepare(Options("digits", how=how, where=where, epochs=1).filled(), digits)[1]
    for x, y in list(digits.batches(32, 0, 0))[:3]:
        train.one_step(side, x, y)
    assert side.run.strength > 0 or side.run.density() < 1
    assert 0 < side.run.density() <= 1


@pytest.mark.skipif(not os.environ.get("WINNOW_DATA"), reason="WINNOW_DATA is not set: no real data at hand")
def test_shakespeare_learns() -> None:
    text = data.load("shakespeare", block=32)
    side, sparse = train.prepare(Options("shakespeare", where="heads", epochs=1, batch=8).filled(), text)
    assert [layer.groups for layer in sparse.run.layers()] == [4, 4, 4, 4]
    losses = [train.one_step(side, x, y) for (x, y), _ in zip(text.batches(8, 0, 0), range(30), strict=False)]
    assert losses[0] == pytest.approx(4.17, abs=0.1)
    assert losses[-1] < 3.3


def test_the_job_needs_no_extras_to_import() -> None:
    blocked = "import sys; sys.modules.update(rich=None, typer=None, sklearn=None, safetensors=None);"
    work = "import winnow, winnow.jobs.train as t; print(len(t.prepare.__doc__))"
    subprocess.run([sys.executable, "-c", blocked + work], check=True, timeout=60)


def test_plain_makes_anything_json() -> None:
    value = {
        "a": torch.tensor([1.5, float("nan")]),
        3: (torch.tensor(2), float("inf")),
        "p": Path("x"),
        "b": True,
    }
    assert report.plain(value) == {"a": [1.5, None], "3": [2, None], "p": "x", "b": True}


# ---- smaller models from the command line ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def channels_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("channels") / "run"
    done = winnow("train", "digits", "--where", "channels", "--keep", 0.5, "--epochs", 3, "--out", folder)
    return done, folder


def test_the_job_ends_with_a_smaller_model_and_its_proof(channels_run: tuple[Any, Path]) -> None:
    done, folder = channels_run
    assert done.exit_code == 0, done.stderr
    for words in ("outputs of the smaller model", "equal, to", "parameters, smaller model", "faster, batch size"):
        assert words in done.stdout
    assert "nonzero" not in done.stdout  # would count weights that read from dead units
    record = json.loads((folder / "run.json").read_text())
    proof, measured = record["smaller"]["proof"], record["smaller"]["measured"]
    assert proof["proved"]
    assert proof["parameters"][1] < 0.7 * proof["parameters"][0]
    alive = {layer["name"]: layer["alive"] for layer in record["sparse"]["layers"]}
    assert {name: kept[1] for name, kept in proof["channels"].items() if name in alive} == alive
    assert [t["batch"] for t in measured["before"]] == [1, 64]
    assert (folder / "small" / "structure.json").exists()


def test_compact_measure_and_export_a_run(channels_run: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = channels_run
    done = winnow("compact", folder)
    assert done.exit_code == 0, done.stderr
    assert "outputs equal" in done.stdout
    done = winnow("measure", folder, "--seconds", 0.05)
    assert done.exit_code == 0, done.stderr
    assert "faster" in done.stdout
    for words in ([], ["--dynamic-batch"]):
        assert winnow("export", folder, "--out", tmp_path / "small.pt2", *words).exit_code == 0
        assert bool(torch.export.load(tmp_path / "small.pt2").range_constraints) == bool(words)
    done = winnow("export", folder, "--out", tmp_path / "small.onnx")
    assert done.exit_code == 0, done.stderr
    assert "read back" in done.stdout
    assert (tmp_path / "small.onnx").exists()


def test_what_is_no_run(tmp_path: Path, digits_run: tuple[Any, Path]) -> None:
    for verb in ("compact", "measure", "export"):
        done = winnow(verb, tmp_path)
        assert done.exit_code == 2
        assert "is no run folder" in done.stderr.replace("\n", " ")
    done = winnow("measure", digits_run[1])
    assert done.exit_code == 2
    assert "winnow compact" in done.stderr.replace("\n", " ")
    (tmp_path / "run.json").write_text("{}")
    assert winnow("compact", tmp_path).exit_code == 2


# ---- path ----


def test_a_path_from_the_command_line(tmp_path: Path) -> None:
    words = ["path", "digits", "--densities", "1,0.5,0.1", "--epochs", 3, "--threads", 1, "--out", tmp_path / "p"]
    done = winnow(*words)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "p" / "run.json").read_text())
    assert [point["asked"] for point in record["points"]] == [1.0, 0.5, 0.1]
    assert abs(record["points"][2]["density"] - 0.1) < 0.01
    assert record["command"].startswith("winnow path digits") and "--densities 1,0.5,0.1 --cost 2.5" in record["command"]
    before = (tmp_path / "p" / "path.json").read_bytes()
    assert winnow(*words).exit_code == 0  # nothing is left to do
    assert (tmp_path / "p" / "path.json").read_bytes() == before
    other = winnow(*words, "--lr", 0.01)  # not the path that lies there
    assert other.exit_code == 2 and "holds another path (tag" in other.stderr
    sized = {p["parameters"]: p for p in record["points"]}
    done = winnow("pick", tmp_path / "p", "--max-drop", 100)  # points of accuracy: anything goes
    assert done.exit_code == 0 and f"density {min(p['density'] for p in sized.values()):.4g}" in done.stdout, done.output
    assert {f.name for f in (tmp_path / "p" / "picked").iterdir()} == {"model.safetensors", "structure.json"}
    done = winnow("pick", tmp_path / "p", "--max-params", min(sized) - 1, "--out", tmp_path / "none")
    assert done.exit_code == 2 and "no point keeps within" in done.stderr and not (tmp_path / "none").exists()
    assert f"--max-macs {record['points'][2]['macs'] // 2} (per input)" in done.stderr.replace("\n", " ")
    least = record["points"][2]["macs"] // 2
    done = winnow("pick", tmp_path / "p", "--max-macs", least, "--out", tmp_path / "small.pt2")
    assert done.exit_code == 0 and f"{least:,} MACs per input" in done.stdout and (tmp_path / "small.pt2").exists()
    for verb, complaint in (("compact", "which `winnow pick` take"), ("pick", "limit is needed: --max-drop")):
        done = winnow(verb, tmp_path / "p")
        assert done.exit_code == 2 and complaint in done.stderr.replace("\n", " "), done.stderr


def test_an_interrupted_path_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["path", "digits", "--densities", "1,0.5,0.2", "--epochs", 2, "--threads", 1, "--out"]
    assert winnow(*words, tmp_path / "whole").exit_code == 0
    taken, one_step = [], walk.one_step

    def once(*given):
        taken.append(1)
        if len(taken) == 100:  # in the second rung
            raise KeyboardInterrupt
        return one_step(*given)

    monkeypatch.setattr(walk, "one_step", once)
    stopped = winnow(*words, tmp_path / "p")
    assert stopped.exit_code == 130 and "goes on from here" in stopped.output
    assert not (tmp_path / "p" / "run.json").exists()
    monkeypatch.setattr(walk, "one_step", one_step)
    assert winnow(*words, tmp_path / "p").exit_code == 0
    records = [json.loads((tmp_path / name / "run.json").read_text())["points"] for name in ("whole", "p")]
    assert [p["score"] for p in records[0]] == [p["score"] for p in records[1]]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--densities 1,x", "numbers with commas"),
        ("--densities 0.5,0.1", "begin with 1.0"),
        ("--points 3 --densities 1,0.5", "give one of the two"),
        ("--points 99", "--points must be 1 to 8"),
        ("--of sugar", "--of: choose from keep, keep-macs, keep-params"),
        ("--of keep-macs", "add --where channels"),
        ("--cost 1", "cost"),
    ],
)
def test_a_bad_path(words: str, complaint: str, tmp_path: Path) -> None:
    done = winnow("path", "digits", "--out", tmp_path / "p", *words.split())
    assert done.exit_code == 2 and complaint in done.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("words", "route", "factor"),
    [
        ("--keep 0.2", "Gating(penalty=Lp(p=1.0), start=None)", 1.0),
        ("--keep 0.2 --optimizer adamw --lr 0.001", "Gating(penalty=Lp(p=1.0), start=None)", 3.0),  # depth 2
        ("--keep 0.5 --where rows --optimizer adamw", "Gating(penalty=Lp(p=1.0), start=None)", 1.0),
        ("--strength 1e-4", "Gating(penalty=Lp(p=1.0), start=None)", 1.0),
    ],
)
def test_auto_says_which_route_it_took(words: str, route: str, factor: float, tmp_path: Path) -> None:
    done = winnow("train", "digits", "--how", "auto", *words.split(), "--epochs", "2", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["route"] == route and record["rate_factor"] == factor
    assert " ".join(route.split()) in " ".join(done.output.split())
    with (tmp_path / "run" / "history.csv").open() as lines:
        rates = {side: max(float(r["lr"]) for r in rows) for side, rows in _by_side(csv.DictReader(lines)).items()}
    assert rates["sparse"] == pytest.approx(factor * rates["dense"])


def _by_side(rows):
    found: dict[str, list] = {}
    for row in rows:
        found.setdefault(row["side"], []).append(row)
    return found


def test_auto_has_a_penalty(tmp_path: Path) -> None:
    bad = winnow("train", "digits", "--how", "auto", "--penalty", "mcp", "--out", tmp_path / "bad")
    assert bad.exit_code == 2 and "--how auto has a penalty of its own" in bad.stderr
