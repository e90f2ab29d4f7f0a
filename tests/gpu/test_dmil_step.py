"""DMIL's third stage on a CUDA device: it waits for nothing, and as a graph it goes on drawing."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP32

import pgm_fast
from pgm_fast import ops
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import DMILConfig, ModelConfig, build

BATCH, D, CLASSES = 64, 32, 10
NAMES = ("audio", "vision")


@pytest.fixture
def forbid_waiting():
    """From the call on, whatever waits for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def made_step():
    """``(step, losses)``: a whole training step, and the list it adds its total loss to."""
    torch.manual_seed(0)
    spec = DataSpec({m: ModalitySpec(D) for m in NAMES}, "classification", CLASSES)
    model = build("dmil", spec, ModelConfig(dim=D, hidden=D, dropout=0.0, normalize=False), DMILConfig()).cuda().train()
    batch = Batch(
        inputs={m: torch.randn(BATCH, D) for m in NAMES},
        weight=torch.full((BATCH,), 1.0 / BATCH),
        index=torch.arange(BATCH),
        labels=torch.randint(CLASSES, (BATCH,)),
    ).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9, fused=True)
    losses = []

    def step():
        optimizer.zero_grad(set_to_none=True)
        total = model(batch).losses["total"]
        total.backward()
        optimizer.step()
        losses.append(total.detach())

    return step, losses


def test_a_step_waits_for_nothing(forbid_waiting):
    step, losses = made_step()
    step()
    torch.cuda.synchronize()
    forbid_waiting()
    step()
    assert losses[1].is_cuda


def test_a_replayed_step_is_the_eager_one_with_noise_of_its_own(harness):
    eager, want = made_step()
    torch.cuda.manual_seed(7)
    for _ in range(harness.WARM_UP):
        eager()
    torch.cuda.manual_seed(11)
    for _ in range(4):
        eager()
    step, losses = made_step()
    torch.cuda.manual_seed(7)
    replay = harness.captured(step, torch.device("cuda"))
    torch.cuda.manual_seed(11)
    got = []
    for _ in range(4):
        replay()
        got.append(losses[-1].clone())
    torch.testing.assert_close(torch.stack(got), torch.stack(want[harness.WARM_UP :]), rtol=FP32, atol=FP32)
    assert len({x.item() for x in got}) == len(got)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_backward_of_a_replay_makes_the_noise_of_its_own_forward(harness, forbid_waiting, backend):
    mu, logvar = (torch.randn(64, 96, device="cuda").requires_grad_() for _ in range(2))
    direction, kept = torch.randn(64, 96, device="cuda"), []

    def run():
        z, kl = ops.gaussian_sample_kl(mu, logvar)
        kept[:] = z.detach(), torch.autograd.grad(z, logvar, direction)[0]

    with pgm_fast.backend(backend):
        run()
        torch.cuda.synchronize()
        forbid_waiting()
        run()
        torch.cuda.set_sync_debug_mode("default")
        replay = harness.captured(run, torch.device("cuda"))
    samples = []
    for _ in range(3):
        replay()
        z, grad = (x.clone() for x in kept)
        samples.append(z)
        by_noise = 0.5 * direction * (z - mu.detach())
        torch.testing.assert_close(grad, by_noise, rtol=FP32, atol=FP32 * by_noise.abs().max().item())
    assert not torch.equal(samples[0], samples[1]) and not torch.equal(samples[1], samples[2])
