"""Triton kernels on CPU tensors, under Triton's interpreter.

The interpreter must be on before triton is imported and replaces the compiler for the whole process: these tests run in
a pytest of their own. To run one file by hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/test_x.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed (Linux only): pip install triton")

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_passes_under_the_interpreter(path: Path, repository: Path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PGM_FAST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)],
        env=environment | {"TRITON_INTERPRET": "1"},
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
