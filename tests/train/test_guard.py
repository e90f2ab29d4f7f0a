"""An update that is not finite changes nothing and is counted; every other is clipped as torch clips."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from tolerances import FP32, OPTIMIZER_MOVE_FP32
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pgm_fast.data import FeatureSet
from pgm_fast.methods.base import OPTIMIZERS
from pgm_fast.train import fit, loop
from pgm_fast.train.distributed import Ranks
from pgm_fast.train.step.guard import DelayedReading, UpdateGuard
from pgm_fast.train.step.optimizers import build_optimizer


def parts(name="adamw", clip=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    optimizer = build_optimizer(name, [{"params": list(model.parameters()), "lr": 0.1, "name": "all"}], 0.01)
    return model, optimizer, UpdateGuard(optimizer, clip, Ranks())


def step(model, optimizer, guard, factor=1.0, seed=1):
    optimizer.zero_grad(set_to_none=True)
    guard.begin()
    generator = torch.Generator().manual_seed(seed)
    loss = (model(torch.randn(8, 4, generator=generator)) ** 2).mean() * factor
    loss.backward()
    guard.update(loss)
    return loss


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_step_changes_neither_weights_nor_optimizer_state(name, bad):
    model, optimizer, guard = parts(name)
    step(model, optimizer, guard)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    step(model, optimizer, guard, factor=bad, seed=2)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
    for number, entry in state["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, optimizer.state_dict()["state"][number][key]), key
    step(model, optimizer, guard, seed=3)
    assert not torch.equal(weights["0.weight"], model[0].weight)
    assert guard.counts.tolist()[:3] == [1.0, 0.0, 1.0]


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too():
    model, optimizer, guard = parts()
    weights = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    loss = (
        model[0].weight.sum() * 0.0 + (model(torch.ones(1, 4)) * 0.0).sum().abs().sqrt()
    )  # d sqrt(x) at 0 is infinite
    loss.backward()
    assert torch.isfinite(loss)
    guard.update(loss)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
    assert guard.counts[0] == 1.0


def test_the_longest_row_of_skipped_steps_is_known_after_it_ended():
    model, optimizer, guard = parts()
    for number, bad in enumerate([0, 1, 1, 1, 0, 1, 0, 1, 1, 0]):
        step(model, optimizer, guard, factor=math.nan if bad else 1.0, seed=number)
    assert guard.counts.tolist() == [6.0, 0.0, 3.0, 0.0]


@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
def test_updates_are_those_of_gradients_clipped_to_the_global_norm(clip):
    model, optimizer, guard = parts("sgd", clip=clip)
    twin = copy.deepcopy(model)
    reference = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for seed in (1, 2):
        step(model, optimizer, guard, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        reference.zero_grad()
        (twin(torch.randn(8, 4, generator=generator)) ** 2).mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(twin.parameters(), clip)
        reference.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=FP32, atol=OPTIMIZER_MOVE_FP32)


class Counting(nn.Module):
    """An encoder with statistics of its own: replaced in every step, one of them infinite from the beginning."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 4))
        self.register_buffer("bounds", torch.tensor([-math.inf, math.inf]))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unset", None)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        self.seen += 1
        return x


def batches_with_bad_ones():
    """Inputs and whether they are fit to train on: NaN, infinity, and values whose variance is infinite."""
    torch.manual_seed(3)
    for bad in (None, math.nan, None, math.inf, 1e30, None):
        x = torch.randn(8, 4)
        if bad is not None:
            x[5, 2] = bad
        yield x, bad is None


