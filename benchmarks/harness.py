"""How every benchmark here measures: interleaved in one run, medians, counts of ops and host reads, peak memory.

On a CUDA device a call is timed by events on its stream, from a cold L2 cache: between calls a buffer of three times
its size is read, which leaves nothing of the operands there and nothing to write back.
"""

from __future__ import annotations

import json
import os
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch
from clocks import CudaClock, HostClock, Sample
from device_state import describe, watched
from torch.autograd import DeviceType

from pgm_fast import backends
from pgm_fast.env import git_commit, processor_name, versions
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import read_json

RESULTS = Path(os.environ.get("PGM_FAST_RESULTS", Path(__file__).resolve().parent / "results"))
WARM_UP = 3  # calls before a capture
ROUNDS = 7  # of all variants in turn; medians are over these times the calls of a round

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

_backend: str | None = None  # what on_backend has chosen last


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and the 20th and 80th percentile.

    Attributes:
        host: median milliseconds until the call returns to the host; None on the CPU, where that is the whole.
        state: what the device's management library says of the calls, with the reading of the buffer between them:
            ``watts`` and ``joules`` per call, ``sm_mhz`` at their end; empty where there is none.
    """

    median: float
    p20: float
    p80: float
    calls: int
    host: float | None = None
    state: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Counts:
    """What one call asks of the host and of memory.

    Attributes:
        ops: innermost calls of torch's and this project's ops that do work: a kernel launch each, at least.
        host_reads: calls that read a value of a tensor or take a shape from one, which on an accelerator wait for it.
            Those inside torch's fused optimizers and this project's compiled kernels are left out: on the CPU they read
            their step counters and the gradient of a loss, on a device they do not.
        peak_bytes: most memory that the call holds above what was allocated before it.
        launches: kernels, copies and fills that the device ran; None on the CPU.
    """

    ops: int
    host_reads: int
    peak_bytes: int
    launches: int | None = None


def interleaved(
    variants: Mapping[str, Callable[[], object]], device: torch.device, clock: HostClock | None = None
) -> dict[str, Timing]:
    """Time all variants in one run, in an order drawn anew each round, so that the machine's drift meets all alike."""
    clock = clock or (CudaClock(device) if device.type == "cuda" else HostClock())
    calls = {name: _calibrated(run, clock) for name, run in variants.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    states: dict[str, list[Mapping[str, float]]] = {name: [] for name in variants}
    order, draw = list(variants), random.Random(0)
    for _ in range(ROUNDS):
        draw.shuffle(order)
        for name in order:
            with watched(device, calls[name]) as state:
                samples[name] += clock.time(variants[name], calls[name])
            states[name].append(state)
    return {name: _timing(samples[name], states[name]) for name in variants}


def count(run: Callable[[], object], device: torch.device, clear: Callable[[], object] = lambda: None) -> Counts:
    """Ops, host reads and peak memory of one warm call.

    ``clear`` is called before the memory of a call is measured: it frees what the call before has left (gradients, say)
    and this one would replace, so that the peak holds it.
    """
    run()
    with _profile(device) as profile:
        run()
        _synchronize(device)
    on_host = [event for event in profile.events() if event.device_type == DeviceType.CPU]
    launches = len(work_of_device(profile)) if device.type == "cuda" else None
    ops = sum(_working_calls(event) for event in on_host if event.cpu_parent is None)
    host_reads = sum(event.name in HOST_READS and not _inside_compiled(event, device) for event in on_host)
    clear()
    return Counts(ops, host_reads, _peak_bytes(run, device), launches)


def work_of_device(profile: torch.profiler.profile) -> list:
    """Kernels, copies and fills of a CUDA device. The profiler also draws there what the host has named, as
    ``Optimizer.step#...``."""
    return [
        event for event in profile.events() if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]


def on_backend(backend: str | None, run: Callable[[], object]) -> Callable[[], object]:
    """``run`` with the ops' backend chosen, for the process and as long as no other variant runs, as a user does it."""

    def call():
        global _backend
        if backend != _backend:
            backends.set_backend(backend)
            _backend = backend
        return run()

    return call


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``run`` as a CUDA graph: the function that replays it.

    A call that waits for the device, or asks it for a value, cannot be captured and raises here. What ``run`` draws
    from torch's generator of the device, every replay draws anew. It is run first, on a stream apart, until what it
    sets up once (compiled kernels, momentum) is there.
    """
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def earlier(name: str, device: torch.device, **facts) -> list[dict]:
    """Rows of a result file that new ones are to join: none where there is no such file.

    Raises:
        SystemExit: they were measured on another processor or device, by another number of threads, or with other
            ``facts`` than :func:`write` is to be given.
    """
    where = RESULTS / _device_name(device) / f"{name}.json"
    if not where.exists():
        return []
    content = read_json(where)
    here = {"device": _device_description(device)["name"], "threads": torch.get_num_threads(), **facts}
    then = {key: content["device"]["name"] if key == "device" else content[key] for key in here}
    if then != here:
        raise SystemExit(f"{where} holds rows of {then}, this is {here}: move it away and measure all cases here")
    return content["rows"]


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
    ms = {key: round(value, 6) for key, value in asdict(timing).items() if isinstance(value, (int, float))}
    counted = {key: value for key, value in asdict(counts).items() if value is not None} if counts else {}
    return {**what, "ms": ms, **timing.state, **counted}


def _profile(device: torch.device) -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, profile_memory=True)


def _working_calls(event) -> int:
    inner = sum(_working_calls(child) for child in event.cpu_children)
    own = event.name.startswith(("aten::", "pgm_fast::")) and event.name not in NO_WORK
    return inner or int(own)


def _inside_compiled(event, device: torch.device) -> bool:
    while event is not None:
        name = event.name.removeprefix("pgm_fast::")
        ours = name != event.name and backends.chosen(name, device.type) == "native"
        if ours or name.startswith("aten::_fused_"):
            return True
        event = event.cpu_parent
    return False


def _calibrated(run: Callable[[], object], clock: HostClock | CudaClock) -> int:
    for _ in range(3):
        run()
    once = statistics.median(sample.wall for sample in clock.time(run, 3)) / 1e3
    return max(2, min(clock.most_calls, round(clock.round_seconds / max(once, 1e-7))))


def _timing(samples: list[Sample], states: list[Mapping[str, float]]) -> Timing:
    times = [sample.wall for sample in samples]
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    on_host = [sample.host for sample in samples if sample.host is not None]
    told = set.intersection(*(set(state) for state in states))
    state = {key: round(statistics.median(state[key] for state in states), 4) for key in sorted(told)}
    return Timing(
        statistics.median(times), p20, p80, len(times), statistics.median(on_host) if on_host else None, state
    )


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
    with _profile(device) as profile:
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


def _device_description(device: torch.device) -> dict[str, object]:
    if device.type == "cuda":
        return describe(device)
    return {"name": processor_name(), "cores": os.cpu_count() or 1}
