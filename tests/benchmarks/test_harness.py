"""What is counted as a launch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
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
