"""WHERE: every grouping on every rank it fits, against a loop over the groups' entries that anyone can check."""

import itertools
import math

import pytest
import torch
from torch import nn

import winnow
from winnow import NM, Axes, Blocks, Columns, Decay, Elements, Gating, Heads, Lp, Masking, Rows
from winnow.errors import GroupError
from winnow.groups import Split

CASES = [
    (Elements(), (6,)),
    (Elements(), (4, 6)),
    (Elements(), (2, 3, 4)),
    (Elements(), (2, 3, 2, 4)),
    (Rows(), (6,)),
    (Rows(), (4, 6)),
    (Rows(), (4, 3, 2)),
    (Rows(), (4, 3, 2, 5)),
    (Columns(), (4, 6)),
    (Columns(), (4, 3, 2)),
    (Columns(), (4, 3, 2, 5)),
    (Axes(), (3, 4)),
    (Axes(0), (5,)),
    (Axes(0, 1), (3, 4)),
    (Axes(-1), (3, 2, 4)),
    (Axes(0, -1), (3, 2, 4)),
    (Axes(0, 1), (4, 3, 3, 2)),
    (Axes(2, 3), (4, 3, 3, 2)),
    (Blocks((2,)), (6,)),
    (Blocks((2, 3)), (4, 6)),
    (Blocks((2,)), (4, 3)),
    (Blocks((2, 1)), (4, 3, 5)),
    (Blocks((2, 3)), (4, 6, 2, 3)),
    (Blocks((1, 1, 3, 3)), (2, 3, 3, 3)),
    (NM(2, 4), (3, 8)),
    (NM(1, 3), (2, 6, 2, 2)),
    (Heads(3), (12,)),
    (Heads(3), (12, 5)),
    (Heads(2, fused=3), (12, 5)),
    (Heads(3, axis=1), (5, 12)),
    (Heads(2, axis=-1, fused=2), (5, 8)),
    (Heads(2, axis=1), (3, 4, 2)),
    (Heads(2, axis=2, fused=2), (2, 3, 8, 2)),
]
"""(grouping, shape). One line to join; `label` below must know the grouping."""


