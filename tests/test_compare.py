"""The methods under one roof: each takes the same steps, reaches the density, and does what its paper says."""

import math

import pytest
import torch
from torch import nn

from winnow.compare import METHODS, Setting, density, train
from winnow.compare.base import Made, Training, cubic, largest, weights_of
from winnow.compare.rivals import RigL, erdos_renyi
from winnow.errors import WinnowError
from winnow.jobs.data import Examples

pytestmark = pytest.mark.filterwarnings("ignore::winnow.errors.WinnowWarning")
X = torch.randn(640, 20, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long() + 2 * (X[:, 2] > 0).long()
DATA = Examples("signs", "drawn", X[:512], Y[:512], X[512:], Y[512:], classes=4)
SPARSE = [name for name in METHODS if name != "dense"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 4))


def sgd(model, factor):
    return torch.optim.SGD(model.parameters(), 0.1 * factor, momentum=0.9)


def adamw(model, factor):
    return torch.optim.AdamW(model.parameters(), 3e-3 * factor, weight_decay=0.0)


def trained(name, keep=0.1, steps=300, optimizer=sgd, seed=0, value=None):
    method, model = METHODS[name], network(seed)
    if name == "PAT":
        pytest.importorskip("torchao.prototype.pat")
    value = method.values[1] if value is None else value
    return model, train(method, model, DATA, Setting(keep, steps, value, seed), 32, optimizer)


def accuracy(model):
    return float((model(DATA.test_x).argmax(1) == DATA.test_y).float().mean())


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_reaches_the_density_in_the_steps_given(name, optimizer):
    model, found = trained(name, optimizer=optimizer)
    weights = weights_of(model)
    wanted = 1.0 if name == "dense" else 0.1
    assert found["steps"] == 300 and abs(found["density"] - wanted) < 0.003
    assert found["density"] == density(weights)
    assert found["layers"] == [density([w]) for w in weights]
    assert all(share > 0 for share in found["layers"])
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (model, network())]
    assert shapes[0] == shapes[1]
    assert accuracy(model) > (0.4 if name == "random mask" else 0.55), accuracy(model)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_model(name):
    first, second = (trained(name, steps=60)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", SPARSE)
def test_the_number_that_is_tuned_matters(name):
    method = METHODS[name]
    models = [trained(name, steps=60, value=value)[0] for value in (method.values[0], method.values[-1])]
    assert any(not torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_every_method_has_the_same_tuning_budget():
    assert {len(method.values) for method in METHODS.values()} == {3}


def test_what_lies():
    """A method that leaves more than it was asked to, and one that diverges, are refused."""
    lazy = Made("lazy", "does nothing", (1.0,), Training)
    with pytest.raises(WinnowError, match=r"lazy left 1\.0000 of the weights where 0\.1 were asked for"):
        train(lazy, network(), DATA, Setting(0.1, 10, 1.0), 32, sgd)
    with pytest.raises(WinnowError, match=r"the loss is (nan|inf)"):
        train(METHODS["dense"], network(), DATA, Setting(1.0, 300, 1e4), 32, sgd)


def test_the_largest_over_all_weights_and_one_of_each():
    a, b = torch.tensor([[5.0, 1.0], [4.0, 3.0]]), torch.tensor([[0.1, 0.2]])
    masks = largest([a, b], 0.5)
    assert masks[0].tolist() == [[True, False], [True, False]] and masks[1].tolist() == [[False, True]]


def test_the_cubic_schedule():
    """Zhu and Gupta's: 1 at first, the target at the end, and (1 − s_f)·(1 − t)³ above it between."""
    assert cubic(0, 100, 500, 0.1) == cubic(100, 100, 500, 0.1) == 1
    assert cubic(500, 100, 500, 0.1) == cubic(900, 100, 500, 0.1) == pytest.approx(0.1)
    assert cubic(300, 100, 500, 0.1) == pytest.approx(0.1 + 0.9 / 8)


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 0.95])
def test_erdos_renyi(keep):
    """Densities ∝ (inputs + outputs)/(inputs·outputs), none above 1, the whole as asked."""
    shapes = [(300, 784), (100, 300), (10, 100)]
    sizes = [math.prod(shape) for shape in shapes]
    found = erdos_renyi(shapes, keep)
    assert sum(f * s for f, s in zip(found, sizes, strict=True)) == pytest.approx(keep * sum(sizes))
    assert max(found) <= 1
    free = [(f, sum(shape) / size) for f, shape, size in zip(found, shapes, sizes, strict=True) if f < 1]
    assert all(f / raw == pytest.approx(free[0][0] / free[0][1]) for f, raw in free)


def test_rigl_moves_connections_to_the_largest_gradients():
    """By hand, one move: the smallest of the live go, the dead of largest gradient come, at zero, without momentum."""
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    rigl = RigL(model, optimizer, Setting(0.5, 100, 1.0))
    rigl.masks = [torch.tensor([[True, True, False, False]])]
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 2.0, 0.0, 0.0]]))
    new = rigl._move(model.weight, torch.tensor([[9.0, 9.0, 1.0, -3.0]]), rigl.masks[0], 0.5)
    assert new.tolist() == [[False, True, False, True]]


def test_rigl_explores_more_than_it_keeps():
    """Over a run more connections have lived than live at any time, and the density never leaves the budget."""
    seen, model = [], network()
    method = Made("spy", "RigL", (1.0,), lambda m, o, s: Spy(m, o, s, seen))
    train(method, model, DATA, Setting(0.1, 200, 1.0), 32, sgd)
    ever = [torch.stack([step[k] for step in seen]).any(0) for k in range(3)]
    assert density([e.float() for e in ever]) > 0.15
    budgets = [sum(int(m.sum()) for m in step) for step in seen]
    assert max(budgets) - min(budgets) <= 3


class Spy(RigL):
    def __init__(self, model, optimizer, setting, seen):
        super().__init__(model, optimizer, setting)
        self.seen = seen

    def after(self, step):
        super().after(step)
        self.seen.append([mask.clone() for mask in self.masks])
        assert all(not bool(w[~mask].any()) for w, mask in zip(self.weights, self.masks, strict=True))
