"""A job that fails, or takes its process with it, is named and the others are worked off."""

from __future__ import annotations

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
