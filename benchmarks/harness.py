"""How every benchmark here measures: interleaved in one run, medians, counts of ops and host reads, peak memory."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from pgm_fast import backends
from pgm_fast.env import git_commit, versions
from pgm_fast.train.files import atomic_write

_backend: str | None = None  # what on_backend has chosen last

RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS = 7  # of all variants in turn; medians are over these times the calls of a round
ROUND_SECONDS = 0.2  # at least this long per variant and round, so that a timer tick or a short pause does not decide

# What makes the host wait for a device, or would on one: reading a value, and shapes that depend on values.
HOST_READS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::_unique2",
}
# Calls that only describe or reserve memory, unless one inside them does work (a reshape that copies).
NO_WORK = {
    f"aten::{name}"
    for name in (
        "_reshape_alias alias as_strided chunk detach diagonal empty empty_like empty_strided expand expand_as flatten "
        "lift_fresh narrow new_empty permute reshape resize_ resolve_conj resolve_neg select set_ slice split squeeze "
        "t to transpose unbind unsqueeze view view_as"
    ).split()
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float
    calls: int


@dataclass(frozen=True)
class Counts:
    """What one call asks of the host and of memory.

    Attributes:
        ops: innermost calls of torch's and this project's ops that do work: a kernel launch each, at least.
        host_reads: calls that read a value of a tensor or take a shape from one, which on an accelerator wait for it.
            Those inside torch's fused optimizers are left out: on the CPU they read their step counters, on a device
            they do not.
        peak_bytes: most memory that the call holds above what was allocated before it.
    """

    ops: int
    host_reads: int
    peak_bytes: int


def interleaved(variants: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, Timing]:
    """Time all variants in one run, in an order drawn anew each round, so that the machine's drift meets all alike."""
    calls = {name: _calibrated(run, device) for name, run in variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    order, draw = list(variants), random.Random(0)
    for _ in range(ROUNDS):
        draw.shuffle(order)
        for name in order:
            samples[name] += _time(variants[name], calls[name], device)
    return {name: _timing(times) for name, times in samples.items()}


def count(run: Callable[[], object], device: torch.device, clear: Callable[[], object] = lambda: None) -> Counts:
    """Ops, host reads and peak memory of one warm call.

    ``clear`` is called before the memory of a call is measured: it frees what the call before has left (gradients, say)
    and this one would replace, so that the peak holds it.
    """
    run()
    with _profile() as profile:
        run()
    events = profile.events()
    ops = sum(_working_calls(event) for event in events if event.cpu_parent is None)
    host_reads = sum(event.name in HOST_READS and not _inside_fused_optimizer(event) for event in events)
    clear()
    return Counts(ops, host_reads, _peak_bytes(run, device))


def on_backend(backend: str | None, run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with the ops' backend chosen, for the process and as long as no other variant runs, as a user does it."""

    def call():
        global _backend
        if backend != _backend:
            backends.set_backend(backend)
            _backend = backend
        return run()

    return call


def write(name: str, device: torch.device, rows: list[dict], **facts) -> Path:
    """Rows, the circumstances they were measured under and further ``facts``, to ``results/<device>/<name>.json``."""
    where = RESULTS / _device_name(device) / f"{name}.json"
    where.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "date": date.today().isoformat(),
        "device": _device_description(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": git_commit(Path(__file__).parent),
        "rounds": ROUNDS,
        **facts,
        "rows": rows,
    }
    with atomic_write(where, "w") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")
    return where


def as_row(timing: Timing, counts: Counts | None = None, **what) -> dict:
    """One row of a result file: what was measured, milliseconds, counts."""
    return {
        **what,
        "ms": {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(timing).items()},
        **(asdict(counts) if counts else {}),
    }


def _profile() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)


def _working_calls(event) -> int:
    inner = sum(_working_calls(child) for child in event.cpu_children)
    own = event.name.startswith(("aten::", "pgm_fast::")) and event.name not in NO_WORK
    return inner or int(own)


def _inside_fused_optimizer(event) -> bool:
    while event is not None:
        if event.name.startswith("aten::_fused_"):
            return True
        event = event.cpu_parent
    return False


def _calibrated(run: Callable[[], object], device: torch.device) -> int:
    for _ in range(3):
        run()
    once = statistics.median(_time(run, 3, device)) / 1e3
    return max(1, min(2000, round(ROUND_SECONDS / max(once, 1e-7))))


def _time(run: Callable[[], object], calls: int, device: torch.device) -> list[float]:
    times = []
    for _ in range(calls):
        _synchronize(device)
        start = time.perf_counter_ns()
        run()
        _synchronize(device)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _timing(times: list[float]) -> Timing:
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    return Timing(statistics.median(times), p20, p80, len(times))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _profile() as profile:
        run()
    # the averaged events() fold allocations into the op that made them; the raw list keeps every change in time
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).lower().replace(" ", "-")
    return "cpu"


def _device_description(device: torch.device) -> dict[str, str | int]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
    return {"name": _cpu_name(), "cores": os.cpu_count() or 1}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
