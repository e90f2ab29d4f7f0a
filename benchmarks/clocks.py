"""How one call is timed: by the host's clock, by the time that its process gets, or by events of a CUDA stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["CudaClock", "HostClock", "ProcessorClock", "Sample"]

L2_SIZES = 3  # read between two calls, so that replacement that is not strictly by age leaves nothing of the operands
ASSUMED_L2 = 64 * 2**20  # where the driver does not say


@dataclass(frozen=True)
class Sample:
    """One call in milliseconds: until its work is done, and on a device also until it returns to the host."""

    wall: float
    host: float | None = None


class HostClock:
    """For work that is done when the call returns."""

    round_seconds = 0.2  # so long per round that a timer tick or a short pause does not decide
    most_calls = 2000

    def time(self, run: Callable[[], object], calls: int) -> list[Sample]:
        samples = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            run()
            samples.append(Sample((time.perf_counter_ns() - start) / 1e6))
        return samples


class ProcessorClock(HostClock):
    """Time that the process takes of the processor, all threads together: what other work of a shared machine takes is
    not in it. For one thread, since threads that wait for each other take time too."""

    def time(self, run: Callable[[], object], calls: int) -> list[Sample]:
        samples = []
        for _ in range(calls):
            start = time.process_time_ns()
            run()
            samples.append(Sample((time.process_time_ns() - start) / 1e6))
        return samples


class CudaClock:
    """For work on a CUDA device: the time between two events around the call, which starts with a cold L2 cache.

    The host runs ahead while the cache is cleared, so that a call whose launches take less than that is timed on the
    device alone; a call of many launches shows the gaps that its host leaves.
    """

    round_seconds = 0.02
    most_calls = 200  # each also clears the cache

    def __init__(self, device: torch.device):
        self.device = device
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or ASSUMED_L2
        self.others = torch.ones(L2_SIZES * size // 4, dtype=torch.int32, device=device)

    def time(self, run: Callable[[], object], calls: int) -> list[Sample]:
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(calls)] for _ in range(2))
        on_host = []
        torch.cuda.synchronize(self.device)
        for start, end in zip(starts, ends, strict=True):
            self.others.amax()
            start.record()
            before = time.perf_counter_ns()
            run()
            on_host.append((time.perf_counter_ns() - before) / 1e6)
            end.record()
        torch.cuda.synchronize(self.device)
        return [Sample(start.elapsed_time(end), host) for start, end, host in zip(starts, ends, on_host, strict=True)]
