"""How far training is, and the best validation so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Best", "Position"]

_ALIKE = 1e-3  # nats, or the unit of a regression loss: losses that differ by less say nothing about the model


@dataclass
class Position:
    """How far training is: all counts are of what is completed.

    Attributes:
        stage: number of the present stage, from 0.
        stage_epoch: epochs of this stage.
        epoch: epochs of all stages.
        step: steps of the present epoch, each an update from ``train.accumulate`` batches.
        seconds: of all epochs, validation included.
        train_seconds: of their steps alone.
        skipped: updates skipped in completed epochs.
        rows: trained on in completed epochs.
    """

    stage: int = 0
    stage_epoch: int = 0
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    skipped: int = 0
    rows: int = 0


@dataclass
class Best:
    """The best validation of a stage: by score, among equals by the fused output's validation loss.

    Where the losses are the same too, but for less than :data:`_ALIKE`, it is the latest of them: the score has nothing
    left to tell, and what it does not see (other losses, gates) has been trained longer.

    Attributes:
        epoch: in which it was, counted from 1 over all stages; 0 before any.
        score: larger is better.
        loss: the task's loss of the fused output on validation, as :func:`~pgm_fast.train.scores.measure.fused_loss`;
            the least of the epochs that are alike.
        since: validations since the first of those that are alike.
        step: of the epoch; 0 for its end.
    """

    epoch: int = 0
    score: float = -math.inf
    loss: float = math.inf
    since: int = 0
    step: int = 0

    def offer(self, epoch: int, score: float, loss: float, always: bool = False, step: int = 0) -> bool:
        """Whether this validation takes the place. A stage's first always does; with ``always`` all do, and none is
        counted in ``since``."""
        first = self.epoch == 0
        if always or first or score > self.score or (score == self.score and loss < self.loss - _ALIKE):
            self.epoch, self.score, self.loss, self.since, self.step = epoch, score, loss, 0, step
            return True
        self.since += 1
        if not (score == self.score and loss <= self.loss + _ALIKE):
            return False
        self.epoch, self.loss, self.step = epoch, min(loss, self.loss), step
        return True