def test_a_bad_batch_leaves_no_trace_in_running_statistics():
    def trained(only_good):
        torch.manual_seed(0)
        model = nn.Sequential(Counting(), nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        optimizer = build_optimizer("sgd", [{"params": list(model.parameters()), "lr": 0.1, "name": "all"}], 0.01)
        guard = UpdateGuard(optimizer, 1.0, Ranks(), model)
        for x, good in batches_with_bad_ones():
            if only_good and not good:
                continue
            optimizer.zero_grad(set_to_none=True)
            guard.begin()
            loss = (model(x) ** 2).mean()
            loss.backward()
            guard.update(loss)
        return model.state_dict(), guard.counts[0]

    with_bad, skipped = trained(only_good=False)
    without, _ = trained(only_good=True)
    assert skipped == 3
    for key, value in without.items():
        assert torch.equal(value, with_bad[key]), key


def test_an_update_asks_nothing_of_the_device(monkeypatch):
    model, optimizer, _ = parts()
    model = nn.Sequential(nn.BatchNorm1d(4), model)
    guard = UpdateGuard(optimizer, 1.0, Ranks(), model)
    step(model, optimizer, guard)

    def refuse(*args, **kwargs):
        raise AssertionError("the host read a device value")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    step(model, optimizer, guard, seed=2)


class StandInEvent:
    """Of a CUDA device that is not here: knows on which stream it was recorded, and whether it was waited for."""

    def __init__(self):
        self.stream, self.waited = None, False

    def record(self, stream):
        self.stream = stream

    def synchronize(self):
        self.waited = True


def test_values_are_read_late_on_the_stream_of_their_own_device(monkeypatch):
    """With another device than the current one, and another default device."""
    events, empty = [], torch.empty

    def unpinned(*shape, device, pin_memory, **kwargs):
        assert device == "cpu" and pin_memory
        return empty(*shape, device=device, **kwargs)

    monkeypatch.setattr(torch.cuda, "Event", lambda: events.append(StandInEvent()) or events[-1])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "empty", unpinned)
    with torch.device("meta"):
        read = DelayedReading(torch.device("cuda:1"))
        given = torch.tensor([1.0, 2.0], device="cpu")
        assert read(given) is None
        given.add_(1.0)
        assert read(given) == [1.0, 2.0]
    assert [event.stream for event in events] == ["stream of cuda:1"] * 2
    assert [event.waited for event in events] == [True, False]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_default_device_is_not_where_a_step_looks(name):
    """``meta`` stands for a GPU: nothing that is made there has values."""
    (plain, *of_plain), (other, *of_other) = parts(name), parts(name)
    step(plain, *of_plain)
    with torch.device("meta"):
        optimizer, guard = of_other
        optimizer.zero_grad(set_to_none=True)
        guard.begin()
        inputs = torch.randn(8, 4, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
        loss = (other(inputs) ** 2).mean()
        loss.backward()
        guard.update(loss)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


class Observed(UpdateGuard):
    """Notes which buffers a step has written, and whether the guard watches them."""

    written: ClassVar[dict[str, bool]] = {}

    def __init__(self, optimizer, clip_norm, ranks, module):
        super().__init__(optimizer, clip_norm, ranks, module)
        self.owners = list(module.modules())

    def begin(self):
        super().begin()
        buffers = [(o._buffers, name) for o in self.owners for name in o._buffers if o._buffers[name] is not None]
        self.before = [(own, name, own[name].clone()) for own, name in buffers]

    def update(self, *arguments, **named):
        watched = {(id(own), name) for own, name in self.buffers._owners}
        for own, name, value in self.before:
            if not torch.equal(own[name], value):
                self.written[name] = (id(own), name) in watched
        super().update(*arguments, **named)


@pytest.mark.parametrize("method", ["pgm", "dimml", "dmil", "mla", "unimodal"])
def test_a_method_names_all_buffers_that_its_steps_write(method, tmp_path, monkeypatch):
    monkeypatch.setattr(Observed, "written", {})
    monkeypatch.setattr(loop, "UpdateGuard", Observed)
    rows, draw = 48, np.random.default_rng(0)
    vectors = {m: draw.normal(size=(rows, 5)).astype(np.float32) for m in "ab"}
    split = np.array(["train"] * 32 + ["valid"] * 16)
    data = FeatureSet("made", vectors, "classification", np.arange(rows) % 2, split, num_classes=2)
    settings = {"dimml.warmup": 1, "dimml.fusion_epochs": 1, "dmil.stage_epochs": [1, 1, 1], "train.epochs": 2}
    settings |= {"model.dim": 8, "model.hidden": 8, "train.device": "cpu", "train.plots": False, "train.logger": []}
    fit(method=method, data=data, out=str(tmp_path), **{**settings, "train.batch_size": 16})
    assert Observed.written == (dict.fromkeys(("projection", "seen"), True) if method == "mla" else {})


def test_a_step_is_guarded_by_few_calls_in_the_same_memory():
    optimizer = SimpleNamespace(total_norm=lambda: torch.ones((), dtype=torch.float64), step=lambda: None)
    guard = UpdateGuard(optimizer, 1.0, Ranks())
    held, called = (guard.counts.data_ptr(), guard.skipped.data_ptr()), []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.name().removeprefix("aten::").partition(".")[0])
            return function(*args, **(kwargs or {}))

    loss = torch.ones(())
    with Calls():
        guard.begin()
        guard.update(loss)
    called = [name for name in called if name not in ("unbind", "detach", "ones")]
    assert called == ["add", "sub", "ne", "add_", "add_", "mul_", "maximum"]
    assert (guard.counts.data_ptr(), guard.skipped.data_ptr()) == held
    assert optimizer.found_inf is guard.skipped
