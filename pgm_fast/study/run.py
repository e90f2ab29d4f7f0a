"""Working off a study: what is missing is trained, choices are made as soon as their trials are there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TrainingStopped
from ..train.features import load_features
from ..train.run.lock import RunLock
from .cells import Data, Job, TrainJob, content_of, describe_data, reading_of
from .choice import Choice
from .plan import Study
from .tables import write_tables
from .workers import Workers

__all__ = ["run_study"]

_WRITE_EVERY = 30.0  # seconds: the tables of a long study can be read while it runs


def run_study(
    study: Study, out: str | Path, *, workers: int = 2, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Train what is missing of a study and write ``study.json`` and ``study.md``.

    Args:
        study: from :func:`~pgm_fast.study.read_study`.
        out: its folder. Results are in ``cells/``, by a hash of all settings and the data: a cell that is there is not
            trained again, in whichever study it was asked for before.
        workers: processes, each of one thread. 0 writes the tables of what is there.
        progress: called with a line for every cell.

    Returns:
        The content of study.json. Cells that failed are in it by name, under ``failed``; a later call tries them again.

    Raises:
        ConfigError, DataError: a set cannot be read; nothing was trained. TrainingStopped: by Ctrl-C; what has been
            trained is kept, and the tables hold it.
    """
    if workers < 0:
        raise ConfigError(f"workers={workers} is not allowed; it takes a whole number of at least 0")
    folder = Path(out)
    lock = RunLock(folder, "study", "wait until it ends or stop it (the same command goes on), or give another --out")
    lock.acquire()
    try:
        return _Run(study, folder, progress or (lambda line: None)).work(workers)
    finally:
        with suppress(OSError):
            (folder / "models").rmdir()  # where no model waits for its test
        lock.release()


class _Run:
    def __init__(self, study: Study, folder: Path, say: Callable[[str], None]):
        self.study, self.folder, self.say = study, folder, say
        known: dict[str, Data] = {}
        self.choices = [Choice(study, group, self._data(group, known), folder) for group in study.groups()]
        self.total = sum(choice.size for choice in self.choices)
        self.done = 0
        self.queue: deque[Job] = deque()
        self.waiting: dict[str, list[Choice]] = {}
        self.failed: dict[str, tuple[Job, str]] = {}
        self.written = time.monotonic()

    def _data(self, group, known: dict[str, Data]) -> Data:
        config = self.study.cell(group, group.seeds[0], 0).config
        reading = reading_of(config)
        if reading not in known:
            known[reading] = describe_data(load_features(config))
        return known[reading]

    def work(self, count: int) -> dict[str, Any]:
        for choice in self.choices:
            self._submit(choice, choice.begin())
        if self.done:
            self.say(f"{self.done} of {self.total} cells are there already")
        if count:
            try:
                self._train(count)
            except KeyboardInterrupt:
                self._write()
                raise TrainingStopped(
                    f"stopped with {self.done} of {self.total} cells in {self.folder}; the same command goes on"
                ) from None
        return self._write()

    def _train(self, count: int) -> None:
        with Workers(count) as workers:
            while self.queue or workers.busy:
                while self.queue and workers.free:
                    workers.start(self.queue.popleft())
                for job, problem in workers.finished():
                    self._ended(job, problem)
                if time.monotonic() - self.written > _WRITE_EVERY:
                    self._write()

    def _submit(self, choice: Choice, jobs: list[Job]) -> None:
        """Hand on what is not there; what is there has ended, and more may follow from it."""
        for job in jobs:
            if job.key in self.waiting:
                self.waiting[job.key].append(choice)
            elif job.key in self.failed:
                self._submit(choice, choice.ended(job, failed=True))
            elif content_of(job) is not None:
                self.done += 1
                self._submit(choice, choice.ended(job, failed=False))
            else:
                self.waiting[job.key] = [choice]
                # A choice that is made is tested before new trials are begun: its model waits on the disk.
                self.queue.append(job) if isinstance(job, TrainJob) else self.queue.appendleft(job)

    def _ended(self, job: Job, problem: str | None) -> None:
        choices = self.waiting.pop(job.key)
        self.done += len(choices)
        if problem is not None:
            self.failed[job.key] = job, problem
        self.say(f"[{self.done}/{self.total}] {job}: {_outcome(job, problem)}")
        for choice in choices:
            self._submit(choice, choice.ended(job, failed=problem is not None))

    def _write(self) -> dict[str, Any]:
        self.written = time.monotonic()
        failed = [{"cell": str(job), "error": problem} for job, problem in self.failed.values()]
        return write_tables(self.folder, self.study, self.choices, failed, len(self.waiting))


def _outcome(job: Job, problem: str | None) -> str:
    if problem is not None:
        return f"failed: {problem}"
    return f"validation {job.validation_score():.4f}" if isinstance(job, TrainJob) else "done"