def label(rule, shape, index):
    """The name of the group that the entry at `index` belongs to: each grouping's definition, in plain arithmetic."""
    match rule:
        case Elements() | NM():
            return index
        case Rows():
            return index[0]
        case Columns():
            return index[1]
        case Axes(kept=kept):
            return tuple(index[axis] for axis in kept)
        case Blocks(block=block):
            return tuple(i // b for i, b in zip(index, block, strict=False))
        case Heads(count=count, axis=axis, fused=fused):
            width = shape[axis] // (count * fused)
            return index[axis] // width % count
    raise AssertionError(rule)


def members(rule, shape):
    """group name → its entries' indices."""
    found = {}
    for index in itertools.product(*map(range, shape)):
        found.setdefault(label(rule, shape, index), []).append(index)
    return found


def sample(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def name(case):
    return f"{case[0]} {case[1]}".replace("weighted=False, ", "").replace("(weighted=False)", "")


def layouts(x):
    """The same tensor in other memory layouts, none of which may be copied or change a number."""
    yield x
    if x.ndim == 4:
        yield x.contiguous(memory_format=torch.channels_last)
    if x.ndim >= 2:
        yield x.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_groups_are_a_partition_into_equal_parts(case):
    rule, shape = case
    groups = rule.bind(shape)
    parts = members(rule, shape)
    assert groups.count == len(parts)
    assert {len(part) for part in parts.values()} == {groups.size}
    assert groups.size * groups.count == math.prod(shape)
    assert math.prod(groups.gate_shape) == groups.count
    assert groups.scale == 1.0
    assert str(shape) in str(groups)
    assert f"{groups.count} groups" in str(groups)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_norm_and_total_match_a_loop(case):
    rule, shape = case
    groups = rule.bind(shape)
    for x in layouts(sample(shape)):
        norms, totals = groups.norm(x), groups.total(x)
        assert norms.shape == totals.shape == groups.gate_shape
        mark = groups.spread(
            torch.arange(groups.count, dtype=torch.float64).view(groups.gate_shape), torch.ones_like(x)
        )
        for part in members(rule, shape).values():
            [gate] = {int(mark[index]) for index in part}  # one gate, and the same, for all its entries
            values = [float(x[index]) for index in part]
            assert float(norms.flatten()[gate]) == pytest.approx(math.sqrt(sum(v * v for v in values)), rel=1e-14)
            assert float(totals.flatten()[gate]) == pytest.approx(sum(values), rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_spread_is_linear_and_keeps_the_shape(case):
    rule, shape = case
    groups = rule.bind(shape)
    a, b = sample(groups.gate_shape, 1), sample(groups.gate_shape, 2)
    for x in layouts(sample(shape)):
        y = sample(shape, 3)
        assert torch.equal(groups.spread(torch.ones_like(a), x), x)
        torch.testing.assert_close(groups.spread(2 * a + b, x), 2 * groups.spread(a, x) + groups.spread(b, x))
        torch.testing.assert_close(groups.spread(a, 2 * x + y), 2 * groups.spread(a, x) + groups.spread(a, y))
        assert groups.spread(a, x).stride() == x.stride()
        # the adjoint of `spread` in the gates is `total` of the product
        torch.testing.assert_close((groups.spread(a, x) * y).sum(), (a * groups.total(x * y)).sum())
        torch.testing.assert_close(groups.norm(groups.spread(a, x)), a.abs() * groups.norm(x))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_view_shares_memory_in_every_layout(case):
    rule, shape = case
    groups = rule.bind(shape)
    for x in layouts(sample(shape)):
        groups.split(x).mul_(0)
        assert not x.any()


@pytest.mark.parametrize("case", CASES, ids=name)
def test_compiled_codes_groups_are_the_same(case):
    rule, shape = case
    groups, x = rule.bind(shape), sample(shape)
    split, view = Split(groups.inside, groups.scale), groups.split(x)
    assert torch.equal(split.norm(view), groups.norm(x))
    assert torch.equal(split.total(view), groups.total(x))
    assert torch.equal(split.spread(groups.norm(x), view).view(shape), groups.spread(groups.norm(x), x))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_weighted_multiplies_by_the_root_of_the_size(case):
    rule, shape = case
    fields = {key: getattr(rule, key) for key in ("block", "count", "axis", "fused") if hasattr(rule, key)}
    if "block" in fields:
        fields = {"block": fields["block"]}
    if isinstance(rule, NM):
        fields = {"n": rule.n, "m": rule.m}
    heavy = Axes(*rule.kept, weighted=True) if isinstance(rule, Axes) else type(rule)(**fields, weighted=True)
    light, groups = rule.bind(shape), heavy.bind(shape)
    assert groups.scale == math.sqrt(light.size)
    assert (groups.view, groups.inside) == (light.view, light.inside)
    x = sample(shape)
    assert torch.equal(groups.norm(x), light.norm(x)), "the weight belongs to the penalty, not to the norm"


def test_fused_heads_take_q_k_and_v_together():
    heads, width = 2, 4
    weight = torch.zeros(3 * heads * width, 5)
    q, k, v = weight.split(heads * width)
    for part in (q, k, v):
        part[width:] = 1.0  # the second head
    assert Heads(heads, fused=3).bind(weight.shape).norm(weight).flatten().tolist() == [
        0.0,
        pytest.approx(math.sqrt(3 * width * 5)),
    ]


@pytest.mark.parametrize(
    ("how", "where"),
    [
        (Gating(depth=3), Elements()),
        (Gating(depth=3), Rows()),
        (Gating(depth=2), Columns(weighted=True)),
        (Gating(depth=2), Blocks((2, 3))),
        (Decay(Lp(0.5)), Columns()),
        (Masking(), Elements()),
    ],
    ids=str,
)
def test_channels_last_weights_train_as_contiguous_ones(how, where):
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3, bias=False).double().to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        run = winnow.attach(model, optimizer, how=how, where=where, when=0.1, fused=False)
        assert model.weight.is_contiguous(memory_format=layout)
        x = sample((2, 3, 5, 5))
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        run.cut(0.5)
        assert 0 < run.density() <= 0.5
        assert model.weight.is_contiguous(memory_format=layout)
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("where", [Rows(), Columns(), Blocks((2, 3)), Heads(2)], ids=str)
def test_the_group_weight_is_a_stronger_penalty(where):
    """weighted=True at λ is weighted=False at λ√size, bit for bit where √size is exact."""
    ends = []
    for rule, strength in ((where, None), (type(where)(**vars(where) | {"weighted": True}), 0.01)):
        torch.manual_seed(0)
        model = nn.Linear(4 if where == Rows() else 6, 4, bias=False).double()
        size = where.bind(model.weight.shape).size
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        when = 0.01 * math.sqrt(size) if strength is None else strength
        winnow.attach(model, optimizer, how=Gating(depth=2), where=rule, when=when, fused=False)
        for step in range(5):
            optimizer.zero_grad()
            model(sample((8, model.in_features), step)).square().mean().backward()
            optimizer.step()
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-13, atol=0)


BAD = [
    (Blocks((4, 4)), (6, 8), "(6, 8)"),
    (Blocks((2, 2, 2)), (4, 4), "(4, 4)"),
    (Blocks((0, 2)), (4, 4), "(4, 4)"),
    (NM(2, 4), (6, 6), "multiple of m"),
    (NM(4, 4), (4, 8), "0 < n < m"),
    (NM(2, 4), (8,), "second axis"),
    (Heads(5), (12, 4), "count × fused = 5"),
    (Heads(4, fused=3), (16, 4), "count × fused = 12"),
    (Heads(2, axis=2), (4, 4), "axis 2"),
    (Heads(0), (4, 4), "(4, 4)"),
    (Columns(), (4,), "(4,)"),
    (Axes(2), (3, 4), "(3, 4)"),
    (Axes(0, -2), (3, 4), "(3, 4)"),
]


@pytest.mark.parametrize(("rule", "shape", "named"), BAD, ids=str)
def test_a_grouping_that_does_not_fit_names_itself_and_the_shape(rule, shape, named):
    with pytest.raises(GroupError) as error:
        rule.bind(shape)
    message = str(error.value)
    assert type(rule).__name__ in message
    assert str(shape) in message
    assert named in message
    assert ";" in message, "says what to try next"
