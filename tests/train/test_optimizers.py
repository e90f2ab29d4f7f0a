"""Optimizers and schedules by name do what torch's own do, and say so when a name is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import FP32, FP64, OPTIMIZER_MOVE_FP32
from torch import nn

from pgm_fast.errors import ConfigError
from pgm_fast.methods.base import MONITORS, OPTIMIZERS
from pgm_fast.train.step.optimizers import Schedule, build_optimizer, cosine_factor


def groups(rates=(0.1, 0.01)):
    torch.manual_seed(0)
    return [{"params": [nn.Parameter(torch.randn(3, 4))], "lr": lr, "name": f"g{i}"} for i, lr in enumerate(rates)]


REFERENCE = {
    "adamw": lambda g: torch.optim.AdamW(g, weight_decay=0.05, foreach=False),
    "sgd": lambda g: torch.optim.SGD(g, momentum=0.9, weight_decay=0.05, foreach=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch_with_a_rate_per_group(name):
    ours, theirs = groups(), groups()
    optimizers = build_optimizer(name, ours, 0.05), REFERENCE[name](theirs)
    for step in range(4):
        for owner in (ours, theirs):
            torch.manual_seed(step)
            for group in owner:
                for parameter in group["params"]:
                    parameter.grad = torch.randn_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a["params"][0], b["params"][0], rtol=FP32, atol=OPTIMIZER_MOVE_FP32)
    assert [g["name"] for g in optimizers[0].param_groups] == ["g0", "g1"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_first_step_leaves_no_trace(name):
    skipped, clean = groups(), groups()
    optimizer, reference = build_optimizer(name, skipped, 0.05), build_optimizer(name, clean, 0.05)

    def fill(owner, value):
        for group in owner:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, value)

    optimizer.grad_scale = None
    for value, skip in ((math.nan, 1.0), (1.0, 0.0), (2.0, 0.0)):
        fill(skipped, value)
        optimizer.found_inf = torch.tensor(skip)
        optimizer.step()
    for value in (1.0, 2.0):
        fill(clean, value)
        reference.step()
    for a, b in zip(skipped, clean, strict=True):
        assert torch.equal(a["params"][0], b["params"][0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_keeps_its_own_weight_decay(name):
    given = groups()
    given[1]["weight_decay"] = 0.5
    assert [g["weight_decay"] for g in build_optimizer(name, given, 0.05).param_groups] == [0.05, 0.5]


def test_wrong_names_are_refused_with_the_right_ones():
    with pytest.raises(ConfigError, match=r"'adam'.*adamw, sgd"):
        build_optimizer("adam", groups(), 0.0)
    with pytest.raises(ConfigError, match=r"'stairs'.*constant, cosine, plateau, step"):
        Schedule("stairs", build_optimizer("sgd", groups(), 0.0), 10)
    with pytest.raises(ConfigError, match="'accuracy', must be one of score, loss"):
        Schedule("plateau", build_optimizer("sgd", groups(), 0.0), 10, options={"monitor": "accuracy"})
    with pytest.raises(ConfigError, match="constant has no option factor; it takes none"):
        Schedule("constant", build_optimizer("sgd", groups(), 0.0), 10, options={"factor": 0.1})
    with pytest.raises(ConfigError, match="no parameter to train"):
        build_optimizer("sgd", [{"params": [], "lr": 0.1, "name": "empty"}], 0.0)


def test_cosine_rises_to_the_base_rate_and_falls_to_a_hundredth():
    factors = [cosine_factor(step, 100, 10) for step in range(101)]
    assert factors[9] == factors[10] == 1.0
    assert all(a < b for a, b in zip(factors[:9], factors[1:10], strict=True))
    assert all(a > b for a, b in zip(factors[10:100], factors[11:101], strict=True))
    assert factors[0] == pytest.approx(0.1, abs=FP64) and factors[100] == pytest.approx(0.01, abs=FP64)
    assert factors[55] == pytest.approx((1 + 0.01) / 2, abs=FP64)


def test_cosine_keeps_the_ratio_of_the_groups_and_caps_the_warm_up():
    optimizer = build_optimizer("sgd", groups(), 0.0)
    schedule = Schedule("cosine", optimizer, total_steps=10, warmup_steps=1000)
    seen = []
    for _ in range(10):
        seen.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert all(a == pytest.approx(10 * b, abs=FP64) for a, b in seen)
    assert max(a for a, _ in seen) == pytest.approx(0.1, abs=FP64)


@pytest.mark.parametrize("best", [0.7, -0.7])
def test_plateau_lowers_the_rate_when_the_score_stays_whatever_its_sign(best):
    optimizer = build_optimizer("sgd", groups(), 0.0)
    schedule = Schedule("plateau", optimizer, total_steps=10)
    rates = []
    for epoch in range(14):
        optimizer.step()
        schedule.step()
        schedule.epoch(best if epoch else best - 1.0, 0.0)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[6] == 0.1 and rates[7] == pytest.approx(0.03, abs=FP64) and rates[13] == pytest.approx(0.009, abs=FP64)


def test_plateau_watches_what_its_monitor_names():
    """The score stands still while the loss falls, then the other way round."""
    rates = {}
    for monitor in MONITORS:
        optimizer = build_optimizer("sgd", groups(), 0.0)
        schedule = Schedule("plateau", optimizer, 10, options={"monitor": monitor, "patience": 2})
        seen = []
        for epoch in range(12):
            optimizer.step()
            schedule.epoch(*((0.5, 9.0 - epoch) if epoch < 6 else (0.5 + epoch, 9.0)))
            seen.append(optimizer.param_groups[0]["lr"])
        rates[monitor] = seen
    assert rates["score"][5] < rates["score"][0] and rates["score"][11] == rates["score"][6]
    assert rates["loss"][5] == rates["loss"][0] and rates["loss"][11] < rates["loss"][6]


@pytest.mark.parametrize("name", ["constant", "cosine", "plateau"])
def test_a_schedule_goes_on_from_its_state(name):
    def advance(optimizer, schedule, steps):
        rates = []
        for step in steps:
            optimizer.step()
            schedule.step()
            schedule.epoch(float(step == 0), 0.0)
            rates.append([g["lr"] for g in optimizer.param_groups])
        return rates

    whole = build_optimizer("adamw", groups(), 0.0)
    expected = advance(whole, Schedule(name, whole, 20, 3), range(20))
    first = build_optimizer("adamw", groups(), 0.0)
    schedule = Schedule(name, first, 20, 3)
    advance(first, schedule, range(7))
    second = build_optimizer("adamw", groups(), 0.0)
    resumed = Schedule(name, second, 20, 3)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert advance(second, resumed, range(7, 20)) == expected[7:]


@pytest.mark.parametrize(
    "name, options, lrs",
    [
        ("step", {"every": 2, "factor": 0.5}, [1, 1, 0.5, 0.5, 0.25]),
        ("plateau", {"patience": 1, "factor": 0.1}, [1, 1, 1, 0.1, 0.1]),
    ],
)
def test_a_stage_may_bring_its_own_numbers(name, options, lrs):
    optimizer = build_optimizer("sgd", groups((1.0,)), 0.0)
    schedule = Schedule(name, optimizer, total_steps=5, options=options)
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        schedule.epoch(0.0, 0.0)
    assert seen == pytest.approx(lrs, rel=FP64, abs=FP64)
