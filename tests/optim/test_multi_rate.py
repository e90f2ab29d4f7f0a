"""Steps are those of torch's optimizers, to the precision of the dtype, whatever the groups, layouts and gradients."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import EPS, OPTIMIZER_FLOOR, OPTIMIZER_FP32, OPTIMIZER_FP64, TIMES_TORCH_ERROR
from torch import nn

from pgm_fast.optim import MultiRateAdamW, MultiRateSGD
from pgm_fast.optim.launch import chunk_size

SHAPES = [(3, 5), (1,), (), (0, 4), (257,), (64, 33)]
STEPS = 50


def adamw_configurations():
    """Options of torch's own grid, a group each."""
    grid = itertools.product((False, True), (False, True), (0.0, 0.1))
    named = [{"amsgrad": amsgrad, "maximize": maximize, "weight_decay": decay} for amsgrad, maximize, decay in grid]
    return [*named, {"betas": (0.0, 0.99)}, {"eps": 1e-3}]


def sgd_configurations():
    momenta = [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
    ]
    grid = itertools.product(momenta, (False, True), (0.0, 0.1))
    return [{**momentum, "maximize": maximize, "weight_decay": decay} for momentum, maximize, decay in grid]


PAIRS = {
    "adamw": (MultiRateAdamW, torch.optim.AdamW, adamw_configurations()),
    "sgd": (MultiRateSGD, torch.optim.SGD, sgd_configurations()),
}


def params(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def configured(configurations, dtype):
    """A group per configuration, with parameters and a rate of its own."""
    return [
        {"params": params(dtype, seed), "lr": 0.01 * (1 + seed % 4), **options}
        for seed, options in enumerate(configurations)
    ]


def set_gradients(owned, step, dtype=None):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in owned:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype or p.dtype).to(p.dtype)


def adamw_in_numpy(p, grads, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, maximize=False, **_):
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        p = p * (1 - lr * weight_decay)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        largest = np.maximum(largest, v)
        corrected = (largest if amsgrad else v) / (1 - betas[1] ** t)
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(corrected) + eps)
    return p


def sgd_in_numpy(p, grads, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, **_):
    buffer = None
    for g in grads:
        g = (-g if maximize else g) + weight_decay * p
        if momentum:
            buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
            g = g + momentum * buffer if nesterov else buffer
        p = p - lr * g
    return p


@functools.cache
def judged(pair, dtype):
    """Of every parameter: where 50 steps take it in numpy and fp64, and how far off torch's two forms are."""
    _, theirs, configurations = PAIRS[pair]
    reference = adamw_in_numpy if pair == "adamw" else sgd_in_numpy
    both = [configured(configurations, dtype) for _ in range(2)]
    optimizers = [theirs(groups, **{form: True}) for groups, form in zip(both, ("fused", "foreach"), strict=True)]
    start = [p.detach().double().numpy() for group in both[0] for p in group["params"]]
    grads = [[] for _ in start]
    for step in range(STEPS):
        for optimizer, groups in zip(optimizers, both, strict=True):
            set_gradients(owned_by(groups), step)
            optimizer.step()
        for history, p in zip(grads, owned_by(both[0]), strict=True):
            history.append(p.grad.double().numpy())
    owners = [(group["lr"], options) for group, options in zip(both[0], configurations, strict=True) for _ in SHAPES]
    exact = [reference(p, g, lr, **options) for p, g, (lr, options) in zip(start, grads, owners, strict=True)]
    return exact, [deviations(owned_by(groups), exact) for groups in both]


