"""What a CUDA device is and does while it is measured, by NVIDIA's management library where that is installed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["describe", "watched"]


def describe(device: torch.device) -> dict[str, object]:
    """Name, memory, multiprocessors; with nvidia-ml-py also driver, largest clocks in MHz and power limit in W."""
    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, object] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
    }
    with _management(device) as found:
        if found is not None:
            nvml, handle = found
            for name, read in {
                "driver": nvml.nvmlSystemGetDriverVersion,
                "sm_mhz_max": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
                "memory_mhz_max": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
                "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            }.items():
                try:
                    facts[name] = read()
                except nvml.NVMLError:
                    facts[name] = None
    return facts


@contextmanager
def watched(device: torch.device, calls: int) -> Iterator[dict[str, float]]:
    """Fills the dict it gives, at its end, with ``watts``, ``joules`` per call and ``sm_mhz``; leaves it empty on the
    CPU and where the device does not tell."""
    state: dict[str, float] = {}
    with _management(device) as found:
        if found is None:
            yield state
            return
        nvml, handle = found
        try:
            before, start = nvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter()
            yield state
            joules = (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3
            state["watts"] = joules / (time.perf_counter() - start)
            state["joules"] = joules / calls
            state["sm_mhz"] = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
        except nvml.NVMLError:
            state.clear()


@contextmanager
def _management(device: torch.device) -> Iterator[tuple | None]:
    """``(pynvml, handle of the device)``, None where that cannot be had."""
    if device.type != "cuda":
        yield None
        return
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, a driver without it: each has an error of its own
        yield None
        return
    try:
        handle = _handle(pynvml, device)
        yield None if handle is None else (pynvml, handle)
    finally:
        pynvml.nvmlShutdown()


def _handle(pynvml, device: torch.device):
    """By UUID: the library counts devices that CUDA_VISIBLE_DEVICES hides."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except (AttributeError, pynvml.NVMLError):
        return None
