"""Help comes at once: it waits for no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pgm_fast import __version__

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


def test_the_version_comes_at_once_too():
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(words=["--version"])], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and done.stdout == f"pgm-fast {__version__}\n"
