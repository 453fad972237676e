"""Targets in parameters and multiply–accumulates: what is counted is what the smaller model has."""

import pytest
import torch
import zoo
from test_channels import train
from test_smaller import thinned

import winnow
from winnow import Channels, Gating, MACs, Parameters, Toward
from winnow.counts import Size, Spending
from winnow.cut import smallest
from winnow.errors import AttachError, TraceError
from winnow.routes.base import Site
from winnow.trace import Tracer, graph_of
from winnow.units import units_of

COUNTS = {"parameters": Parameters(), "macs": MACs()}
every_count = pytest.mark.parametrize("word", COUNTS)


@every_count
@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name != "GRU"])
def test_the_count_is_that_of_the_smaller_model(name, word):
    """GRU: torch counts the products inside a recurrent layer where it is not fused, and they never change."""
    model, example, _, dead = thinned(name)
    tracer = Tracer(graph_of(model, example)).run()
    spending = COUNTS[word].spending(tracer, units_of(tracer))
    _, proof = winnow.compact(model, example)
    before, after = getattr(proof, word)
    assert spending.of(spending.units) == before
    assert spending.of([int((~marks).sum()) for marks in dead]) == after < before


@every_count
@pytest.mark.parametrize("name", ["ResNet-18", "nanoGPT", "MobileNetV2"])
@pytest.mark.parametrize("density", [0.3, 0.6])
def test_to_a_share_of_it(name, word, density):
    model, example = zoo.build(name)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    where = Channels(example, count=COUNTS[word])
    run = winnow.attach(model, optimizer, how=Gating(depth=3), where=where, when=Toward(density=density, steps=20))
    assert run.density() == 1
    train(model, example, optimizer, 20)
    run.settle()
    _, proof = winnow.compact(model.eval(), example)
    before, after = getattr(proof, word)
    assert after / before == pytest.approx(run.density(), abs=1e-12)  # the same integers, divided
    assert after / before <= density
    tracer = Tracer(graph_of(model, example)).run()
    spending = COUNTS[word].spending(tracer, units_of(tracer))
    alive = [layer.alive for layer in run.layers()]
    more = [spending.share([n + (i == j) for j, n in enumerate(alive)]) for i in range(len(alive))]
    least = all(layer.alive == 1 for layer in run.layers())
    assert max(more) > density or least  # one unit more, somewhere, would be too much


def test_half_of_the_units_is_a_quarter_of_the_products():
    """Negative control: entries add up, products do not."""
    model, example, _, _ = thinned("LeNet-300-100")
    tracer = Tracer(graph_of(model, example)).run()
    layers = units_of(tracer)
    half = [layer.count / 2 for layer in layers]
    middle = [term for term in MACs().spending(tracer, layers).terms if sum(bool(size.each) for size in term) == 2]
    assert len(middle) == 1
    whole, part = (torch.tensor([s.at(alive) for s in middle[0]]).prod() for alive in ([x.count for x in layers], half))
    assert part == whole / 4


def test_cut_and_density_speak_of_the_same():
    model, example = zoo.build("ResNet-18")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = winnow.attach(model, optimizer, how=Gating(depth=2), where=Channels(example, count=MACs()), when=0.0)
    run.cut(0.4)
    assert 0.3 < run.density() <= 0.4
    run.settle()
    assert 0.3 < run.density() <= 0.4


def test_one_unit_per_layer_stays_whatever_is_asked():
    model, example = zoo.build("MLP")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = winnow.attach(model, optimizer, how=Gating(depth=2), where=Channels(example, count=Parameters()), when=0.0)
    run.cut(1e-9)
    assert [layer.alive for layer in run.layers()] == [1] * len(run.layers())


def test_a_class_is_not_a_count():
    model, example = zoo.build("MLP")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachError, match=r"must be MACs\(\)"):
        winnow.attach(model, optimizer, how=Gating(depth=2), where=Channels(example, count=MACs), when=0.1)


def test_the_grain_is_the_largest_units_share():
    model, example = zoo.build("MLP")
    for count in (None, Parameters()):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = winnow.attach(model, optimizer, how=Gating(depth=2), where=Channels(example, count=count), when=0.0)
        whole, found = run.density(), []
        for lane in run._lanes:
            if count is None:
                found.append(lane.site.entries / sum(layer.size for layer in run.layers()))
            else:
                alive = [layer.alive - (layer.name == lane.site.name) for layer in run.layers()]
                found.append(whole - run._census.spending.share(alive))
        assert run.grain == pytest.approx(max(found), abs=1e-12)
        run.release()


def test_masking_still_refuses_units():
    model, example = zoo.build("MLP")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachError, match="single"):
        winnow.attach(model, optimizer, how=winnow.Masking(), where=Channels(example, count=MACs()), when=0.1)


def test_what_costs_nothing_is_ranked_too():
    """Depth of a table costs parameters and no products: a unit's price may be nought."""
    spending = Spending(((Size(0.0, {0: 1.0}),),), (4, 4))
    assert spending.prices == [0.25, 0.0]
    lanes = []
    for _ in range(2):
        theta = torch.nn.Parameter(torch.ones(4, 3))
        optimizer = torch.optim.SGD([theta], lr=0.1)
        lanes.append(Gating(depth=2).lane(Site("w", theta, winnow.Rows().bind(theta.shape)), optimizer))
    dear, free = smallest(lanes, 0.5, spending)
    assert int((~dear).sum()) == 2
    assert int((~free).sum()) == 4


def test_nothing_to_count_is_said():
    """A scale and nothing else: no product anywhere."""
    model, example = zoo.build("MLP")
    tracer = Tracer(graph_of(model, example)).run()
    for node in list(tracer.module.graph.nodes):
        if node.op == "call_function" and "linear" in str(node.target):
            node.target = torch.ops.aten.relu.default
    with pytest.raises(TraceError, match="nothing to count"):
        MACs().spending(tracer, units_of(tracer))
