"""The optimizers' kernels on a CUDA device: the plain reference's numbers, in one launch, in CUDA graphs as outside."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import OPTIMIZERS, STORAGE, stepped
from tolerances import EPS, FP32, NORM_FP32, OPTIMIZER_MOVE
from torch import nn
from torch.profiler import ProfilerActivity, profile

import pgm_fast
from pgm_fast import backends
from pgm_fast.optim import MultiRateAdamW, MultiRateSGD

BACKENDS = ("native", "triton")
SIZES = [(3, 5), (1,), (), (0, 4), (257,), (1024,), (70000,), (64, 33)]
STEPS = 100
CLIPPED = {"max_norm": 0.5}


def require(backend):
    reason = backends.implementations("cuda")["multi_rate_step"][backend]
    if reason is not None:
        pytest.skip(f"multi_rate_step by {backend}: {reason}")


@pytest.fixture(params=BACKENDS)
def backend(request):
    require(request.param)
    with pgm_fast.backend(request.param):
        yield request.param


def on_device(backend, name, dtype=torch.float32, master=None, **options):
    return stepped(backend, name, dtype, master, device="cuda", sizes=SIZES, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "master"), STORAGE, ids=str)
def test_a_step_is_that_of_the_reference(backend, name, dtype, master):
    got, _ = on_device(backend, name, dtype, master)
    want, _ = on_device("torch", name, dtype, master)
    rtol = max(FP32, EPS[dtype])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=OPTIMIZER_MOVE[dtype])


def test_steps_repeat_bitwise(backend):
    first, second = (on_device(backend, "clipped")[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_step_with_an_infinite_gradient_is_skipped_and_counted(backend):
    def spoilt(step, grad):
        if step == 1 and grad.numel():
            grad.view(-1)[0] = float("inf")

    got, optimizer = on_device(backend, "adamw", skip_nonfinite=True, on_gradient=spoilt)
    assert all(p.isfinite().all() for p in got) and optimizer.skipped_steps.item() == 1
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}


def test_the_norm_is_that_of_all_gradients(backend):
    owned = [nn.Parameter(torch.zeros(size, device="cuda")) for size in (1, 700_001, 0, 333)]
    optimizer = MultiRateSGD([{"params": [p]} for p in owned], max_norm=1.0)
    for p in owned:
        p.grad = torch.randn_like(p)
    exact = sum(p.grad.double().square().sum() for p in owned).sqrt()
    torch.testing.assert_close(optimizer.total_norm(), exact, rtol=NORM_FP32, atol=0)


@pytest.mark.parametrize(("options", "launches"), [({}, 1), ({"max_norm": 1.0}, 3)], ids=["plain", "clipped"])
def test_every_group_is_updated_in_one_launch(harness, backend, options, launches):
    """480 tensors in 48 groups; clipping takes one launch for the chunks' norms and one to add them up."""
    owned = [nn.Parameter(torch.randn(64 + 8 * i, device="cuda")) for i in range(480)]
    groups = [{"params": owned[i::48], "lr": 1e-3 * (1 + i)} for i in range(48)]
    optimizer = MultiRateAdamW(groups, **options)
    for p in owned:
        p.grad = torch.randn_like(p)
    optimizer.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        optimizer.step()
        torch.cuda.synchronize()
    kernels = harness.work_of_device(recorded)
    assert [event.name for event in kernels if "multi_rate" in event.name] == [event.name for event in kernels]
    assert len(kernels) == launches == optimizer.launches_per_step


def problem():
    """Parameters of several groups, their gradients as a function of a step's number on the device, and an optimizer
    whose rates are tensors."""
    generator = torch.Generator().manual_seed(0)
    owned = [nn.Parameter(torch.randn(size, generator=generator).cuda()) for size in ((33,), (4, 700), (), (70_000,))]
    rates = [torch.tensor(0.01 * (i + 1), device="cuda") for i in range(4)]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(owned, rates, strict=True)]
    optimizer = MultiRateAdamW(groups, capturable=True, **CLIPPED)

    def train(count):
        count.add_(1)
        for rate in rates:
            rate.mul_(0.99)
        for i, p in enumerate(owned):
            gradient = torch.sin(count + torch.arange(p.numel(), device="cuda").view(p.shape) + i)
            if p.grad is None:
                p.grad = gradient
            else:
                p.grad.copy_(gradient)
        optimizer.step()

    return owned, optimizer, train


@pytest.mark.parametrize("dropped", [False, True], ids=["gradients in place", "gradients dropped"])
def test_a_graph_of_a_hundred_steps_with_a_schedule_is_the_eager_run_bit_by_bit(backend, dropped):
    """With gradients in place, and with those that the capture itself makes, as torch's own recipe for graphs has it.
    Steps outside, with other gradients, come in between."""

    kept = []  # a graph writes the gradients that were there before it, and does not keep them

    def run(captured):
        owned, optimizer, train = problem()
        count, graph = torch.zeros((), device="cuda"), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                train(count)
        torch.cuda.current_stream().wait_stream(side)
        if captured:
            if dropped:
                optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                train(count)
            kept.extend(p.grad for p in owned)
        for step in range(STEPS):
            if step % 40 == 39:
                optimizer.zero_grad(set_to_none=True)
                train(count)
            elif captured:
                graph.replay()
            else:
                train(count)
        torch.cuda.synchronize()
        return [*owned, *(value for p in owned for value in optimizer.state[p].values())]

    for a, b in zip(run(False), run(True), strict=True):
        assert torch.equal(a, b)


def test_new_tables_within_a_graph_are_refused(backend):
    owned, optimizer, train = problem()
    count = torch.zeros((), device="cuda")
    train(count)
    owned[0].grad = None
    with pytest.raises(RuntimeError, match="a gradient came or went"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


def test_more_than_two_to_the_31_elements(backend):
    size = 2**31 + 4099
    needed = 5 * size
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"takes {needed / 2**30:.0f} GiB of free device memory")
    p = nn.Parameter(torch.ones(size, dtype=torch.bfloat16, device="cuda"))
    p.grad = torch.ones_like(p)
    MultiRateSGD([p], lr=1.0).step()
    # read in pieces: a whole copy would not fit
    assert not any(part.any() for part in p.detach().split(2**28))
