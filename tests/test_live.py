"""What a training shows: plain lines where there is no terminal, TensorBoard's scalars, several screens at once."""

import csv
import re
import sys

import pytest

pytest.importorskip("typer", reason="the command needs the extra cli")
from rich.console import Console
from typer.testing import CliRunner

from winnow import WinnowError
from winnow.cli import app
from winnow.jobs import live
from winnow.jobs.screen import Quiet, Screen

SHORT = ["digits", "--epochs", "2", "--keep", "0.3"]


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    done = CliRunner().invoke(app, ["train", *SHORT, "--out", str(tmp_path / "run")])
    lines = [line for line in done.output.splitlines() if re.match(r"(dense|sparse) \d+/\d+ loss ", line)]
    assert [line.split()[0] for line in lines] == ["dense"] * 10 + ["sparse"] * 10
    steps = [[int(word) for word in line.split()[1].split("/")] for line in lines]
    assert [a for a, _ in steps] == [-(-b * k // 10) for _ in range(2) for k, (_, b) in enumerate(steps[:10], 1)]
    assert "\x1b" not in done.output and "density" in lines[-1] and "→0.3" in lines[-1]


def test_fewer_steps_than_lines():
    console = Console(record=True, force_terminal=False)
    lines = live.Lines(console)
    lines.begin("rung", 3)
    for _ in range(3):
        lines.step(1.0, None, None)
    assert [line.split()[1] for line in console.export_text().splitlines()] == ["1/3", "2/3", "3/3"]


def test_the_screen_fits_the_console():
    assert isinstance(live.screen(Console(force_terminal=True)), Screen)
    assert isinstance(live.screen(Console(force_terminal=False)), live.Lines)


def read(folder):
    """{tag: [(step, value)]} of a TensorBoard run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("verb", ["train", "path"])
def test_tensorboard_shows_the_history(tmp_path, verb):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    words = ["train", *SHORT] if verb == "train" else ["path", "digits", "--epochs", "1", "--densities", "1,0.3"]
    done = CliRunner().invoke(app, [*words, "--tensorboard", "--out", str(run)])
    assert done.exit_code == 0, done.output
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sides = {row["side"] for row in rows}
    assert {folder.name for folder in (run / "tensorboard").iterdir()} == {side.replace(" ", "-") for side in sides}
    for side in sides:
        shown = read(run / "tensorboard" / side.replace(" ", "-"))
        mine = [row for row in rows if row["side"] == side]
        columns = [column for column in live.TAGS if column in rows[0]]
        assert set(shown) == {live.TAGS[column] for column in columns}
        for column in columns:
            assert [step for step, _ in shown[live.TAGS[column]]] == [int(row["step"]) for row in mine]
            values = [value for _, value in shown[live.TAGS[column]]]
            assert values == pytest.approx([float(row[column]) for row in mine], rel=1e-6)  # they are kept in float32


def test_without_tensorboard_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(WinnowError, match=r"torch-winnow\[tensorboard\]"):
        live.Board()
    done = CliRunner().invoke(app, ["train", *SHORT, "--tensorboard", "--out", str(tmp_path / "run")])
    assert done.exit_code == 2 and not (tmp_path / "run").exists()


def test_both_hands_on_everything(tmp_path):
    class Seen(Quiet):
        def __init__(self):
            self.calls = []

        def __getattribute__(self, name):
            if name.startswith("_") or name == "calls":
                return super().__getattribute__(name)
            return lambda *given: self.calls.append((name, given))

        def __enter__(self):
            self.calls.append(("enter", ()))
            return self

        def __exit__(self, *given):
            self.calls.append(("exit", given))

    first, second = Seen(), Seen()
    asked = [("into", (tmp_path,)), ("say", ("x",)), ("begin", ("dense", 3)), ("step", (1.0, None, 0.1)),
             ("look", ({"side": "dense"},)), ("end", ())]  # fmt: skip
    assert {name for name, _ in asked} == {name for name in vars(Quiet) if not name.startswith("_")}
    with live.Both([first, second]) as both:
        for name, given in asked:
            getattr(both, name)(*given)
    assert first.calls == second.calls == [("enter", ()), *asked, ("exit", (None, None, None))]
