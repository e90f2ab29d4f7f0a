"""What is counted as a launch, and which results stand beside each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType


@pytest.fixture
def harness(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import harness

    return harness


def test_what_the_host_has_named_is_no_launch(harness):
    """As the profiler of a CUDA device tells a step: the optimizer's own range is drawn among its kernels."""
    told = [
        ("Optimizer.step#MultiRateAdamW.step", DeviceType.CPU, True),
        ("Optimizer.step#MultiRateAdamW.step", DeviceType.CUDA, True),
        ("cudaLaunchKernel", DeviceType.CPU, False),
        ("multi_rate_update", DeviceType.CUDA, False),
        ("Memset (Device)", DeviceType.CUDA, False),
    ]
    events = [SimpleNamespace(name=n, device_type=d, is_user_annotation=a) for n, d, a in told]
    work = harness.work_of_device(SimpleNamespace(events=lambda: events))
    assert [event.name for event in work] == ["multi_rate_update", "Memset (Device)"]


def test_rows_of_another_machine_do_not_stand_beside_new_ones(harness, monkeypatch, tmp_path):
    device = torch.device("cpu")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert harness.earlier("some", device) == []
    harness.write("some", device, [{"case": 1}], clock="wall")
    assert harness.earlier("some", device, clock="wall") == [{"case": 1}]
    for change in ("threads", "clock", "processor"):
        with monkeypatch.context() as other:
            if change == "threads":
                other.setattr(torch, "get_num_threads", lambda: 77)
            elif change == "processor":
                other.setattr(harness, "processor_name", lambda: "another")
            with pytest.raises(SystemExit, match="measure all cases here"):
                harness.earlier("some", device, clock="else" if change == "clock" else "wall")
