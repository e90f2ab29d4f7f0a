"""Help comes at once: it waits for no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pgm_fast.cli import main
sys.argv = ["pgm-fast", *{words!r}]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("words", [["--help"], ["check-data", "--help"], ["predict", "--help"], ["trian"]])
def test_help_and_mistyped_commands_load_no_torch(words):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(words=words)], capture_output=True, text=True)
    assert "AssertionError" not in done.stderr, done.stderr
    assert "usage" in (done.stdout + done.stderr).lower()
