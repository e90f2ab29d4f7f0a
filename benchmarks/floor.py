"""The floor of ops that are bound by memory: what the fastest stream takes to move their bytes.

The streams are measured beside the row, in the same interleaved run and at its footprint, so that they find as much of
it in cache as the op does. A copy alone is no floor on a CPU: a line that is written without being read is fetched
nevertheless, half as much again as is counted. Passes in place fetch what they count, and stores that bypass the cache
fetch nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import harness
import torch

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20}


@dataclass(frozen=True)
class Floor:
    """Milliseconds that no op which moves as many bytes can undercut.

    Attributes:
        stream: name of the stream that is this fast.
        fits: the smallest cache that holds the footprint, as the system names it; None where none does.
    """

    ms: float
    stream: str
    fits: str | None

    def of(self, timing: harness.Timing) -> dict[str, object]:
        """What a row says of its floor."""
        percent = round(100 * self.ms / timing.median, 1)
        return {"percent_of_floor": percent, "floor_ms": round(self.ms, 6), "stream": self.stream, "fits": self.fits}


def interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, moved: int, footprint: int
) -> tuple[dict[str, harness.Timing], Floor]:
    """Timings of ``calls``, and the floor of the ``moved`` bytes of a working set of ``footprint`` bytes."""
    forms = streams(device, footprint)
    timings = harness.interleaved({**calls, **{f"stream: {name}": run for name, (_, run) in forms.items()}}, device)
    needed = {name: moved / counted * timings[f"stream: {name}"].median for name, (counted, _) in forms.items()}
    fastest = min(needed, key=needed.get)
    floor = Floor(needed[fastest], fastest, cache_that_holds(footprint, device))
    return {name: timings[name] for name in calls}, floor


def streams(device: torch.device, footprint: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """name -> bytes that are read and written, and a pass over ``footprint`` bytes that does so."""
    count = max(2, footprint // 4 // 2 * 2)
    whole = torch.ones(count, device=device)
    x, y = whole.chunk(2)
    forms = {
        "copy": (4 * count, lambda: y.copy_(x)),
        "multiply in place": (8 * count, lambda: whole.mul_(1.0)),
        "add in place": (6 * count, lambda: x.add_(y, alpha=0.0)),
    }
    if device.type == "cpu":
        forms["streaming stores"] = (4 * count, _streaming_copy(x, y))
    return forms


def _streaming_copy(source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
    """A copy by the C library, which bypasses the cache where the size is past it; a share of it per thread."""
    threads = torch.get_num_threads()
    shares = [
        (b.data_ptr(), a.data_ptr(), 4 * a.numel())
        for a, b in zip(source.chunk(threads), target.chunk(threads), strict=True)
    ]
    if len(shares) == 1:
        return lambda: ctypes.memmove(*shares[0])
    pool = ThreadPoolExecutor(len(shares))
    return lambda: list(pool.map(lambda share: ctypes.memmove(*share), shares))


def cache_that_holds(footprint: int, device: torch.device) -> str | None:
    """Of a CPU. On a CUDA device the cache is cleared between calls: it holds nothing."""
    if device.type != "cpu":
        return None
    sizes = sorted((_bytes_of(index), f"L{_read(index, 'level')}") for index in CACHES.glob("index*"))
    return next((name for size, name in sizes if footprint <= size), None)


def _bytes_of(index: Path) -> int:
    """Of the threads that torch uses together, where each has one of its own; of instructions nothing."""
    if _read(index, "type") == "Instruction":
        return 0
    size = _read(index, "size")
    own = _read(index, "shared_cpu_list") == "0"
    return int(size[:-1]) * UNITS[size[-1]] * (torch.get_num_threads() if own else 1)


def _read(index: Path, name: str) -> str:
    return (index / name).read_text().strip()
