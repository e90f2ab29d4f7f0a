"""The tables of README and docs are what the committed result files say."""

from __future__ import annotations

import subprocess
import sys

from pgm_fast.study.page import as_markdown
from pgm_fast.train.run.json_files import read_json


def test_tables_agree_with_the_result_files(repository):
    command = [sys.executable, str(repository / "benchmarks" / "pages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_study_pages_are_made_from_their_results(repository):
    results = sorted(repository.glob("benchmarks/results/studies/*/study.json"))
    assert results
    for path in results:
        assert path.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(read_json(path)), path
        assert (repository / "benchmarks" / "studies" / f"{path.parent.name}.yaml").exists()
