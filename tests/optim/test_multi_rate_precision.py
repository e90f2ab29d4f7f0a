"""Clipping, mixed precision and master weights: no value is read by the host, none is lost."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tolerances import EPS, FP32, NORM_FP32, OPTIMIZER_RUN_FP32, OPTIMIZER_RUN_MOVE_FP32
from torch import nn

from pgm_fast.optim import MultiRateAdamW, MultiRateSGD
from pgm_fast.optim.remainder import join_remainder, split_remainder

BOTH = [
    (MultiRateAdamW, lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False)),
    (
        lambda p, **k: MultiRateSGD(p, momentum=0.9, **k),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
    ),
]


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 3)).to(dtype)


def loss_of(net, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 7, generator=generator).to(next(net.parameters()).dtype)
    return (net(x).float() ** 2).mean()


@pytest.mark.parametrize("found_inf", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("ours", [pair[0] for pair in BOTH])
@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.works("GradScaler", "optimizers")
def test_any_found_inf_but_zero_changes_nothing(way, ours, found_inf, steps_before):
    net = model()
    optimizer = ours(net.parameters(), lr=0.1)
    for step in range(steps_before):
        loss_of(net, step).backward()
        optimizer.step()
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan if found_inf else 1.0)
    weights = copy.deepcopy(net.state_dict())
    optimizer.found_inf = torch.tensor(found_inf)
    optimizer.step()
    assert optimizer.skipped_steps == float(found_inf != 0.0)
    for name, p in net.named_parameters():
        assert torch.equal(p, weights[name]) == (found_inf != 0.0)
        assert optimizer.state[p]["step"] == steps_before + (found_inf == 0.0)
        assert all(value.isfinite().all() for value in optimizer.state[p].values())


@pytest.mark.parametrize("lane", ["no scaler", "scaler", "scaler, unscale_ and clip", "clip in the optimizer"])
@pytest.mark.parametrize("ours, theirs", BOTH)
@pytest.mark.works("GradScaler", "optimizers")
def test_gradient_scaling_changes_no_result(way, ours, theirs, lane):
    """Four steps, the third with an infinite loss, against torch without a scaler."""
    net, twin = model(), model()
    max_norm = 0.05 if "clip" in lane else None
    optimizer = ours(net.parameters(), lr=0.1, max_norm=max_norm if lane == "clip in the optimizer" else None)
    reference = theirs(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=lane != "no scaler")
    for step in range(4):
        if step == 2 and lane == "no scaler":
            continue
        factor = math.inf if step == 2 else 1.0
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step) * factor).backward()
        if lane == "scaler, unscale_ and clip":
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            reference.zero_grad()
            loss_of(twin, step).backward()
            if max_norm:
                nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
            reference.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=OPTIMIZER_RUN_FP32, atol=OPTIMIZER_RUN_MOVE_FP32)
        assert optimizer.state[a]["step"] == 3.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_total_norm_is_that_of_all_gradients(way, dtype):
    owned = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (1, 70_001, 0, 333)]
    optimizer = MultiRateSGD([{"params": [p]} for p in owned], lr=0.1)
    for p in owned:
        p.grad = torch.randn_like(p)
    exact = math.sqrt(sum((p.grad.double() ** 2).sum().item() for p in owned))
    assert optimizer.total_norm().item() == pytest.approx(exact, rel=NORM_FP32, abs=0)


def test_a_finite_gradient_whose_square_is_not_is_no_reason_to_skip(way):
    p = nn.Parameter(torch.ones(40))
    optimizer = MultiRateSGD([p], lr=1.0, max_norm=1.0, skip_nonfinite=True)
    p.grad = torch.full((40,), 1e30)
    optimizer.step()
    assert optimizer.skipped_steps == 0.0
    torch.testing.assert_close(p.detach(), torch.full((40,), 1 - 40**-0.5), rtol=FP32, atol=0)


def test_each_group_may_be_clipped_to_a_norm_of_its_own(way):
    owned, twins = [nn.Parameter(torch.ones(50)) for _ in range(3)], [nn.Parameter(torch.ones(50)) for _ in range(3)]
    groups = [{"params": [p], "max_norm": norm} for p, norm in zip(owned, (0.1, None, 100.0), strict=True)]
    optimizer = MultiRateSGD(groups, lr=1.0, clip="group")
    for i, (p, twin) in enumerate(zip(owned, twins, strict=True)):
        p.grad = torch.linspace(-1, i + 1, 50)
        twin.grad = p.grad.clone()
    nn.utils.clip_grad_norm_([twins[0]], 0.1)
    torch.optim.SGD(twins, lr=1.0).step()
    optimizer.step()
    for p, twin in zip(owned, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=FP32, atol=FP32)
    assert optimizer.launches_per_step == 2


def test_clipping_spans_launches_of_different_dtypes(way):
    def build():
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(20, dtype=dtype)) for dtype in (torch.float32, torch.float64)]

    owned, twins = build(), build()
    for p, twin in zip(owned, twins, strict=True):
        p.grad, twin.grad = torch.ones_like(p), torch.ones_like(p)
    optimizer = MultiRateSGD(owned, lr=1.0, max_norm=0.5)
    optimizer.step()
    nn.utils.clip_grad_norm_(twins, 0.5)
    torch.optim.SGD(twins, lr=1.0).step()
    assert optimizer.launches_per_step == 4
    for p, twin in zip(owned, twins, strict=True):
        torch.testing.assert_close(p, twin, rtol=FP32, atol=FP32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(way, bad):
    owned = [nn.Parameter(torch.ones(5000)), nn.Parameter(torch.ones(3))]
    optimizer = MultiRateAdamW(owned, skip_nonfinite=True)
    for number, value in enumerate([1.0, bad, 1.0], 1):
        for p in owned:
            p.grad = torch.ones_like(p)
        owned[0].grad[4321] = value
        before = [p.detach().clone() for p in owned]
        optimizer.step()
        assert all(torch.equal(a, b) == (value == bad or value != value) for a, b in zip(owned, before, strict=True)), (
            number
        )
    assert optimizer.skipped_steps == 1.0
    assert optimizer.state[owned[1]]["step"] == 2.0


@pytest.mark.parametrize(
    "form, dtype", [("float32", torch.bfloat16), ("float32", torch.float16), ("remainder", torch.bfloat16)]
)
@pytest.mark.parametrize("ours", [pair[0] for pair in BOTH])
def test_master_weights_move_as_float32_parameters_do(way, ours, form, dtype):
    """Bit by bit those of a float32 optimizer that is given the same gradients; the parameter is their nearest."""
    torch.manual_seed(0)
    start = torch.randn(3001).to(dtype)
    p, twin = nn.Parameter(start.clone()), nn.Parameter(start.float())
    optimizer, reference = ours([p], lr=1e-4, master_weights=form), ours([twin], lr=1e-4)
    for _ in range(20):
        p.grad = torch.randn_like(p)
        twin.grad = p.grad.float()
        optimizer.step()
        reference.step()
    state = optimizer.state[p]
    master = state["master_param"] if form == "float32" else join_remainder(p.detach(), state["param_remainder"])
    assert torch.equal(master, twin)
    assert torch.equal(p.detach(), twin.to(dtype) if form == "float32" else split_remainder(twin.detach())[0])
    assert not torch.equal(p.detach(), start)
    assert all(state[name].dtype == torch.float32 for name in state if name != "param_remainder")


@pytest.mark.parametrize("form", ["float32", "remainder"])
def test_master_weights_follow_a_parameter_that_somebody_else_wrote(way, form):
    """Weights loaded into the model, or a step that another optimizer took, stay; what was not written keeps the bits
    that only its master has."""
    net = model(torch.bfloat16)
    optimizer = MultiRateSGD(net.parameters(), lr=1e-4, master_weights=form)
    for step in range(3):
        loss_of(net, step).backward()
        optimizer.step()
    written, kept = net[0].weight, net[2].weight
    master = master_of(optimizer, kept)
    assert not torch.equal(master, kept.float())
    loaded = {name: value + 3.0 for name, value in net.state_dict().items() if not name.startswith("2.weight")}
    net.load_state_dict(loaded, strict=False)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(written, loaded["0.weight"])
    assert torch.equal(master_of(optimizer, kept), master)
    off = (master_of(optimizer, written) - written.float()).abs().max()
    assert off == 0.0 if form == "float32" else off <= EPS[torch.bfloat16] * written.abs().max()


def master_of(optimizer, p):
    state = optimizer.state[p]
    return state["master_param"].clone() if "master_param" in state else join_remainder(p, state["param_remainder"])


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no gradients of another dtype")
@pytest.mark.parametrize("form", [None, "float32", "remainder"])
def test_float32_gradients_of_16_bit_parameters_lose_nothing(way, form):
    torch.manual_seed(0)
    start = torch.randn(3001).bfloat16()
    p, twin = nn.Parameter(start.clone()), nn.Parameter(start.float())
    p.grad_dtype = torch.float32
    optimizer, reference = MultiRateAdamW([p], master_weights=form), MultiRateAdamW([twin])
    for _ in range(5):
        p.grad = torch.randn(3001)
        twin.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    assert optimizer.launches_per_step == 1
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[p][name], reference.state[twin][name])
    if form is not None:
        assert torch.equal(master_of(optimizer, p), twin)


def test_sixteen_bits_and_sixteen_more_are_a_float_bit_by_bit():
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), dtype=torch.int64)
    edges = torch.tensor([0, 0x8000, 0x18000, 0x7F7FFFFF, 0x7F800000, -(2**31), 0x3F807FFF, 0x3F808000])
    value = torch.cat([bits, edges]).to(torch.int32).view(torch.float32)
    value = value[~value.isnan()]
    high, low = split_remainder(value)
    assert torch.equal(join_remainder(high, low).view(torch.int32), value.view(torch.int32))
    middle = value[value.bfloat16().isfinite()]
    high, _ = split_remainder(middle)
    assert ((high.double() - middle).abs() <= (middle.bfloat16().double() - middle).abs()).all()
    assert split_remainder(torch.tensor([math.nan]))[0].isnan().all()
