"""Puts the Triton that torch 2.11 brings to GPU machines into ``build/``, once, for the tests that compile with it.

    .venv/bin/python tools/pinned_triton.py    prints the folder, for the head of PYTHONPATH

A folder and no environment: Triton needs nothing else, and finds its own assembler beside itself.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "3.6.0"
BUILD = Path(__file__).resolve().parent.parent / "build"


class Unavailable(Exception):
    """It is not here and cannot be fetched; says why."""


def folder() -> Path:
    """Where it is, fetched (190 MB, 640 MB on disk) unless it is there. Processes that ask at once wait for one."""
    made = BUILD / f"triton-{VERSION}"
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / f"{made.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _fetch(made)
    return made


def _fetch(made: Path) -> None:
    partial = made.with_name(f"{made.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(partial), f"triton=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise Unavailable(f"triton {VERSION} could not be fetched: {said[-1]}")
    # under its own name only when it is whole
    partial.rename(made)


if __name__ == "__main__":
    try:
        print(folder())
    except Unavailable as error:
        sys.exit(f"error: {error}")
