"""The optimizers' kernels on a CUDA device against the plain reference, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from tolerances import EPS, FP32, OPTIMIZER_MOVE
from torch import nn

import pgm_fast
from pgm_fast import backends
from pgm_fast.optim import MultiRateAdamW, MultiRateSGD

SIZES = [(3, 5), (1,), (), (0, 4), (257,), (1024,), (70000,), (64, 33)]
OPTIMIZERS = {
    "adamw": (MultiRateAdamW, {}),
    "amsgrad": (MultiRateAdamW, {"amsgrad": True}),
    "clipped": (MultiRateAdamW, {"max_norm": 0.5}),
    "clipped by group": (MultiRateAdamW, {"max_norm": 0.5, "clip": "group"}),
    "every second": (MultiRateAdamW, {"update_every": 2}),
    "sgd": (MultiRateSGD, {}),
    "nesterov": (MultiRateSGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
}
STORAGE = [
    (torch.float32, None),
    (torch.float64, None),
    (torch.bfloat16, None),
    (torch.float16, None),
    (torch.bfloat16, "float32"),
    (torch.float16, "float32"),
    (torch.bfloat16, "remainder"),
]


def require(backend):
    reason = backends.implementations("cuda")["multi_rate_step"][backend]
    if reason is not None:
        pytest.skip(f"multi_rate_step by {backend}: {reason}")


def stepped(backend, optimizer, options, dtype, master, gradients=None, steps=4):
    """Parameters and the optimizer after some steps."""
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(size, generator=generator).to("cuda", dtype)) for size in SIZES]
    groups = [{"params": made[k::3], "lr": 0.1 / (k + 1)} for k in range(3)]
    with pgm_fast.backend(backend):
        running = optimizer(groups, **options, **({"master_weights": master} if master else {}))
        for step in range(steps):
            for p in made:
                p.grad = torch.randn(p.shape, generator=generator).to("cuda", dtype)
                if gradients is not None:
                    gradients(step, p.grad)
            running.step()
    return made, running


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "master"), STORAGE, ids=str)
def test_a_step_is_that_of_the_reference(backend, name, dtype, master):
    require(backend)
    got, _ = stepped(backend, *OPTIMIZERS[name], dtype, master)
    want, _ = stepped("torch", *OPTIMIZERS[name], dtype, master)
    rtol = max(FP32, EPS[dtype])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=OPTIMIZER_MOVE[dtype])


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_steps_repeat_bitwise(backend):
    require(backend)
    first, second = (stepped(backend, *OPTIMIZERS["clipped"], torch.float32, None)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_a_step_with_an_infinite_gradient_is_skipped_and_counted(backend):
    require(backend)

    def spoilt(step, grad):
        if step == 1 and grad.numel():
            grad.view(-1)[0] = float("inf")

    got, optimizer = stepped(backend, MultiRateAdamW, {"skip_nonfinite": True}, torch.float32, None, spoilt)
    assert all(p.isfinite().all() for p in got) and optimizer.skipped_steps.item() == 1
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}
