"""Under torch.compile a step is one graph break, whatever the rates do, and the numbers are those of the eager step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from pgm_fast.optim import MultiRateAdamW, MultiRateSGD

BOTH = [(MultiRateAdamW, {"max_norm": 0.1}), (MultiRateSGD, {"momentum": 0.9, "skip_nonfinite": True})]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def breaks():
    return sum(counters["graph_break"].values())


def problem(build, options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 3))
    layers = [net[0], net[2]]
    groups = [{"params": list(layer.parameters()), "lr": 0.1 / (1 + i)} for i, layer in enumerate(layers)]
    return net, build(groups, **options)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("build, options", BOTH)
@pytest.mark.works("torch.compile", "optimizers")
def test_a_compiled_training_step_gives_the_numbers_of_an_eager_one(build, options, scheduled):
    """Bit by bit, in five steps with rates that change or not; nothing is compiled again once it was."""
    runs = []
    for compiled in (False, True):
        net, optimizer = problem(build, options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        generator = torch.Generator().manual_seed(1)

        def train(x, net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (net(x) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss.detach() * 2

        step, losses, graphs = torch.compile(train, backend="eager") if compiled else train, [], []
        for _ in range(5):
            losses.append(step(torch.randn(16, 7, generator=generator)))
            graphs.append(counters["stats"]["unique_graphs"])
            if scheduled:
                schedule.step()
        if compiled:
            assert graphs[1:] == [graphs[1]] * 4 and graphs[0] > 0
        runs.append((losses, [p.detach() for p in net.parameters()]))
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=0)


@pytest.mark.parametrize("build, options", BOTH)
@pytest.mark.works("torch.compile", "optimizers")
def test_a_step_is_one_graph_break_and_what_is_around_it_is_compiled(build, options):
    net, optimizer = problem(build, options)
    for p in net.parameters():
        p.grad = torch.ones_like(p)

    def around(x):
        y = x * 2
        optimizer.step()
        return y + 1

    compiled = torch.compile(around, backend="eager")
    before = net[0].weight.detach().clone()
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0))
    assert breaks() == 1 and counters["stats"]["unique_graphs"] == 2
    assert not torch.equal(net[0].weight, before)


def test_a_step_compiled_by_itself_runs_as_it_is():
    net, optimizer = problem(*BOTH[0])
    twin, reference = problem(*BOTH[0])
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        for p in (*net.parameters(), *twin.parameters()):
            p.grad = torch.ones_like(p)
        compiled()
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    assert breaks() <= 1 and counters["stats"]["unique_graphs"] == 0


def test_a_full_graph_is_refused_with_the_reason():
    net, optimizer = problem(*BOTH[0])
    for p in net.parameters():
        p.grad = torch.ones_like(p)

    @torch.compile(backend="eager", fullgraph=True)
    def around(x):
        optimizer.step()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported, match="one kernel launch already"):
        around(torch.ones(3))
