"""The optimizers' kernels on a CUDA device against the plain reference, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import OPTIMIZERS, STORAGE, stepped
from tolerances import EPS, FP32, OPTIMIZER_MOVE

from pgm_fast import backends

BACKENDS = ("native", "triton")
SIZES = [(3, 5), (1,), (), (0, 4), (257,), (1024,), (70000,), (64, 33)]


def require(backend):
    reason = backends.implementations("cuda")["multi_rate_step"][backend]
    if reason is not None:
        pytest.skip(f"multi_rate_step by {backend}: {reason}")


def on_device(backend, name, dtype=torch.float32, master=None, **options):
    return stepped(backend, name, dtype, master, device="cuda", sizes=SIZES, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "master"), STORAGE, ids=str)
def test_a_step_is_that_of_the_reference(backend, name, dtype, master):
    require(backend)
    got, _ = on_device(backend, name, dtype, master)
    want, _ = on_device("torch", name, dtype, master)
    rtol = max(FP32, EPS[dtype])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=OPTIMIZER_MOVE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_repeat_bitwise(backend):
    require(backend)
    first, second = (on_device(backend, "clipped")[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_with_an_infinite_gradient_is_skipped_and_counted(backend):
    require(backend)

    def spoilt(step, grad):
        if step == 1 and grad.numel():
            grad.view(-1)[0] = float("inf")

    got, optimizer = on_device(backend, "adamw", skip_nonfinite=True, on_gradient=spoilt)
    assert all(p.isfinite().all() for p in got) and optimizer.skipped_steps.item() == 1
    assert {state["step"].item() for state in optimizer.state.values()} == {3.0}
