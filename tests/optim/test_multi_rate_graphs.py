"""What a captured step is replayed with, on a CPU that plays a device: tables apart from the host's, a capture records
launches and computes nothing, a replay makes them. tests/gpu/test_multi_rate.py has the graphs themselves."""

from __future__ import annotations

import copy
import gc
import weakref
from array import array
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pgm_fast.optim import MultiRateSGD, device_tables, kernels, multi_rate, plan


class Device:
    """Captures and replays what the optimizer launches and copies; memory that only a replay writes is poisoned."""

    def __init__(self, monkeypatch):
        self.recorded = None
        self.run, self.copy = kernels.run, device_tables.copied
        self.poison = torch.full((3,), torch.nan)
        monkeypatch.setattr(device_tables, "is_on_host", lambda device: False)
        monkeypatch.setattr(plan, "is_on_host", lambda device: False)
        for module in (plan, multi_rate):
            monkeypatch.setattr(module, "is_capturing", lambda: self.recorded is not None)
        monkeypatch.setattr(kernels, "run", self.launched)
        monkeypatch.setattr(device_tables, "copied", self.copied)

    def launched(self, op, launch):
        if self.recorded is None:
            self.run(op, launch)
            return
        held = copy.copy(launch)
        held.changing = SimpleNamespace(gradients=launch.gradients, groups=launch.groups)
        held.words = array("q", launch.words)
        held.address = held.words.buffer_info()[0]
        self.recorded.append(lambda: self.run(op, held))

    def copied(self, table, device):
        made = self.copy(table, device)
        if self.recorded is not None:
            made.fill_(torch.nan if made.is_floating_point() else self.poison.data_ptr())
            self.recorded.append(lambda: made.copy_(table))
        return made

    def capture(self, call):
        self.recorded = []
        try:
            call()
            return self.recorded
        finally:
            self.recorded = None

    def replay(self, recorded):
        for call in recorded:
            call()


@pytest.fixture
def device(way, monkeypatch):
    if way == "torch":
        pytest.skip("the reference reads no tables")
    return Device(monkeypatch)


ACTIONS = st.tuples(
    st.sampled_from(["step", "capture", "replay"]),
    st.booleans(),  # whether gradients move before it
    st.sampled_from([1.0, 0.5, 0.25]),  # the rate from then on
    st.integers(-4, 4),  # the gradient
    st.integers(0, 9),  # of the graphs there are, which one is replayed
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(actions=st.lists(ACTIONS, max_size=14))
@pytest.mark.works("CUDA graphs", "optimizers")
def test_a_graph_replays_with_the_gradients_and_rates_that_it_was_captured_with(device, actions):
    """Whatever steps outside, and other captures, do in between. Numbers are such that every sum is exact."""
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.zeros(3)
    optimizer = MultiRateSGD([p], lr=1.0)
    optimizer.step()
    exact, graphs = 0.0, []
    for kind, moves, rate, value, which in actions:
        if kind == "replay":
            if graphs:
                recorded, gradient, captured_rate = graphs[which % len(graphs)]
                gradient.fill_(value)
                device.replay(recorded)
                exact -= captured_rate * value
        else:
            if moves:
                p.grad = torch.zeros(3)
            p.grad.fill_(value)
            optimizer.param_groups[0]["lr"] = rate
            if kind == "capture":
                graphs.append((device.capture(optimizer.step), p.grad, rate))
            else:
                optimizer.step()
                exact -= rate * value
        assert p.tolist() == [exact] * 3


def test_tables_that_a_graph_needs_made_anew_are_refused(device):
    owned = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = MultiRateSGD(owned, lr=1.0)
    with pytest.raises(RuntimeError, match="MultiRateSGD would need new tables while a CUDA graph is captured"):
        device.capture(optimizer.step)
    owned[0].grad = torch.zeros(3)
    optimizer.step()
    owned[1].grad = torch.zeros(3)
    with pytest.raises(RuntimeError, match="a first gradient came.*Take one step with the same parameters"):
        device.capture(optimizer.step)


@pytest.mark.works("CUDA graphs", "optimizers")
def test_a_graph_replays_with_the_gradients_that_were_there(device):
    owned = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = MultiRateSGD(owned, lr=1.0)
    for p in owned:
        p.grad = torch.ones(3)
    optimizer.step()
    owned[0].grad = None
    graph = device.capture(optimizer.step)
    device.replay(graph)
    assert [p[0].item() for p in owned] == [-1.0, -2.0]


def test_captures_without_a_step_between_them_are_counted(device):
    p = nn.Parameter(torch.zeros(3))
    optimizer = MultiRateSGD([p], lr=1.0)

    def moved():
        p.grad = torch.ones(3)
        optimizer.step()

    moved()
    kept = [device.capture(moved) for _ in range(device_tables.CAPTURES)]
    device.capture(optimizer.step)
    with pytest.raises(RuntimeError, match=f"more than {device_tables.CAPTURES} captured steps.*set_to_none=False"):
        device.capture(moved)
    optimizer.step()
    kept.append(device.capture(moved))
    device.replay(kept[-1])
    assert p.tolist() == [-3.0] * 3


def test_tables_of_a_capture_outlive_the_captures_after_it(device):
    """Gradients that move between captures with no step outside; graphs hold addresses, and nothing of Python's."""
    p = nn.Parameter(torch.zeros(3))
    optimizer = MultiRateSGD([p], lr=1.0)
    p.grad = torch.ones(3)
    optimizer.step()
    held = []
    for _ in range(4):
        device.capture(optimizer.step)
        launch = optimizer._plan.launches[0]
        held += [weakref.ref(launch.gradients), weakref.ref(launch.groups)]
        p.grad = torch.ones(3)
        del launch
    gc.collect()
    assert all(table() is not None for table in held)


@pytest.mark.parametrize("captured", [True, False])
def test_what_a_graph_uses_lives_as_long_as_the_optimizer(device, captured):
    owned = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizer = MultiRateSGD(owned, lr=1.0, momentum=0.9)
    for p in owned:
        p.grad = torch.zeros(3)
    optimizer.step()
    if captured:
        device.capture(optimizer.step)
    held = weakref.ref(optimizer._plan)
    owned[0].data = torch.zeros(3)
    optimizer.step()
    gc.collect()
    assert (held() is not None) == captured
    del optimizer
    gc.collect()
    assert held() is None
