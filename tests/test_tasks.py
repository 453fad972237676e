"""Tasks: every built-in one learns on its real data; a user's own is one small file, and says what is wrong with it."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import winnow
from winnow.cli import app
from winnow.errors import WinnowError
from winnow.jobs import shrink, tables
from winnow.jobs.data import Examples
from winnow.jobs.options import Options
from winnow.jobs.tasks import TASKS, Task, read

MINE = """
from torch import nn

from winnow.jobs.data import load
from winnow.jobs.tasks import Task


def model(data, width):
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, data.classes))


TASK = Task("mine", "digits, by a network of my own", lambda say: load("digits", say=say), model,
            epochs=2, batch=32, optimizer="sgd", lr={"sgd": 0.1, "adamw": 1e-3})
"""


def loaded(name):
    try:
        return TASKS[name].load(lambda line: None)
    except WinnowError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["digits", "isolet", "wine", "adult", "sentiment"])
def test_a_task_learns(name):
    """A few hundred of its own steps beat the most frequent class, on real held-out data."""
    torch.manual_seed(0)
    task, data = TASKS[name], loaded(name)
    model = task.model(data, task.width)
    optimizer = torch.optim.AdamW(model.parameters(), task.lr["adamw"])
    assert int(data.y.max()) + 1 == data.classes == len(data.y.unique())
    taken = 0
    for epoch in range(task.epochs):
        for x, y in data.batches(task.batch, 0, epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            taken += 1
        if taken > 300:
            break
    right = float((model.eval()(data.test_x).argmax(1) == data.test_y).float().mean())
    assert right > float(data.test_y.bincount().max()) / len(data.test_y) + 0.03
    assert set(task.lr) == {"sgd", "adamw"}


@pytest.mark.parametrize("name", ["isolet", "sentiment"])
def test_units_of_a_task_can_go(name):
    """Whole units of the model are found, taken out, and the outputs are equal."""
    task, data = TASKS[name], loaded(name)
    model, example = task.model(data, 8 if task.width else None), data.sample()[0][:2]
    _, proof = winnow.remove(model.eval(), example, keep=0.5)
    assert proof.proved and proof.parameters[1] < 0.8 * proof.parameters[0]


def test_the_splits_do_not_overlap_and_are_standardised():
    data = loaded("wine")
    assert abs(float(data.x.mean())) < 1e-5 and abs(float(data.x.std(0, correction=0).mean()) - 1) < 1e-4
    assert len(data.x) + len(data.test_x) == 4898


def test_words_that_the_train_part_has_not_seen_are_one_code():
    data = loaded("sentiment")
    assert data.x.shape[1] == tables.WORDS and int(data.test_x.max()) <= int(data.x.max())
    assert bool((data.test_x == 1).any()) and bool((data.x[:, 0] > 0).all())


def test_a_task_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    done = CliRunner().invoke(app, ["train", "--task", str(file), "--keep", "0.3", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "mine" in done.output
    again = CliRunner().invoke(app, ["compact", str(tmp_path / "run")])  # the folder names the file
    assert again.exit_code == 0, again.output
    command = Options("mine", task=str(file), keep=0.3).filled().command()
    assert f"--task {file}" in command and command.startswith("winnow train mine")


BROKEN = {
    "no file": (None, "no such Python file"),
    "no TASK": ("x = 1", "defines no TASK"),
    "another thing": ("TASK = 3", "defines no TASK = .* but int"),
    "code that fails": ("1 / 0", "cannot be run: ZeroDivisionError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_task_file(case, tmp_path):
    text, complaint = BROKEN[case]
    if text is not None:
        (tmp_path / "task.py").write_text(text)
    with pytest.raises(WinnowError, match=complaint):
        read(tmp_path / "task.py")


def test_a_task_of_another_name(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(WinnowError, match="'mine', not 'yours'"):
        Options("yours", task=str(tmp_path / "mine.py")).filled()


def test_no_task_at_all():
    done = CliRunner().invoke(app, ["train"])
    assert done.exit_code == 2 and "name a task" in done.stderr


def test_the_list_names_them_all():
    shown = CliRunner().invoke(app, ["tasks"]).output
    assert all(re.search(rf"^{name}\b", shown, re.M) for name in TASKS)
    assert all(isinstance(task, Task) and task.about for task in TASKS.values())


@pytest.mark.parametrize("path", ["text/nothing.gz"])
def test_missing_data_say_where_they_belong(path, monkeypatch, tmp_path):
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path))
    with pytest.raises(WinnowError, match=f"put {path} below a folder"):
        tables.lines_of(path)


def test_damaged_data_are_named(monkeypatch, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "half.gz").write_bytes(b"\x1f\x8bhalf")
    monkeypatch.setenv("WINNOW_DATA", str(tmp_path))
    with pytest.raises(WinnowError, match=r"half\.gz: damaged or cut short"):
        tables.lines_of(str(Path("text") / "half.gz"))


LAYER = "nn.Linear(64, 24)"
FAILS = {
    "data": ('load("digits", say=say)', "1 / 0", "the task mine broke: ZeroDivisionError: .*task.py, line"),
    "model": (LAYER, "nn.Linear('64', 24)", r"the model of mine broke: TypeError: .*task\.py, line"),
    "no data": ('load("digits", say=say)', "None", r"task\.py: load\(say\) must return the data, as Examples"),
    "forward": (LAYER, "nn.Linear(65, 24)", "training broke: RuntimeError: .* cannot be multiplied"),
}


@pytest.mark.parametrize("verb", ["train", "path"])
@pytest.mark.parametrize("case", FAILS)
def test_code_of_ones_own_that_fails(case, verb, tmp_path):
    """One line that says where, exit code 2; a run that has begun leaves a record of it."""
    old, new, complaint = FAILS[case]
    file, out = tmp_path / "task.py", tmp_path / "run"
    assert old in MINE
    file.write_text(MINE.replace(old, new))
    done = CliRunner().invoke(app, [verb, str(file), "--out", str(out)])
    assert done.exit_code == 2 and "Traceback" not in done.output
    if verb == "train":
        assert re.search(complaint, done.stderr), done.stderr
        assert (out / "run.json").exists() == (case == "forward")


def test_labels_that_do_not_fit():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 3])
    with pytest.raises(WinnowError, match=r"training part go from 0 to 3; they must lie in \[0, classes\), and classes = 3"):
        Examples("mine", "drawn", x, y, x, y, classes=3)
    with pytest.raises(WinnowError, match="the test part has 4 examples and 3 labels"):
        Examples("mine", "drawn", x, y, x, y[:3], classes=4)


def test_a_tasks_own_width_reaches_its_model():
    """What `train` builds, with --width and without; `compare` gives it as well."""
    seen = []
    job = SimpleNamespace(model=lambda data, width: seen.append(width), width=48)
    for width in (None, 32):
        shrink.make(SimpleNamespace(job=job, width=width), None)
    assert seen == [48, 32]
