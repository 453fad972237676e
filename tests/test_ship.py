"""Exported files compute the same, and measuring measures."""

import pytest
import torch
import zoo
from test_smaller import thinned
from torch import nn

import winnow
from winnow.errors import FileError, TraceError
from winnow.measure import _Alive, repeated

# what a runtime cannot run, by its own words
NO_ONNX = {}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_onnx_runtime_agrees(name, tmp_path):
    model, example, *_ = thinned(name)
    small, _ = winnow.compact(model, example)
    error = winnow.export(small, tmp_path / "small.onnx", example)
    assert error <= 1e-4
    assert (tmp_path / "small.onnx").stat().st_size > 0


@pytest.mark.parametrize("name", ["ResNet-18", "fixed sizes", "BERT"])
def test_torch_exports_own_file_agrees(name, tmp_path):
    model, example, *_ = thinned(name)
    small, _ = winnow.compact(model, example)
    assert winnow.export(small, tmp_path / "small.pt2", example) <= 1e-6


class Fixed(nn.Module):
    """Reads a batch of four and no other."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x).view(4, 3)


class Two(nn.Module):
    """Rows by name, and a table that all of them share."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x, table):
        return self.fc(x) @ table


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", ["MLP", "ResNet-18", "nanoGPT", "BERT", "LSTM", "siamese"])
def test_a_file_for_every_batch_size(name, suffix, tmp_path):
    model, example, *_ = thinned(name)
    small, _ = winnow.compact(model, example)
    assert winnow.export(small, tmp_path / f"small{suffix}", example, dynamic_batch=True) <= 1e-4


def test_a_file_takes_the_batch_it_was_written_for_or_any(tmp_path):
    import onnxruntime

    model = zoo.mlp().eval()
    for name, dynamic in (("fixed.onnx", False), ("free.onnx", True)):
        winnow.export(model, tmp_path / name, torch.randn(1, 12), dynamic_batch=dynamic)
    x = torch.randn(7, 12)
    session = onnxruntime.InferenceSession(str(tmp_path / "free.onnx"))
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), model(x).detach(), rtol=1e-5, atol=1e-6)
    session = onnxruntime.InferenceSession(str(tmp_path / "fixed.onnx"))
    with pytest.raises(Exception, match=r"[Gg]ot invalid dimensions"):
        session.run(None, {session.get_inputs()[0].name: x.numpy()})


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_inputs_without_the_batch_keep_their_sizes(suffix, tmp_path):
    example = {"x": torch.randn(5, 6), "table": torch.randn(3, 2)}
    assert winnow.export(Two(), tmp_path / f"two{suffix}", example, dynamic_batch=True) <= 1e-5


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_model_of_one_batch_size_is_not_written_for_all(suffix, tmp_path):
    path = tmp_path / f"fixed{suffix}"
    with pytest.raises(FileError, match="for every batch size"):
        winnow.export(Fixed(), path, torch.randn(4, 6), dynamic_batch=True)
    assert not path.exists()
    assert winnow.export(Fixed(), path, torch.randn(4, 6)) <= 1e-5


def test_a_batch_needs_a_first_dimension(tmp_path):
    with pytest.raises(FileError, match="no tensor with one"):
        winnow.export(zoo.mlp(), tmp_path / "x.onnx", torch.tensor(1.0), dynamic_batch=True)


@pytest.mark.parametrize("shape", ["same", "other"])
def test_a_file_that_computes_otherwise_is_refused(tmp_path, monkeypatch, shape):
    model, example = zoo.build("MLP")
    real = torch.export.export

    def wrong(module, *args, **kwargs):
        other = zoo.build("MLP", seed=9)[0]
        return real(other if shape == "same" else nn.Sequential(other, nn.ZeroPad1d(1)), *args, **kwargs)

    monkeypatch.setattr(torch.export, "export", wrong)
    with pytest.raises(FileError, match="read back and its outputs differ"):
        winnow.export(model, tmp_path / "wrong.pt2", example)
    assert not (tmp_path / "wrong.pt2").exists()


def test_other_suffixes(tmp_path):
    with pytest.raises(FileError, match=r"must end in \.onnx or \.pt2"):
        winnow.export(zoo.mlp(), tmp_path / "x.pth", torch.randn(1, 12))


def test_measure_takes_turns_and_counts():
    small, large = nn.Sequential(nn.Linear(64, 8)), nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 8))
    found = winnow.measure(large, small, torch.randn(2, 64), batches=(1, 32), seconds=0.05)
    assert [t.batch for t in found.before] == [1, 32]
    assert all(t.minimum <= t.p50 <= t.p95 for t in (*found.before, *found.after))
    assert all(ratio > 1 for ratio in found.speedup)  # five hundred times the work
    assert found.rounds >= 5
    assert "faster" in str(found)
    assert large.training
    assert small.training


def test_peak_memory_by_hand():
    with _Alive() as alive:
        a = torch.ones(1000)  # 4 kB
        b = a + 1  # 8 kB alive
        del a
        c = b * 2  # 8 kB again
        del b
        d = c.view(10, 100)  # no memory of its own
    assert alive.peak == 8000
    assert alive.now == 4000
    assert d.numel() == 1000


def test_batches_of_every_input():
    pair = repeated((torch.arange(3)[:, None], torch.ones(7)), 5)
    assert pair[0][:, 0].tolist() == [0, 1, 2, 0, 1] or pair[1].shape == (5,)
    assert repeated({"x": torch.zeros(2, 4)}, 6)["x"].shape == (6, 4)
    with pytest.raises(TraceError, match="batches must be sizes"):
        winnow.measure(zoo.mlp(), zoo.mlp(), torch.randn(2, 12), batches=(0,))
