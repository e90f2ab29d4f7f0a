"""State goes to torch's optimizers and back, to files and back, and a run goes on from it bit by bit; tables are made
when something changed and at no other time."""

from __future__ import annotations

import copy
import io
import sys

import numpy as np
import pytest
import torch
from tolerances import FP32, OPTIMIZER_RUN_MOVE_FP32, OPTIMIZER_STATE_FP32
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pgm_fast.optim import MultiRateAdamW, MultiRateSGD

PAIRS = [
    (MultiRateAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    (MultiRateAdamW, torch.optim.AdamW, {"amsgrad": True}),
    (MultiRateSGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (MultiRateSGD, torch.optim.SGD, {}),
]


def params(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((3, 5), (17,), ())]


def groups_of(owned):
    return [{"params": owned[:1], "lr": 0.1}, {"params": owned[1:], "lr": 0.01}]


def advance(optimizer, steps):
    for step in steps:
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn_like(p)
        optimizer.step()


@pytest.mark.parametrize("to_torch", [True, False])
@pytest.mark.parametrize("ours, theirs, options", PAIRS)
@pytest.mark.works("deepcopy, torch.save", "optimizers")
def test_a_run_begun_with_one_goes_on_with_the_other(way, ours, theirs, options, to_torch):
    classes = (ours, theirs) if to_torch else (theirs, ours)
    whole, parts = params(), params()
    reference, begun = theirs(groups_of(whole), foreach=False, **options), classes[0](groups_of(parts), **options)
    advance(reference, range(8))
    advance(begun, range(4))
    second = classes[1](groups_of(parts), **options)
    second.load_state_dict(begun.state_dict())
    advance(second, range(4, 8))
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=FP32, atol=OPTIMIZER_RUN_MOVE_FP32)
    for a, b in zip(parts, whole, strict=True):
        for name, value in reference.state[b].items():
            torch.testing.assert_close(second.state[a][name], value, rtol=OPTIMIZER_STATE_FP32, atol=FP32)


@pytest.mark.parametrize("master", [None, "float32", "remainder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ours, theirs, options", PAIRS)
@pytest.mark.works("deepcopy, torch.save", "optimizers")
def test_a_run_goes_on_from_a_file_bit_by_bit(way, ours, theirs, options, dtype, master):
    options = {**options, "master_weights": master, "update_every": 2}
    whole, parts = params(dtype), params(dtype)
    reference, begun = ours(groups_of(whole), **options), ours(groups_of(parts), **options)
    advance(reference, range(9))
    advance(begun, range(5))
    file = io.BytesIO()
    torch.save({"optimizer": begun.state_dict(), "params": [p.detach() for p in parts]}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    fresh = [nn.Parameter(p) for p in loaded["params"]]
    second = ours(groups_of(fresh), **options)
    second.load_state_dict(loaded["optimizer"])
    advance(second, range(5, 9))
    for a, b in zip(fresh, whole, strict=True):
        assert torch.equal(a, b)
        for name, value in reference.state[b].items():
            assert torch.equal(second.state[a][name], value) and second.state[a][name].dtype == value.dtype, name


def test_float32_moments_of_16_bit_parameters_are_loaded_as_they_are(way):
    owned = params(torch.bfloat16)
    optimizer = MultiRateAdamW(owned)
    advance(optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    other = MultiRateAdamW(params(torch.bfloat16))
    other.load_state_dict(saved)
    for number, p in enumerate(other.param_groups[0]["params"]):
        for name in ("exp_avg", "exp_avg_sq"):
            assert other.state[p][name].dtype == torch.float32
            assert torch.equal(other.state[p][name], saved["state"][number][name])


def test_what_is_loaded_is_a_copy(way):
    owned = params()
    optimizer = MultiRateAdamW(owned)
    advance(optimizer, range(2))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other = MultiRateAdamW(params())
    other.load_state_dict(saved)
    advance(other, range(3))
    for number, entry in before["state"].items():
        assert all(torch.equal(value, saved["state"][number][name]) for name, value in entry.items())


def test_master_weights_of_another_form_are_refused(way):
    optimizer = MultiRateAdamW(params(torch.bfloat16), master_weights="float32")
    advance(optimizer, range(1))
    other = MultiRateAdamW(params(torch.bfloat16), master_weights="remainder")
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="master_param.*'remainder'"):
        advance(other, range(1))


def test_state_of_other_shapes_is_refused(way):
    optimizer = MultiRateAdamW(params())
    advance(optimizer, range(1))
    other = MultiRateAdamW(list(reversed(params())))
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"exp_avg has shape \(3, 5\) and its parameter \(\)"):
        advance(other, range(1))


@pytest.mark.works("deepcopy, torch.save", "optimizers")
def test_a_copied_optimizer_goes_on_alike(way):
    owned = params()
    optimizer = MultiRateAdamW(groups_of(owned), max_norm=1.0)
    advance(optimizer, range(2))
    twin = copy.deepcopy(optimizer)
    advance(optimizer, range(2, 4))
    advance(twin, range(2, 4))
    assert twin.max_norm == 1.0
    copies = [p for group in twin.param_groups for p in group["params"]]
    assert all(torch.equal(a, b) and a is not b for a, b in zip(owned, copies, strict=True))


def test_counters_share_one_buffer(way):
    owned = params()
    optimizer = MultiRateAdamW(groups_of(owned))
    advance(optimizer, range(1))
    steps = [optimizer.state[p]["step"] for p in owned]
    assert all(step.shape == () and step.dtype == torch.float32 for step in steps)
    assert len({step.untyped_storage().data_ptr() for step in steps}) == 1


def test_tables_are_made_when_something_changed_and_at_no_other_time(way, monkeypatch):
    owned = params()
    optimizer = MultiRateAdamW(groups_of(owned))
    made = []
    new_plan = MultiRateAdamW._new_plan
    monkeypatch.setattr(MultiRateAdamW, "_new_plan", lambda self: made.append(1) or new_plan(self))

    def tables(change=lambda: None, missing=()):
        made.clear()
        change()
        for p in owned:
            p.grad = None if any(p is m for m in missing) else torch.randn_like(p)
        optimizer.step()
        return len(made)

    assert tables() == 1
    assert [tables() for _ in range(3)] == [0, 0, 0]
    assert tables(lambda: optimizer.param_groups[0].update(lr=0.5)) == 0
    assert [tables(missing=owned[k : k + 2]) for k in range(3)] == [0, 0, 0]
    assert tables() == 0
    assert tables(lambda: optimizer.param_groups[1].update(betas=(0.5, 0.9))) == 0
    assert tables(lambda: optimizer.param_groups[1].update(lr=np.float32(0.25))) == 0
    assert tables(lambda: optimizer.param_groups[1].update(betas=(0.0, 0.9))) == 1
    assert tables(lambda: optimizer.state[owned[0]].update(exp_avg=torch.zeros(3, 5))) == 1
    assert tables(lambda: setattr(owned[1], "data", torch.zeros(17))) == 1
    assert tables(lambda: optimizer.load_state_dict(optimizer.state_dict())) == 1
    assert tables() == 0


def test_a_changed_rate_is_the_one_that_counts(way):
    p = nn.Parameter(torch.zeros(3))
    optimizer = MultiRateSGD([p], lr=1.0)
    moved = []
    for lr in (1.0, 0.5, 2, 0.0, 0.25, torch.tensor(4.0)):
        optimizer.param_groups[0]["lr"] = lr
        before = p.detach().clone()
        p.grad = -torch.ones(3)
        optimizer.step()
        moved.append((p.detach() - before)[0].item())
    optimizer.param_groups[0]["lr"].fill_(8.0)
    optimizer.step()
    assert moved == [1.0, 0.5, 2.0, 0.0, 0.25, 4.0] and p[0].item() == 15.75


def test_a_steady_step_runs_as_much_python_for_many_parameters_as_for_few(way):
    if way != "native":
        pytest.skip("the compiled watch looks at parameters, the others loop over them")

    def calls(count):
        owned = [nn.Parameter(torch.ones(2)) for _ in range(count)]
        optimizer = MultiRateAdamW([{"params": [p]} for p in owned])
        advance(optimizer, range(2))
        seen = []
        sys.setprofile(lambda frame, event, argument: seen.append(event))
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
        return len(seen)

    assert calls(2) == calls(300)


def test_hooks_and_the_profiler_see_every_step(way):
    optimizer = MultiRateAdamW(params())
    advance(optimizer, range(1))
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda *a: seen.append("before")),
        optimizer.register_step_post_hook(lambda *a: seen.append("after")),
        register_optimizer_step_pre_hook(lambda *a: seen.append("before any")),
        register_optimizer_step_post_hook(lambda *a: seen.append("after any")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert sorted(seen) == ["after", "after any", "before", "before any"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert [event.count for event in profile.key_averages() if event.key == "Optimizer.step#MultiRateAdamW.step"] == [1]


SCHEDULES = {
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, [0.2, 0.02], total_steps=12),
    "warm-up": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=3),
    "chained": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.works("schedulers", "optimizers")
def test_schedules_of_torch_work_as_they_are(way, schedule, tensor_lr):
    mine, theirs = params(), params()
    runs = []
    for owned, build in ((mine, MultiRateAdamW), (theirs, torch.optim.AdamW)):
        groups = groups_of(owned)
        for group in groups:
            group["lr"] = torch.tensor(group["lr"]) if tensor_lr else group["lr"]
        optimizer = build(groups)
        plan, rates = SCHEDULES[schedule](optimizer), []
        for step in range(8):
            advance(optimizer, [step])
            plan.step(1.0) if schedule == "plateau" else plan.step()
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
        runs.append(rates)
    assert runs[0] == runs[1]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=FP32, atol=OPTIMIZER_RUN_MOVE_FP32)
