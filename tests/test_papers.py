"""The published experiments: each runs in its quick form; a study resumes, refuses, and says what is missing."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import winnow
from winnow import papers
from winnow.errors import WinnowError
from winnow.jobs.data import Examples
from winnow.papers import EXPERIMENTS, Experiment, Missing, Outcome, Table, open_study, reproduce
from winnow.papers.base import Bench, Diverged, claim
from winnow.papers.study import judge_again, judged
from winnow.papers.texts import DECAY
from winnow.papers.training import Stream, Training, cosine, shuffled

ROOT = Path(__file__).parents[1]


class Silent:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self, line, done, count):
        pass


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick(name, tmp_path):
    """Runs to a record with numbers, a figure and a verdict on its claims, or says which data are missing."""
    done = papers.perform(name, 1, True, 1, tmp_path / "record", Silent())
    record = json.loads((tmp_path / "record" / "record.json").read_text(encoding="utf-8"))
    assert record == json.loads(json.dumps(done.record))
    outcomes = {Outcome(verdict["outcome"]) for verdict in record["verdicts"]}
    if record["missing"] and outcomes == {Outcome.NOT_RUN}:
        pytest.skip(record["missing"][0])
    known = {*(claim.words for claim in EXPERIMENTS[name].claims), *(verdict.claim for verdict in EXPERIMENTS[name].beyond)}
    assert {verdict["claim"] for verdict in record["verdicts"]} <= known
    assert record["table"]["rows"] and all(len(row) == len(record["table"]["columns"]) for row in record["table"]["rows"])
    files = {path.name for path in (tmp_path / "record").iterdir()}
    assert files == {"record.json", "raw.json", "figure.png", "figure.svg", "README.md"}
    assert (tmp_path / "record" / "figure.png").stat().st_size > 5000
    page = (tmp_path / "record" / "README.md").read_text(encoding="utf-8")
    assert all(verdict["outcome"] in page for verdict in record["verdicts"])
    assert "nan" not in re.findall(r"[a-z]+", page.split("Settings:")[0].split("|---")[-1])


def grows(holds):
    """A claim on it, and whether it comes true."""
    return claim("they grow", published="yes")(lambda rows, _: ("yes" if holds else "no", holds))


def squares(calls, fail_at=None, missing=False):
    """An experiment of four cells, x ↦ x²."""

    def run(cell, settings, bench):
        calls.append(cell["x"])
        if cell["x"] == fail_at:
            raise KeyboardInterrupt
        if missing:
            raise Missing("no numbers here")
        return {"y": cell["x"] ** settings["power"]}

    def draw(rows, settings):
        figure, (ax,) = papers.plots.panels(1)
        ax.plot([row["x"] for row in rows], [row["y"] for row in rows])
        return figure

    return Experiment(
        name="squares", paper=DECAY, title="Squares", claims=(grows(True),), differs="Nothing.", full={"power": 2},
        quick={"power": 1}, cells=lambda settings, seeds: [{"x": x, "seed": s} for s in range(seeds) for x in range(4)],
        run=run, draw=draw,
        table=lambda rows, _: Table(("x", "y"), [[str(row["x"]), str(row["y"])] for row in rows]),
    )  # fmt: skip


def test_an_interrupted_study_goes_on(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        reproduce(open_study(squares(calls, fail_at=2), 2, False, None, tmp_path))
    assert calls == [0, 1, 2]
    calls.clear()
    again = open_study(squares(calls), 2, False, None, tmp_path)
    record = reproduce(again)
    assert calls == [2, 3, 0, 1, 2, 3]  # what was done is not done again
    assert [row[1] for row in record["table"]["rows"]] == ["0", "1", "4", "9"] * 2
    assert len(list(tmp_path.iterdir())) == 1
    calls.clear()
    third = open_study(squares(calls), 2, False, None, tmp_path)  # the finished one stays as it is
    assert third.folder != again.folder and calls == []


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        reproduce(open_study(squares([], fail_at=1), 1, False, tmp_path / "a"))
    with pytest.raises(WinnowError, match="holds another run"):
        open_study(squares([]), 1, True, tmp_path / "a")  # another size
    with pytest.raises(WinnowError, match="holds another run"):
        open_study(squares([]), 3, False, tmp_path / "a")  # other seeds
    reproduce(open_study(squares([]), 1, False, tmp_path / "a"))
    with pytest.raises(WinnowError, match="holds another run"):
        open_study(squares([]), 1, False, tmp_path / "a")  # finished
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("…")
    with pytest.raises(WinnowError, match="other files"):
        open_study(squares([]), 1, False, tmp_path / "b")


def test_a_half_written_cell_does_not_count(tmp_path):
    study = open_study(squares([]), 1, False, tmp_path / "a")
    (study.folder / "cells" / "0123.json.part").write_text('{"x": ')
    assert reproduce(study)["table"]["rows"][0] == ["0", "0"]


def test_a_result_cannot_hide_what_a_cell_keeps(tmp_path):
    hiding = dataclasses.replace(squares([]), run=lambda cell, settings, bench: {"y": 0, "seconds": 1.0})
    with pytest.raises(WinnowError, match="squares returns seconds"):
        reproduce(open_study(hiding, 1, False, tmp_path / "a"))


def test_missing_data_are_said(tmp_path):
    record = reproduce(open_study(squares([], missing=True), 1, False, tmp_path / "a"))
    assert record["missing"] == ["no numbers here"] and record["table"] is None
    assert [verdict["outcome"] for verdict in record["verdicts"]] == ["could not run here"]
    assert "Missing data: no numbers here" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert judged(squares([]), [], {})[0].outcome is Outcome.NOT_RUN


def test_cells_side_by_side_are_the_same(tmp_path):
    one, two = (papers.perform("decay-toy", None, True, jobs, tmp_path / str(jobs), Silent()) for jobs in (1, 2))
    assert one.record["table"] == two.record["table"] and one.record["verdicts"] == two.record["verdicts"]
    assert two.record["command"] == "winnow reproduce decay-toy --quick --jobs 2"


@pytest.mark.parametrize(
    ("name", "seeds", "jobs", "words"), [("nope", None, 1, "choose from"), ("decay-toy", 0, 1, "at least 1")]
)
def test_bad_usage(name, seeds, jobs, words, tmp_path):
    with pytest.raises(WinnowError, match=words):
        papers.perform(name, seeds, True, jobs, tmp_path / "a", Silent())
    assert not (tmp_path / "a").exists()


def test_pages_are_what_the_records_say():
    done = subprocess.run(
        [sys.executable, "scripts/papers.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_show_their_figures():
    for path in (ROOT / "docs" / "papers").glob("*.md"):
        for figure in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / figure).exists(), figure


def test_every_experiment_is_told_apart():
    assert len({one.title for one in EXPERIMENTS.values()}) == len(EXPERIMENTS) == len(papers.MODULES)
    assert all(one.paper in papers.PAPERS and one.claims and one.differs for one in EXPERIMENTS.values())


def test_judging_again_changes_words_and_no_numbers(tmp_path):
    first = reproduce(open_study(squares([]), 1, False, tmp_path / "a"))
    raw = (tmp_path / "a" / "raw.json").read_bytes()
    stricter = dataclasses.replace(squares([]), claims=(grows(False),))
    again = judge_again(stricter, tmp_path / "a")
    assert (tmp_path / "a" / "raw.json").read_bytes() == raw
    assert again["verdicts"][0]["outcome"] == "not confirmed" and papers.read(tmp_path / "a") == again
    assert {key: again[key] for key in ("environment", "command", "settings")} == {
        key: first[key] for key in ("environment", "command", "settings")
    }


def test_a_diverged_cell_is_named_and_left_out(tmp_path):
    def run(cell, settings, bench):
        if cell["x"] == 1:
            raise Diverged("loss nan in epoch 1")
        return {"y": cell["x"]}

    record = reproduce(open_study(dataclasses.replace(squares([]), run=run), 1, False, tmp_path / "a"))
    assert record["diverged"] == ["x=1 seed=0 (loss nan in epoch 1)"]
    assert [row[0] for row in record["table"]["rows"]] == ["0", "2", "3"]
    assert "Diverged, and left out" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stop", [1, 2])
def test_a_training_resumes_where_it_was(stop, tmp_path, monkeypatch):
    """Whole in one go, or interrupted after `stop` epochs and gone on: the same weights, to the bit."""

    def training():
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        winnow.attach(model, optimizer, how=winnow.Gating(depth=3), where=winnow.Elements(), when=0.01, fused=False)
        x, y = torch.randn(40, 6), torch.randint(3, (40,))
        return model, Training(model, optimizer, shuffled(x, y, 8, 0), 4, cosine(optimizer, 20))

    monkeypatch.setattr("winnow.papers.training.EVERY", -1.0)  # a checkpoint after every epoch
    whole, one = training()
    history = one.fit(Bench(None))
    _, two = training()

    def interrupted(epoch, loss):
        if epoch == stop + 1:
            raise KeyboardInterrupt
        return {"epoch": epoch, "loss": loss}

    two.each = interrupted
    with pytest.raises(KeyboardInterrupt):
        two.fit(Bench(tmp_path))
    resumed, three = training()
    assert three.fit(Bench(tmp_path)) == history
    assert torch.equal(whole.weight, resumed.weight)


def test_a_stream_is_the_same_in_any_number_of_parts():
    data = Examples("x", "", torch.arange(50.0)[:, None], torch.arange(50), torch.zeros(1, 1), torch.tensor([0]), 50)
    whole = [y.tolist() for _, y in Stream(data, 8, 3, 17, 1)(0)]
    assert len(whole) == 17
    for parts in (2, 5, 17):
        stream = Stream(data, 8, 3, 17, parts)
        assert [y.tolist() for part in range(parts) for _, y in stream(part)] == whole
