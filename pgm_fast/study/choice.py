"""A group's way from its trials to the tests of what was chosen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from .cells import Data, Job, ProbeJob, TrainJob
from .plan import Group, Study

__all__ = ["Choice", "choose"]


def choose(validation: Mapping[int, Sequence[float]]) -> int:
    """The trial with the best mean; of equal ones the first.

    Args:
        validation: trial -> its validation scores, larger is better. Nothing else enters a choice.
    """
    return max(validation, key=lambda trial: (statistics.fmean(validation[trial]), -trial))


class Choice:
    """One group. It says which jobs can be worked on, and is told which have ended.

    Attributes:
        group: which.
        trial: what was chosen, None as long as nothing is.
        chosen: seed -> the cell of that trial.
        probes: seed -> the test of that cell's model under conditions, where the study has some.
    """

    def __init__(self, study: Study, group: Group, data: Data, folder: Path):
        self.group = group
        self._study, self._data, self._folder = study, data, folder
        self._conditions = study.test if data.rows["test"] and (study.test.missing or study.test.noise) else None
        self._searching = group.seeds[: study.search.seeds]
        count = len(study.trials(group))
        self._tried = {trial: {seed: self._job(seed, trial) for seed in self._searching} for trial in range(count)}
        self._open = {job.key for jobs in self._tried.values() for job in jobs.values()}
        self._failed: set[str] = set()
        self.trial: int | None = None
        self.chosen: dict[int, TrainJob] = {}
        self.probes: dict[int, ProbeJob] = {}

    @property
    def size(self) -> int:
        """How many jobs there will be if none fails."""
        later = len(self.group.seeds) - len(self._searching)
        tests = len(self.group.seeds) if self._conditions else 0
        return sum(map(len, self._tried.values())) + later + tests

    def begin(self) -> list[Job]:
        """The jobs that wait for nothing."""
        return [job for jobs in self._tried.values() for job in jobs.values()]

    def ended(self, job: Job, failed: bool) -> list[Job]:
        """What can be worked on now that ``job`` has ended."""
        if failed:
            self._failed.add(job.key)
        if isinstance(job, ProbeJob):
            return []
        if self.trial is not None:
            return [] if failed else self._probe(job)
        self._open.discard(job.key)
        return [] if self._open else self._choose()

    def _choose(self) -> list[Job]:
        whole = {
            trial: jobs
            for trial, jobs in self._tried.items()
            if not any(job.key in self._failed for job in jobs.values())
        }
        if not whole:
            return []
        self.trial = choose({trial: [job.validation_score() for job in jobs.values()] for trial, jobs in whole.items()})
        self.chosen = {seed: self._job(seed, self.trial) for seed in self.group.seeds}
        for trial, jobs in whole.items():
            for job in jobs.values():
                if trial != self.trial:
                    job.discard_model()
        later = [self.chosen[seed] for seed in self.group.seeds if seed not in self._searching]
        return later + [probe for seed in self._searching for probe in self._probe(self.chosen[seed])]

    def _probe(self, job: TrainJob) -> list[Job]:
        if self._conditions is None:
            return []
        self.probes[job.cell.seed] = ProbeJob(job, self._conditions)
        return [self.probes[job.cell.seed]]

    def _job(self, seed: int, trial: int) -> TrainJob:
        return TrainJob(
            self._study.cell(self.group, seed, trial), self._data, self._folder, keep=self._conditions is not None
        )
