"""The calls of benchmarks/gpu_suite.sh: each ends in time, and a red part stops no other. Python is a stand-in."""

from __future__ import annotations

import json
import subprocess

import pytest

CALLS = [["tests"], ["sanitize"], ["bench", "ops"], ["bench", "steps"]]
SECONDS = 540  # of a call on a machine that is lent
# says that there is a CUDA device; tests fail, all else does its work
STAND_IN = """#!/bin/sh
case "$*" in
  *is_available*) echo 9.0 ;;
  *"-m pytest"*) echo "FAILED a test"; exit 1 ;;
  *doctor*) echo "{}" ;;
esac
"""


@pytest.fixture
def suite(repository, tmp_path):
    python = tmp_path / "python"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)

    def run(*arguments: str):
        done = subprocess.run(
            ["bash", str(repository / "benchmarks" / "gpu_suite.sh"), *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(tmp_path), "SUITE_WORK": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        summary = tmp_path / "-".join(arguments[:-1] if arguments[-1] == "--dry-run" else arguments) / "summary.json"
        return done, json.loads(summary.read_text()) if summary.exists() else None

    return run


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_a_dry_run_says_what_would_run_within_the_time_of_a_call(suite, call):
    done, summary = suite(*call, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert summary["call"] == "-".join(call) and len(summary["parts"]) >= 3
    assert {part["status"] for part in summary["parts"]} == {"planned"}
    assert sum(part["limit"] for part in summary["parts"]) <= SECONDS


def test_every_benchmark_that_measures_devices_is_in_one_call(suite, repository):
    scripts = repository.glob("benchmarks/bench_*.py")
    there = sorted(path.stem for path in scripts if "--device" in path.read_text(encoding="utf-8"))
    planned = [suite("bench", kind, "--dry-run")[1]["parts"][1:] for kind in ("ops", "steps")]
    assert sorted(part["part"] for parts in planned for part in parts) == there


def test_a_red_part_is_recorded_and_the_rest_goes_on(suite):
    done, summary = suite("tests")
    status = {part["part"]: part["status"] for part in summary["parts"]}
    assert done.returncode == 1
    assert status["build"] == status["doctor"] == "0" and status["tests"] == "1"
    assert "FAILED a test" in done.stdout and len(done.stdout.splitlines()) <= 24
    done, summary = suite("bench", "steps")
    assert done.returncode == 0, done.stdout
    assert {part["status"] for part in summary["parts"]} == {"0"}


@pytest.mark.parametrize("wrong", [[], ["bench"], ["everything"], ["ops"], ["tests", "a", "b"]], ids=str)
def test_what_is_no_call_is_told_the_calls(suite, wrong):
    done, _ = suite(*wrong, "--dry-run")
    assert done.returncode == 2 and "tests|sanitize|bench ops|bench steps" in done.stderr
