"""Smaller models on two processes: trained there as whole ones are, and made there as on one."""

import pytest
import torch
import torch.distributed
import torch.multiprocessing
import zoo
from test_smaller import thinned
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import winnow
from winnow import Channels, Gating, Toward

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this torch has no gloo"
)
WORLD, STEPS = 2, 6
MODELS = ["ResNet-18", "fixed sizes"]  # a class, and a graph


def batch(example, rank=None):
    """A batch of four, or one rank's half of it."""
    torch.manual_seed(0)
    x = torch.randn(4, *example.shape[1:])
    return x if rank is None else x[rank * 2 : rank * 2 + 2]


def freeze_norms(model):
    """Statistics of half a batch are not those of the whole: eval mode, so that one process is comparable."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def train_on(small, x, wrapped=None):
    freeze_norms(small)
    model = small if wrapped is None else wrapped
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [theta.detach().clone() for theta in small.parameters()]


def sparsify(model, example, x, wrapped=None):
    freeze_norms(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = winnow.attach(wrapped or model, optimizer, how=Gating(depth=2), where=Channels(example, count=winnow.MACs()),
                        when=Toward(density=0.5, steps=STEPS))
    for _ in range(STEPS):
        optimizer.zero_grad()
        (wrapped or model)(x).square().mean().backward()
        optimizer.step()
    run.settle()
    small, proof = winnow.compact(model.eval(), example)
    return proof.proved, proof.macs, [theta.detach().clone() for theta in small.parameters()]


def both(rank=None):
    """What one process does, or one of two."""
    seen = {}
    for name in MODELS:
        model, example, *_ = thinned(name)
        small, _ = winnow.compact(model, example)
        small.train()
        wrapped = None if rank is None else DistributedDataParallel(small)
        seen[name] = train_on(small, batch(example, rank), wrapped)
    model, example = zoo.build("ResNet-18")
    seen["sparsified"] = sparsify(
        model, example, batch(example, rank), None if rank is None else DistributedDataParallel(model)
    )
    return seen


def work(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    try:
        seen = both(rank)
        plain = {k: [t.tolist() for t in v] for k, v in seen.items() if k in MODELS}
        queue.put((rank, plain, (*seen["sparsified"][:2], [t.tolist() for t in seen["sparsified"][2]])))
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=work, args=(rank, port, queue)) for rank in range(WORLD)]
    for worker in workers:
        worker.start()
    found = sorted((queue.get(timeout=300) for _ in workers), key=lambda item: item[0])
    for worker in workers:
        worker.join(60)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_model_trains_under_ddp_as_alone(name, ranks):
    alone = both()[name]
    for _, seen, _ in ranks:
        for a, b in zip(alone, seen[name], strict=True):
            torch.testing.assert_close(torch.tensor(b), a, rtol=1e-4, atol=1e-6)
    assert ranks[0][1][name] == ranks[1][1][name]


def test_units_are_chosen_alike_on_all_ranks(ranks):
    proved, macs, weights = both()["sparsified"]
    for _, _, (theirs, sizes, kept) in ranks:
        assert theirs
        assert proved
        assert sizes == macs
        for a, b in zip(weights, kept, strict=True):
            torch.testing.assert_close(torch.tensor(b), a, rtol=1e-3, atol=1e-5)
    assert ranks[0][2] == ranks[1][2]
