"""``bench``: the benchmarks of the repository, one after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .terminal import say

__all__ = ["BENCHMARKS", "run_benchmarks"]

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PREFIX = "bench_"
PLOTS = "plots.py"


def run_benchmarks(names: Sequence[str], device: str | None, folder: Path = BENCHMARKS) -> int:
    """Runs the named benchmarks of ``folder``, all of them if none is named, each in a process of its own.

    Each checks its variants first, prints its rows and writes ``results/<device>/<name>.json``. Then the plots of all
    results are drawn.

    Returns:
        How many failed, the plots counted as one.

    Raises:
        ConfigError: this installation comes without them, or a name is not one of them.
    """
    scripts = {path.stem.removeprefix(PREFIX): path for path in sorted(folder.glob(f"{PREFIX}*.py"))}
    if not scripts:
        raise ConfigError(
            f"no benchmarks in {folder}: they come with the sources, not with the installed package; clone the "
            "repository and run make bench there"
        )
    unknown = [name for name in names if name not in scripts]
    if unknown:
        raise ConfigError(f"unknown benchmark {unknown[0]!r}; the benchmarks are {', '.join(scripts)}")
    failed = []
    for name in names or scripts:
        command = [sys.executable, str(scripts[name]), *(["--device", device] if device else [])]
        if device and "--device" not in scripts[name].read_text(encoding="utf-8"):
            say(f"{name}: measures the CPU only, left out")
            continue
        say(f"{name}: {' '.join(command)}")
        if subprocess.run(command).returncode != 0:
            failed.append(name)
    plots = folder / PLOTS
    if plots.exists() and subprocess.run([sys.executable, str(plots)]).returncode != 0:
        failed.append("plots")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return len(failed)
