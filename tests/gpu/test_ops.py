"""Every op and backend on a CUDA device: as exact as on the CPU, repeatable, and complete at every width."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product

import pytest
import torch
from op_cases import BOUNDARIES, CASES, PARTITIONS, boundary_call, forward_and_gradients
from rounding import assert_errs_like_torch
from tolerances import DRAWS, EPS, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast import backends, ops

CUDA_CASES = {case.name: case for case in CASES if case.backend == "torch"}
BACKENDS = ("native", "triton")
# gates, neighbours per gate: rows of one warp, of a block, of the largest block, past it; odd, chunked
WIDTHS = [
    (8, 1),
    (256, 1),
    (1024, 1),
    (4104, 1),
    (8192, 1),
    (9000, 1),
    (1, 1),
    (1023, 1),
    (64, 4),
    (300, 7),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def on_device(tensors):
    return [x.cuda() for x in tensors]


def require(op, backend, dtype=torch.float32):
    reason = backends.implementations("cuda", dtype)[op][backend]
    if reason is not None:
        pytest.skip(f"{op} by {backend}: {reason}")


@contextmanager
def unfilled_memory():
    """Without the fills that poison fresh tensors: they are launches."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CUDA_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_plain_torch(name, dtype, backend):
    case = CUDA_CASES[name]
    require(name.partition("-")[0], backend, dtype)
    for d in (96, 1024):
        draws = []
        for seed in range(DRAWS):
            tensors = on_device(case.tensors(33, d, dtype, seed=seed))
            with pgm_fast.backend(backend):
                got = forward_and_gradients(case.run, tensors)
            by_torch = forward_and_gradients(case.plain, tensors)
            exact = forward_and_gradients(case.plain, [x.double() for x in tensors])
            draws.append([made + gradients if case.smooth else made for made, gradients in (got, by_torch, exact)])
        assert_errs_like_torch(draws, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", PARTITIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("gates", "chunk"), WIDTHS)
def test_partitions_equal_the_reference_at_every_width(op, dtype, backend, gates, chunk):
    """A test per width: each compiles kernels of its own, and processes share the tests out."""
    require(op, backend, dtype)
    run, count = PARTITIONS[op]
    mixed = [dtype] if dtype == torch.float64 else [torch.float32, torch.bfloat16]
    for z_dtype, misaligned in product(mixed, (False, True)):
        generator = torch.Generator().manual_seed(gates)
        rows, d = 5, gates * chunk
        h = (
            torch.randn(rows * d + 1, generator=generator)
            .to("cuda", dtype)[int(misaligned) :][: rows * d]
            .view(rows, d)
        )
        logits = [torch.randn(rows, gates, generator=generator).to("cuda", z_dtype) for _ in range(count)]
        with pgm_fast.backend(backend):
            got = sum(forward_and_gradients(run, [h, *logits]), [])
        with pgm_fast.backend("torch"):
            want = sum(forward_and_gradients(run, [h, *logits]), [])
        for a, b in zip(got, want, strict=True):
            scale = max(1.0, b.abs().max().item(), d**0.5 * (a.dtype == dtype == torch.float64))
            bound = NATIVE_TIMES_EPS * max(EPS[a.dtype], EPS[torch.float32] * (dtype != torch.float64)) * scale
            torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", BOUNDARIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [gates for gates, chunk in WIDTHS if chunk == 1])
def test_boundaries_equal_the_reference_at_every_width(op, dtype, backend, d):
    require(op, backend, dtype)
    mixed = [dtype] if dtype == torch.float64 else [torch.float32, torch.bfloat16]
    for b_dtype, detached in product(mixed, (False, True)):
        run, tensors = boundary_call(op, 5, d, dtype, b_dtype, 0.12, 0.3, detached, d)
        with pgm_fast.backend(backend):
            got = sum(forward_and_gradients(run, on_device(tensors)), [])
        with pgm_fast.backend("torch"):
            want = sum(forward_and_gradients(run, on_device(tensors)), [])
        for a, b in zip(got, want, strict=True):
            scale = max(1.0, b.abs().max().item(), d**0.5 * (a.dtype == dtype == torch.float64))
            bound = NATIVE_TIMES_EPS * max(EPS[a.dtype], EPS[torch.float32] * (dtype != torch.float64)) * scale
            torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", PARTITIONS)
def test_two_calls_agree_bitwise_and_inputs_are_left_alone(op, backend):
    require(op, backend)
    run, count = PARTITIONS[op]
    for d in (96, 1024, 8192, 8195):
        tensors = [torch.randn(300, d, device="cuda") for _ in range(count + 1)]
        before = [x.clone() for x in tensors]
        with pgm_fast.backend(backend):
            first, second = (sum(forward_and_gradients(run, tensors), []) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_outputs(backend):
    require("partition", backend)
    for d in (40, 1024, 8195):
        h, z = torch.randn(2, d, device="cuda"), torch.randn(2, d, device="cuda")
        z[1, d - 1] = float("nan")
        with pgm_fast.backend(backend):
            uni, paired, share = ops.partition(h, z, return_share=True)
        assert uni[0].isfinite().all() and paired[0].isfinite().all() and share[0].isfinite().all()
        assert uni[1, :-1].isnan().all() and paired[1].isnan().all() and share[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [name for name in PARTITIONS if name.endswith("_with_share")])
def test_a_shares_gradient_may_lie_at_any_address(op, backend):
    require(op, backend)
    run, count = PARTITIONS[op]
    for d in (256, 1024):
        leaves = [torch.randn(5, d, device="cuda", requires_grad=True) for _ in range(count + 1)]
        with pgm_fast.backend(backend):
            *parts, share = run(*leaves)
            gradients = [torch.randn_like(x) for x in parts]
            aligned = torch.randn_like(share)
            shifted = torch.cat([aligned.new_zeros(1), aligned.flatten()])[1:].view_as(aligned)
            got, want = (
                torch.autograd.grad([*parts, share], leaves, [*gradients, x], retain_graph=True)
                for x in (shifted, aligned)
            )
        for a, b in zip(got, want, strict=True):
            bound = NATIVE_TIMES_EPS * EPS[torch.float32] * max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_two_to_the_31_elements(backend):
    require("partition", backend, torch.bfloat16)
    rows, d = 2**21 + 3, 1024
    needed = 5 * rows * d * 2
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"takes {needed / 2**30:.0f} GiB of free device memory")
    h = torch.randn(1, d, device="cuda", dtype=torch.bfloat16).repeat(rows, 1)
    z = torch.randn(1, d, device="cuda", dtype=torch.bfloat16).repeat(rows, 1)
    with pgm_fast.backend(backend), torch.no_grad():
        whole, small = ops.partition(h, z), ops.partition(h[:3], z[:3])
    assert all(torch.equal(a[-3:], b) for a, b in zip(whole, small, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_works_on_another_stream_and_in_a_graph(backend):
    require("partition_dual", backend)
    tensors = [torch.randn(64, 256, device="cuda") for _ in range(3)]
    with pgm_fast.backend(backend), torch.no_grad():
        want = ops.partition_dual(*tensors)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            on_side = ops.partition_dual(*tensors)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ops.partition_dual(*tensors)
        graph.replay()
    for a, b, c in zip(want, on_side, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize(
    ("rows", "kernels"),
    [
        (64, ["grad", "loss", "partial_lse"]),
        (4096, ["gather", "gather", "gathered_grad", "gathered_lse", "loss", "scatter_grad"]),
    ],
)
def test_duc_loss_takes_three_launches_for_both_directions_there_and_back_or_six(harness, rows, kernels):
    require("duc_loss", "triton")
    student, teacher = (torch.randn(rows, 512, device="cuda", requires_grad=True) for _ in range(2))
    forth, back = torch.arange(0, 512, 2, device="cuda"), torch.arange(1, 512, 2, device="cuda")
    incoming = torch.ones((), device="cuda")

    def step():
        loss = ops.duc_loss(student, teacher, forth, 10.0, reverse_dims=back)
        return torch.autograd.grad(loss, [student, teacher], incoming)

    with pgm_fast.backend("triton"), unfilled_memory():
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
    names = [event.name for event in harness.work_of_device(profile)]
    assert sorted(names) == [f"{name}_kernel" for name in kernels]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_duc_loss_keeps_no_matrix_of_products(backend):
    """Backward has the chosen columns of both sides of both directions beside each other, and a gradient of each
    direction's, in one part: at this size there are programs enough."""
    require("duc_loss", backend)
    rows, d = 4096, 512
    student, teacher = (torch.randn(rows, d, device="cuda", requires_grad=True) for _ in range(2))
    dims = torch.arange(0, d, 2, device="cuda")
    with pgm_fast.backend(backend):
        before = torch.cuda.memory_allocated()
        loss = ops.duc_loss(student, teacher, dims, 10.0, reverse_dims=dims)
        kept = torch.cuda.memory_allocated() - before
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(loss, [student, teacher])
        peak = torch.cuda.max_memory_allocated() - before
    products, gradients = 4 * rows * rows, 2 * 4 * rows * d
    columns = (2 * 2 + 2) * 4 * rows * len(dims)
    assert kept < 0.1 * products
    assert backend == "torch" or peak - gradients < columns + 0.01 * products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4, 1e15])
def test_duc_loss_is_finite_at_temperature_one_whatever_the_scale(scale, dtype):
    require("duc_loss", "triton", dtype)
    for rows, d in ((40, 33), (2000, 300)):
        student, teacher = ((scale * torch.randn(rows, d, device="cuda")).to(dtype).requires_grad_() for _ in range(2))
        dims = torch.arange(d, device="cuda")
        with pgm_fast.backend("triton"):
            loss = ops.duc_loss(student, teacher, dims, 1.0, reverse_dims=dims)
            loss.backward()
        assert loss.isfinite() and student.grad.isfinite().all() and teacher.grad.isfinite().all()


def test_effective_dimensions_are_the_cpu_s_bit_by_bit_without_waiting_and_in_little_memory():
    """On a grid of eighths, where sums are exact in whatever order."""
    generator = torch.Generator().manual_seed(0)
    rows, d, classes = 20_000, 512, 101
    labels = torch.randint(classes, (rows,), generator=generator)
    features = (8 * torch.randn(rows, d, generator=generator) + 0.1 * labels.unsqueeze(1)).round() / 8
    want = ops.effective_dimensions(features, labels, classes)
    features, labels = features.cuda(), labels.cuda()
    ops.effective_dimensions(features[:100], labels[:100], classes)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = ops.effective_dimensions(features, labels, classes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 4 * features.nbytes
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_predictions_are_named_and_counted_without_waiting(backend):
    require("certainty_weighted_prediction", backend)
    logits, present = list(torch.randn(3, 500, 101, device="cuda")), torch.rand(500, 3, device="cuda") < 0.6
    labels = torch.randint(101, (500,), device="cuda")
    with pgm_fast.backend(backend):
        fused, weights = ops.certainty_weighted_logits(logits, 0.3, present)
        ops.certainty_weighted_prediction(logits, 0.3, present, labels)
        torch.cuda.set_sync_debug_mode("error")
        try:
            made = ops.certainty_weighted_prediction(logits, 0.3, present, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made.fused, fused) and torch.equal(made.weights, weights)
    assert torch.equal(made.classes, fused.argmax(1)) and made.correct == (made.classes == labels).sum()
