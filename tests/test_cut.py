"""What goes first: the ranking of groups larger than one entry."""

import pytest
import torch
from torch import nn

from winnow import Gating, Rows
from winnow.cut import smallest, worth
from winnow.routes.base import Site


def lane(weight):
    theta = nn.Parameter(weight)
    optimizer = torch.optim.SGD([theta], lr=0.1)
    return Gating(depth=2).lane(Site("w", theta, Rows().bind(theta.shape)), optimizer)


def rows(*norms, width=4):
    """A weight with rows of these norms."""
    return torch.tensor(norms)[:, None] * torch.nn.functional.normalize(torch.ones(len(norms), width), dim=1)


@pytest.mark.parametrize("shape", [(7,), (5, 1), (1,)])
def test_worth_is_the_share_of_what_is_at_least_as_large(shape):
    norm = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1
    values = norm.flatten().tolist()
    wanted = [(v**2 / sum(u**2 for u in values if u >= v)) ** 0.5 for v in values]
    assert worth(norm).shape == norm.shape
    torch.testing.assert_close(worth(norm).flatten(), torch.tensor(wanted))


def test_worth_of_nothing_and_of_very_little():
    found = worth(torch.tensor([0.0, 3.0, 1e-15, 0.0]))
    assert found[0] == found[3] == 0
    assert found[1] == 1
    assert 0 < found[2] < 1e-14


def test_scale_does_not_matter_between_layers():
    """The same profile at a thousandth of the scale loses as much."""
    profile = [1.0, 0.9, 0.8, 0.3, 0.2, 0.1]
    big, small = smallest([lane(rows(*profile)), lane(rows(*(p / 1000 for p in profile)))], 0.5)
    assert torch.equal(big, small)
    assert big.flatten().tolist() == [False] * 3 + [True] * 3


def test_a_thin_layer_is_spared():
    """Forty equal rows and four equal rows, as dear each: the forty go first, down to four of each."""
    many, few = lane(rows(*[1.0] * 40)), lane(rows(*[1.0] * 4))
    for keep in (30, 20, 10, 8):
        dead = smallest([many, few], keep / 44)
        assert [int((~marks).sum()) for marks in dead] == [keep - 4, 4]
    dead = smallest([many, few], 6 / 44)
    assert [int((~marks).sum()) for marks in dead] == [3, 3]


def test_dear_groups_go_before_cheap_ones():
    """Rows of 64 entries against rows of 4, the same norms."""
    wide, narrow = smallest([lane(rows(*[1.0] * 8, width=64)), lane(rows(*[1.0] * 8, width=4))], 0.5)
    assert int(wide.sum()) > int(narrow.sum())