def owned_by(groups):
    return [p for group in groups for p in group["params"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rate", ["float", pytest.param("tensor", marks=pytest.mark.slow), "tensor, capturable"])
@pytest.mark.parametrize("pair", PAIRS)
def test_errors_are_at_most_twice_those_of_torch(way, pair, rate, dtype):
    """Against numpy in fp64 over 50 steps, every configuration of the grid a group of one optimizer, in one launch."""
    ours, _, configurations = PAIRS[pair]
    groups = configured(configurations, dtype)
    for group in groups:
        group["lr"] = group["lr"] if rate == "float" else torch.tensor(group["lr"], dtype=torch.float64)
    optimizer = ours(groups, capturable="capturable" in rate)
    for step in range(STEPS):
        set_gradients(owned_by(groups), step)
        optimizer.step()
    assert optimizer.launches_per_step == 1
    exact, by_torch = judged(pair, dtype)
    got = deviations(owned_by(groups), exact)
    # the error of one number in one run is a matter of luck
    for name, chosen in pools(configurations):
        floor = OPTIMIZER_FLOOR[dtype] * rms(exact, chosen)
        error = max(rms(each, chosen) for each in by_torch)
        assert rms(got, chosen) <= TIMES_TORCH_ERROR * error + floor, name


def pools(configurations):
    """What is judged together: all shapes of a configuration, and a shape in all configurations."""
    count = len(SHAPES)
    for i, configuration in enumerate(configurations):
        yield configuration, range(i * count, (i + 1) * count)
    for i, shape in enumerate(SHAPES):
        yield shape, range(i, count * len(configurations), count)


def deviations(owned, exact):
    return [p.detach().double().numpy() - e for p, e in zip(owned, exact, strict=True)]


def rms(arrays, chosen):
    values = np.concatenate([arrays[i].ravel() for i in chosen])
    return math.sqrt(np.mean(values**2)) if values.size else 0.0


@st.composite
def layouts(draw):
    """A parameter in some layout: size, misalignment, permuted, with gaps."""
    rows, columns = draw(st.integers(0, 5)), draw(st.sampled_from([0, 1, 3, 16, 17, 70]))
    offset, kind = draw(st.integers(0, 3)), draw(st.sampled_from(["plain", "transposed", "gaps"]))
    return rows, columns, offset, kind


def laid_out(rows, columns, offset, kind, dtype, generator):
    memory = torch.randn(offset + 2 * rows * columns + 1, generator=generator, dtype=torch.float64).to(dtype)
    if kind == "gaps":
        return (
            memory[offset : offset + 2 * rows * columns].view(rows, 2 * columns)[:, ::2]
            if columns
            else memory[:0].view(rows, 0)
        )
    dense = memory[offset : offset + rows * columns]
    return dense.view(columns, rows).t() if kind == "transposed" else dense.view(rows, columns)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_groups_layouts_and_gradients_that_come_and_go(way, data):
    """Against torch's plain loops: groups join in mid-run, rates change every step, gradients are missing, transposed
    or expanded; addresses are those of any element, not of multiples of 16 bytes."""
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]), "dtype")
    sgd = data.draw(st.booleans(), "sgd")
    seed = data.draw(st.integers(0, 999), "seed")
    drawn = data.draw(st.lists(st.lists(layouts(), min_size=1, max_size=3), min_size=1, max_size=4), "groups")
    options = {"weight_decay": 0.1, "maximize": data.draw(st.booleans(), "maximize")}
    if sgd:
        options |= {"momentum": 0.9, "dampening": 0.3}
    else:
        options |= {"amsgrad": data.draw(st.booleans(), "amsgrad")}
    both = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(seed)
        both.append([[nn.Parameter(laid_out(*layout, dtype, generator)) for layout in group] for group in drawn])
    mine, theirs = both
    for ours, their in zip(sum(mine, []), sum(theirs, []), strict=True):
        assert ours.stride() == their.stride()
    first = (MultiRateSGD if sgd else MultiRateAdamW)([{"params": mine[0], "lr": 0.1}], **options)
    second = (torch.optim.SGD if sgd else torch.optim.AdamW)(
        [{"params": theirs[0], "lr": 0.1}], foreach=False, **options
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(8):
        joined = 1 + step // 2
        if step % 2 == 0 and 0 < step and joined <= len(drawn):
            first.add_param_group({"params": mine[joined - 1], "lr": 0.05})
            second.add_param_group({"params": theirs[joined - 1], "lr": 0.05})
        kinds = data.draw(st.lists(st.sampled_from("dddtxn"), min_size=12, max_size=12), f"gradients of step {step}")
        for i, (ours, their) in enumerate(zip(sum(mine, []), sum(theirs, []), strict=True)):
            ours.grad = their.grad = gradient(ours, kinds[i], generator)
        for group, other in zip(first.param_groups, second.param_groups, strict=True):
            group["lr"] = other["lr"] = 0.1 / (1 + step)
        first.step()
        second.step()
    bound = OPTIMIZER_FP64 if dtype == torch.float64 else OPTIMIZER_FP32
    for ours, their in zip(sum(mine, []), sum(theirs, []), strict=True):
        torch.testing.assert_close(ours, their, rtol=0, atol=bound)


def gradient(p, kind, generator):
    if kind == "n":
        return None
    if kind == "x":
        return torch.randn((), generator=generator, dtype=p.dtype).expand(p.shape)
    made = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return made.t().contiguous().t() if kind == "t" else made


@pytest.mark.parametrize("optimizer_class", [MultiRateAdamW, MultiRateSGD])
def test_a_run_is_repeated_bit_by_bit_on_any_number_of_threads(way, optimizer_class):
    def run(threads):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        owned = [nn.Parameter(torch.randn(n)) for n in (70001, 3, 5000, 33000)]
        options = {"momentum": 0.9} if optimizer_class is MultiRateSGD else {}
        optimizer = optimizer_class(
            [{"params": [p], "lr": 0.01 * i} for i, p in enumerate(owned, 1)], max_norm=1.0, **options
        )
        for step in range(3):
            set_gradients(owned, step)
            optimizer.step()
        return owned

    try:
        first, again, threads = run(1), run(1), run(2)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    for a, c in zip(first, threads, strict=True):
        torch.testing.assert_close(a, c, rtol=EPS[torch.float32], atol=EPS[torch.float32])


def test_every_group_is_updated_at_its_own_every_kth_step(way):
    every = {1: None, 2: None, 3: None}
    owned = {k: nn.Parameter(torch.zeros(4)) for k in every}
    optimizer = MultiRateSGD([{"params": [p], "update_every": k} for k, p in owned.items()], lr=1.0, momentum=0.5)
    for _ in range(6):
        for p in owned.values():
            p.grad = torch.ones(4)
        optimizer.step()
    for k, p in owned.items():
        assert optimizer.state[p]["step"] == 6 // k
        twin = nn.Parameter(torch.zeros(4))
        reference = torch.optim.SGD([twin], lr=1.0, momentum=0.5)
        for _ in range(6 // k):
            twin.grad = torch.ones(4)
            reference.step()
        assert torch.equal(p, twin)


def test_a_skipped_step_does_not_bring_a_slow_group_nearer_to_its_turn(way):
    p = nn.Parameter(torch.zeros(4))
    optimizer = MultiRateSGD([p], lr=1.0, update_every=2)
    for found_inf in (0.0, 1.0, 0.0):
        p.grad = torch.ones(4)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
    assert torch.equal(p, -torch.ones(4)) and optimizer.state[p]["waited"] == 0.0


def test_a_closure_is_called_with_gradients_and_its_loss_returned(way):
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = MultiRateSGD([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 4.0
    assert p.item() == pytest.approx(2.0 - 0.1 * 4.0, rel=EPS[torch.float32], abs=0)


def test_a_graph_that_saved_a_parameter_knows_that_it_was_written(way):
    p = nn.Parameter(torch.ones(3))
    optimizer = MultiRateAdamW([p])
    loss = (p**2).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_addresses_beyond_two_to_the_31_elements(way):
    """A chunk that starts past 2**31 of a tensor whose only real memory is that chunk."""
    if way == "torch":
        pytest.skip("the reference makes no addresses")
    p = nn.Parameter(torch.ones(100))
    p.grad = torch.ones(100)
    optimizer = MultiRateSGD([p], lr=1.0)
    plan = optimizer._current_plan()
    (launch,) = plan.launches
    start = 2**31 + 2**16
    launch.tensors[0, 0] -= start * 4
    launch.tensors[0, 8] += start
    launch.chunks[0, 1] = start
    launch.gradients[0] -= start * 4
    from pgm_fast.optim import kernels

    kernels.run(kernels.STEP, launch)
    assert torch.equal(p, torch.zeros(100))


def test_chunks_are_as_large_as_leaves_nobody_idle():
    for processors in (1, 2, 132):
        for sizes in ([10], [5_000_000], [1 << 20] * 50, [100] * 1000):
            size = chunk_size(sizes, processors)
            assert size & (size - 1) == 0 and 1 << 10 <= size <= 1 << 16
            count = sum(-(-n // size) for n in sizes)
            assert count >= 4 * processors or size == 1 << 10
            assert size == 1 << 16 or sum(-(-n // (2 * size)) for n in sizes) < 4 * processors


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda p: MultiRateAdamW([p], lr=-1.0), "lr is -1.0"),
        (lambda p: MultiRateAdamW([p], betas=(1.0, 0.9)), "betas are"),
        (lambda p: MultiRateAdamW([p], eps=math.nan), "eps is nan"),
        (lambda p: MultiRateAdamW([p], update_every=0), "update_every is 0"),
        (lambda p: MultiRateAdamW([p], max_norm=0.0), "max_norm is 0.0"),
        (lambda p: MultiRateAdamW([p], clip="each"), "clip is 'each'"),
        (lambda p: MultiRateAdamW([p], master_weights="fp8"), "master_weights is 'fp8'"),
        (lambda p: MultiRateAdamW([{"params": [p], "max_norm": 1.0}]), 'takes clip="group"'),
        (lambda p: MultiRateAdamW([p], lr=torch.ones(2)), "lr as a tensor is one"),
        (lambda p: MultiRateSGD([p], nesterov=True), "nesterov takes a momentum"),
        (lambda p: MultiRateAdamW([p], lr="a"), "lr is 'a', must be a finite number >= 0"),
        (lambda p: MultiRateAdamW([p], lr=None), "lr is None, must be"),
        (lambda p: MultiRateAdamW([{"params": [p], "weight_decay": "1"}]), "weight_decay is '1', must be"),
        (lambda p: MultiRateAdamW([p], betas=0.9), r"betas are 0.9, must be two numbers in \[0, 1\)"),
        (lambda p: MultiRateAdamW([p], betas=("a", "b")), r"betas are \('a', 'b'\), must be two numbers"),
        (lambda p: MultiRateAdamW([p], max_norm="1"), "max_norm is '1', must be a number > 0, or None"),
        (lambda p: MultiRateAdamW([p], max_norm="1", clip="group"), "max_norm is '1', must be"),
        (lambda p: MultiRateSGD([p], lr="a"), "lr is 'a', must be"),
        (lambda p: MultiRateSGD([p], momentum="a", nesterov=True), "momentum is 'a', must be"),
        (lambda p: MultiRateSGD([p], max_norm="1"), "max_norm is '1', must be"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(nn.Parameter(torch.ones(2)))


@pytest.mark.parametrize("optimizer_class", [MultiRateAdamW, MultiRateSGD])
def test_a_module_in_the_place_of_its_parameters_is_named_with_the_cure(optimizer_class):
    with pytest.raises(TypeError, match=r"params is a Linear, must be .*: pass model.parameters\(\)"):
        optimizer_class(nn.Linear(2, 2))


def test_what_has_no_kernel_is_refused_by_name(way):
    with pytest.raises(TypeError, match="complex64"):
        MultiRateAdamW([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = MultiRateSGD(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"dense gradients, got torch.sparse_coo.*\(4, 2\)"):
        optimizer.step()
    with pytest.raises(TypeError, match='float16; use "float32"'):
        MultiRateSGD([nn.Parameter(torch.ones(2, dtype=torch.float16))], master_weights="remainder")
