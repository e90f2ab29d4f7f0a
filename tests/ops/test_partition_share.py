from __future__ import annotations

import pytest
import torch
from op_cases import BOUNDARIES, CASES, EDGE, PARTITIONS
from tolerances import FP32, FP64, SCAN_FP32, steps

import pgm_fast
from pgm_fast.ops import partition, partition_dual, partition_share

WITH_SHARE = [case for case in CASES if case.name.endswith("_with_share")]
with_share = pytest.mark.parametrize("case", WITH_SHARE, ids=lambda case: case.id)
of_logits = pytest.mark.parametrize("case", [x for x in WITH_SHARE if x.name in PARTITIONS], ids=lambda case: case.id)
# op -> the function that calls it
SPLITS = {name: run for name, (run, _) in PARTITIONS.items()} | BOUNDARIES


def test_masses_sum_to_one_in_every_row():
    for z_paired in (None, torch.randn(7, 5, 33)):
        share = partition_share(torch.randn(7, 5, 33), z_paired)
        assert share.shape == (7, 5, 2 if z_paired is None else 4)
        torch.testing.assert_close(share.sum(-1), torch.ones(7, 5), rtol=0, atol=SCAN_FP32)


def test_shares_are_what_the_partitions_leave_of_ones():
    ones, z_uni, z_paired = torch.ones(6, 11).double(), torch.randn(6, 11).double(), torch.randn(6, 11).double()
    single = torch.stack([part.mean(-1) for part in partition(ones, z_uni)], -1)
    dual = torch.stack([part.mean(-1) for part in partition_dual(ones, z_uni, z_paired)], -1)
    torch.testing.assert_close(partition_share(z_uni), single, rtol=FP64, atol=FP64)
    torch.testing.assert_close(partition_share(z_uni, z_paired)[:, :3], dual, rtol=FP64, atol=FP64)


def test_flat_gates_have_the_stated_shares():
    """1/2, 1/2 for the single gate and 1/3, 1/3, 1/6, 1/6 for the dual one, up to the half step at the ends."""
    d = 256
    flat = torch.zeros(1, d, dtype=torch.float64)
    single = torch.tensor([1 / 2, 1 / 2], dtype=torch.float64)
    dual = torch.tensor([1 / 3, 1 / 3, 1 / 6, 1 / 6], dtype=torch.float64)
    torch.testing.assert_close(partition_share(flat)[0], single, rtol=0, atol=steps(d))
    torch.testing.assert_close(partition_share(flat, flat)[0], dual, rtol=0, atol=steps(d))


def test_a_share_can_be_trained_to_a_target():
    z = torch.zeros(1, 16, requires_grad=True)
    for _ in range(200):
        loss = (partition_share(z)[0, 1] - 0.8).square()
        (gradient,) = torch.autograd.grad(loss, z)
        z = (z - 20 * gradient).detach().requires_grad_()
    assert abs(partition_share(z)[0, 1].item() - 0.8) < SCAN_FP32


@of_logits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("chunk", [1, 4])
def test_the_pass_that_splits_gives_the_same_share_and_the_same_parts(case, chunk, dtype):
    """Of logits in a type of their own, of any shape; and to the bit what the op without shares splits into."""
    generator = torch.Generator().manual_seed(0)
    plain, gates = PARTITIONS[case.name.removesuffix("_with_share")]
    h = torch.randn(3, 2, 40 * chunk, generator=generator, dtype=torch.float64)
    logits = [torch.randn(3, 2, 40, generator=generator, dtype=torch.float64) for _ in range(gates)]
    z_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    h, *logits = h.to(case.device, dtype), *(z.to(case.device, z_dtype) for z in logits)
    with pgm_fast.backend(case.backend):
        *parts, share = case.run(h, *logits, temperature=0.7)
        assert all(torch.equal(a, b) for a, b in zip(parts, plain(h, *logits, temperature=0.7), strict=True))
    want = partition_share(*logits, *[None] * (2 - gates), temperature=0.7)
    assert share.dtype == z_dtype and share.shape == (3, 2, 2 * gates)
    bound = FP64 if dtype == torch.float64 else FP32
    torch.testing.assert_close(share, want, rtol=bound, atol=bound)
    torch.testing.assert_close(share.sum(-1), torch.ones_like(share[..., 0]), rtol=0, atol=SCAN_FP32)


ONE_OUTPUT = [(case, k) for case in WITH_SHARE for k in range(4 if case.name == "partition_dual_with_share" else 3)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("case", "output"), ONE_OUTPUT, ids=[f"{case.id}-{k}" for case, k in ONE_OUTPUT])
def test_every_output_alone_trains_what_it_depends_on(case, output, compiled):
    """Gradients of the other outputs do not exist then, where autograd would otherwise fill in zeros."""
    case.skip_unless_served(torch.float64)
    torch.compiler.reset()
    found = []
    for run in (
        torch.compile(case.run, fullgraph=True, backend="aot_eager") if compiled else case.run,
        case.plain,
    ):
        leaves = [x.requires_grad_() for x in case.tensors(5, 12, torch.float64)]
        with pgm_fast.backend(case.backend):
            loss = run(*leaves)[output].square().sum()
            found.append(torch.autograd.grad(loss, leaves, materialize_grads=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)


@with_share
def test_an_unused_share_costs_nothing_in_backward(case):
    """It is that of the op without a share: to the bit, and with as many tensors of zeros made for it."""
    plain = SPLITS[case.name.removesuffix("_with_share")]
    found, zeros = [], []
    for run in (case.run, plain):
        leaves = [x.requires_grad_() for x in case.tensors(5, 12)]
        with pgm_fast.backend(case.backend):
            parts = [x for x in run(*leaves) if x.shape == leaves[0].shape]
            with torch.profiler.profile() as profile:
                found.append(torch.autograd.grad(parts, leaves, [torch.ones_like(x) for x in parts]))
        zeros.append([event.name for event in profile.events() if event.name.startswith("aten::zeros")])
    assert zeros[0] == zeros[1]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@with_share
@pytest.mark.parametrize("given", [True, False], ids=["gradient", "no gradient"])
def test_backward_passes_opcheck_with_and_without_the_shares_gradient(case, given):
    tensors = case.tensors(4, 6)
    numbers = (1.0,) if case.has_temperature else (*EDGE.values(), False)
    op = getattr(torch.ops.pgm_fast, case.name.replace("with_share", "backward")).default
    with pgm_fast.backend(case.backend):
        *gradients, of_share = (torch.randn_like(x) for x in case.run(*tensors))
        torch.library.opcheck(op, (*gradients, of_share if given else None, *tensors, *numbers), rtol=0, atol=0)
