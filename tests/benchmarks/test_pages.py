"""The tables of README and docs are what the committed result files say."""

from __future__ import annotations

import subprocess
import sys


def test_tables_agree_with_the_result_files(repository):
    command = [sys.executable, str(repository / "benchmarks" / "pages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
