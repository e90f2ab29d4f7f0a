"""A job that fails, or takes its process with it, is named and the others are worked off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from worker_jobs import Die, Fail, Write

from pgm_fast.study.workers import Workers


def test_a_process_that_dies_takes_no_other_job_with_it(tmp_path):
    jobs = [Die(3), Fail("a line\nand another"), *(Write(tmp_path / str(number)) for number in range(3))]
    waiting, problems = list(jobs), {}
    with Workers(2) as workers:
        while waiting or workers.busy:
            while waiting and workers.free:
                workers.start(waiting.pop(0))
            problems.update(workers.finished())
        assert workers.free == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert "status 3" in problems[jobs[0]] and "memory" in problems[jobs[0]]
    assert problems[jobs[1]].startswith("ValueError: a line and another")
    assert [problems[job] for job in jobs[2:]] == [None] * 3


PARENT = """
from pathlib import Path
from worker_jobs import Wait
from pgm_fast.study.workers import Workers
if __name__ == "__main__":
    with Workers(1) as workers:
        workers.start(Wait(Path("worker")))
        workers.finished()
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a process that is gone is told by /proc")
def test_no_process_outlives_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, env=os.environ | paths)
    try:
        while not (tmp_path / "worker").exists():
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    worker = Path("/proc", (tmp_path / "worker").read_text(), "stat")
    for _ in range(1200):
        if ended(worker):
            return
        time.sleep(0.05)
    raise AssertionError("the worker is still there")


def ended(status: Path) -> bool:
    """Whether a process is gone, or a zombie that nobody has asked for."""
    with suppress(OSError):
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    return True
