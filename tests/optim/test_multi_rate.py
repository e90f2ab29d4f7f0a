"""Steps are those of torch's optimizers, to the precision of the dtype, whatever the groups, layouts and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import EPS, OPTIMIZER_FLOOR, OPTIMIZER_FP64, TIMES_TORCH_ERROR
from torch import nn

from pgm_fast.optim import MultiRateAdamW, MultiRateSGD
from pgm_fast.optim.launch import chunk_size

SHAPES = [(3, 5), (1,), (), (0, 4), (257,), (64, 33)]
STEPS = 50

ADAMW = [
    {},
    {"weight_decay": 0.0},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.1},
    {"amsgrad": True, "maximize": True, "eps": 1e-3},
    {"betas": (0.0, 0.99)},
    {"capturable": True},
]
SGD = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "maximize": True},
]
GRID = [(MultiRateAdamW, torch.optim.AdamW, options) for options in ADAMW]
GRID += [(MultiRateSGD, torch.optim.SGD, options) for options in SGD]


def params(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def groups_of(owned, lr):
    return [{"params": owned[:2], "lr": lr}, {"params": owned[2:4], "lr": lr / 8}, {"params": owned[4:], "lr": lr * 2}]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("ours, theirs, options", GRID)
def test_errors_are_at_most_twice_those_of_torch(way, ours, theirs, options, tensor_lr, dtype):
    """Against numpy in fp64 over 50 steps, in three groups with rates of their own."""
    reference = adamw_in_numpy if ours is MultiRateAdamW else sgd_in_numpy
    lr = torch.tensor(0.01, dtype=dtype) if tensor_lr else 0.01
    rates = [float(group["lr"]) for group in groups_of([1] * len(SHAPES), lr)]
    mine, torchs = params(dtype), {"fused": params(dtype), "foreach": params(dtype)}
    known = {key: value for key, value in options.items() if not (key == "capturable")}
    optimizers = [ours(groups_of(mine, lr), lr, **options)]
    optimizers += [
        theirs(groups_of(owned, float(lr)), float(lr), **{name: True}, **known) for name, owned in torchs.items()
    ]
    start = [p.detach().double().numpy() for p in mine]
    grads = [[] for _ in mine]
    for step in range(STEPS):
        for owned in (mine, *torchs.values()):
            set_gradients(owned, step)
        for history, p in zip(grads, mine, strict=True):
            history.append(p.grad.double().numpy())
        for optimizer in optimizers:
            optimizer.step()
    assert optimizers[0].launches_per_step == 1
    owner = [0, 0, 1, 1, 2, 2]
    for i, p in enumerate(mine):
        exact = reference(start[i], grads[i], rates[owner[i]], **options)
        if exact.size == 0:
            continue
        error = rms(p, exact)
        allowed = TIMES_TORCH_ERROR * max(rms(owned[i], exact) for owned in torchs.values())
        assert error <= allowed + OPTIMIZER_FLOOR[dtype] * np.sqrt(np.mean(exact**2)), SHAPES[i]


def rms(p, exact):
    return float(np.sqrt(np.mean((p.detach().double().numpy() - exact) ** 2)))


@st.composite
def layouts(draw):
    """A parameter in some layout: size, misalignment, permuted, with gaps."""
    rows, columns = draw(st.integers(0, 5)), draw(st.sampled_from([0, 1, 3, 16, 17, 70]))
    offset, kind = draw(st.integers(0, 3)), draw(st.sampled_from(["plain", "transposed", "gaps"]))
    return rows, columns, offset, kind


def laid_out(rows, columns, offset, kind, generator):
    memory = torch.randn(offset + 2 * rows * columns + 1, generator=generator, dtype=torch.float64)
    if kind == "gaps":
        return (
            memory[offset : offset + 2 * rows * columns].view(rows, 2 * columns)[:, ::2]
            if columns
            else memory[:0].view(rows, 0)
        )
    dense = memory[offset : offset + rows * columns]
    return dense.view(columns, rows).t() if kind == "transposed" else dense.view(rows, columns)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_groups_layouts_and_gradients_that_come_and_go(way, data):
    """In fp64 against torch's plain loops: groups join in mid-run, rates change every step, gradients are missing,
    transposed or expanded."""
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
        both.append([[nn.Parameter(laid_out(*layout, generator)) for layout in group] for group in drawn])
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
    for ours, their in zip(sum(mine, []), sum(theirs, []), strict=True):
        torch.testing.assert_close(ours, their, rtol=OPTIMIZER_FP64, atol=OPTIMIZER_FP64)


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
    ],
)
def test_hyper_parameters_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(nn.Parameter(torch.ones(2)))


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
