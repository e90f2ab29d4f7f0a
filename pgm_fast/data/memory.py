"""How much memory is free, on the host (limits of a container included) or on a CUDA device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["free_bytes"]

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that could still be used on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_host(), _cgroup())


def _host() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 2 << 30  # a system that says nothing: assume a small one


def _cgroup() -> int:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        # File cache counts as used until something needs the room.
        cache = next(
            (
                int(line.split()[1])
                for line in (CGROUP / "memory.stat").read_text().splitlines()
                if line.startswith("inactive_file ")
            ),
            0,
        )
        return max(0, int(limit) - used + cache)
    except (OSError, ValueError):  # no limit ("max"), or no such file
        return 1 << 62
