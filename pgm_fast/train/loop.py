"""The training loop: stages, epochs, steps, validation, and a state that can be left and taken up again at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Loader
from ..errors import TrainingStopped
from ..methods.base import Method, Stage
from ..optim.groups import NO_DECAY, without_decay
from . import checkpoints
from .config import Config
from .distributed import Ranks
from .evaluation import collect, fused_loss, held_out, measure
from .folder import RunFolder
from .guard import DelayedReading, UpdateGuard
from .losses import LossTable
from .metrics import score
from .observers import Observers
from .optimizers import Schedule, build_optimizer
from .predictions import Predictions
from .reports import append_line, json_line, mean_shares
from .signals import StopRequest

__all__ = ["Best", "Position", "StoppedBySignal", "Training"]

_ALIKE = 1e-3  # nats, or the unit of a regression loss: losses that differ by less say nothing about the model
_READ_EVERY = 8  # steps between looks at the guard's counts on an accelerator


class StoppedBySignal(Exception):
    """Training was asked to stop and did, with last.pt written. ``args[0]`` says by what and where."""


@dataclass
class Position:
    """How far training is: all counts are of what is completed.

    Attributes:
        stage: number of the present stage, from 0.
        stage_epoch: epochs of this stage.
        epoch: epochs of all stages.
        step: steps of the present epoch.
        seconds: of all epochs, validation included.
        train_seconds: of their steps alone.
        skipped: updates skipped in completed epochs.
    """

    stage: int = 0
    stage_epoch: int = 0
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    skipped: int = 0


@dataclass
class Best:
    """The best epoch of a stage: by validation score, among equals by the fused output's validation loss.

    Where the losses are the same too, but for less than :data:`_ALIKE`, it is the latest of them: the score has nothing
    left to tell, and what it does not see (other losses, gates) has been trained longer.

    Attributes:
        epoch: counted from 1 over all stages; 0 before any.
        score: larger is better.
        loss: the task's loss of the fused output on validation, as :func:`~pgm_fast.train.evaluation.fused_loss`; the
            least of the epochs that are alike.
        since: epochs since the first of those that are alike.
    """

    epoch: int = 0
    score: float = -math.inf
    loss: float = math.inf
    since: int = 0

    def offer(self, epoch: int, score: float, loss: float, always: bool = False) -> bool:
        """Whether this epoch takes the place. A stage's first epoch always does; with ``always`` all do, and none is
        counted in ``since``."""
        first = self.epoch == 0
        if always or first or score > self.score or (score == self.score and loss < self.loss - _ALIKE):
            self.epoch, self.score, self.loss, self.since = epoch, score, loss, 0
            return True
        self.since += 1
        if not (score == self.score and loss <= self.loss + _ALIKE):
            return False
        self.epoch, self.loss = epoch, min(loss, self.loss)
        return True


class Training:
    """Trains a method, stage by stage, and leaves ``metrics.jsonl`` and checkpoints in the run folder.

    Args:
        config: of the run.
        method: on the device of ``ranks``.
        train: shuffled loader of the training split.
        valid: loader of the validation split.
        train_in_order: makes a loader of the whole training split, on every rank, for methods that measure it between
            epochs.
        ranks: the processes that train together.
        folder: where rank 0 writes.
        identity: what every checkpoint carries besides the state: configuration, data specification, ...
        observers: told of every epoch on rank 0.
        stop: looked at after every step.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        train: Loader,
        valid: Loader,
        train_in_order: Callable[[], Loader],
        ranks: Ranks,
        folder: RunFolder,
        identity: Mapping[str, Any],
        observers: Observers,
        stop: StopRequest,
    ):
        self.config = config
        self.method = method
        self.train = train
        self.valid = valid
        self.train_in_order = train_in_order
        self.ranks = ranks
        self.folder = folder
        self.identity = dict(identity)
        self.observers = observers
        self.stop = stop
        self.stages: list[Stage] = method.stages(config.train.lr)
        self.position = Position()
        self.best = Best()
        self.records = ""  # the lines of metrics.jsonl, on rank 0

    def run(self, state: Mapping[str, Any] | None = None) -> None:
        """Train to the end; afterwards the method holds the best epoch of the last stage.

        Args:
            state: content of last.pt to go on from; None to start.

        Raises:
            StoppedBySignal: asked to stop; last.pt is written.
            TrainingStopped: too many updates in a row were not finite; last.pt is written.
            CheckpointError: the disk refused.
        """
        try:
            if state is None:
                self._begin_stage()
                self._save_last()
            else:
                with checkpoints.reading("values"):
                    self._restore(state)
            self._run_stages()
        finally:
            self.wrapped = None  # it must not outlive the process group, see distributed.connect

    def _run_stages(self) -> None:
        while True:
            while not self._stage_is_over():
                self._train_epoch()
                self._end_epoch()
            best = self.ranks.on_main(lambda: checkpoints.load_run(self.folder.best))
            with checkpoints.reading("weights"):
                self.method.load_state_dict(best["model"])
            if self.position.stage + 1 == len(self.stages):
                return
            self.position.stage += 1
            self.position.stage_epoch = 0
            self.best = Best()
            self._begin_stage()
            self._save_last()

    @property
    def stage(self) -> Stage:
        """The present one."""
        return self.stages[self.position.stage]

    @property
    def stage_epochs(self) -> int:
        """Most epochs that the present stage may take."""
        return self.stage.epochs or self.config.train.epochs

    def _stage_is_over(self) -> bool:
        patience = self.config.train.patience if self.stage.patience is None else self.stage.patience
        return self.position.stage_epoch >= self.stage_epochs or bool(patience and self.best.since >= patience)

    def _begin_stage(self) -> None:
        settings = self.config.train
        trained = {id(p) for group in self.stage.groups for p in group["params"]}
        for parameter in self.method.parameters():
            parameter.requires_grad_(id(parameter) in trained)
            parameter.grad = None
        self.method.begin_stage(self.position.stage)
        steps = len(self.train)
        name = self.stage.optimizer or settings.optimizer
        decay = settings.weight_decay if self.stage.weight_decay is None else self.stage.weight_decay
        groups = without_decay(self.stage.groups) if settings.no_decay else self.stage.groups
        self.optimizer = build_optimizer(name, groups, decay)
        warmup = round(settings.warmup_epochs * steps)
        schedule, options = self.stage.schedule or settings.schedule, self.stage.schedule_options
        self.schedule = Schedule(schedule, self.optimizer, self.stage_epochs * steps, warmup, options)
        self.guard = UpdateGuard(self.optimizer, settings.clip_norm, self.ranks, self.method)
        unused = bool(self.identity.get("encoders")) or self.method.turns > 1
        self.wrapped = self.ranks.wrap(self.method, unused=unused)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.losses = LossTable(len(self.train), self.ranks.device)
        self.guard.counts[0] = 0.0
        self.epoch_seconds = 0.0
        self.read = DelayedReading(self.ranks.device)

    def _train_epoch(self) -> None:
        self.method.eval()
        with torch.no_grad():
            self.method.begin_epoch(
                self.position.stage, self.position.stage_epoch, lambda: self.train_in_order().batches(0)
            )
        self.method.train()
        device, settings = self.ranks.device, self.config.train
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
        self._clock = time.perf_counter()
        for batch in self.train.batches(self.position.epoch, start=self.position.step):
            losses: dict[str, Tensor] = {}
            for turn in range(self.method.turns):
                self.method.begin_turn(turn)
                self.optimizer.zero_grad(set_to_none=True)
                self.guard.begin()
                with autocast:
                    terms = self.wrapped(batch).losses
                self.method.backward(terms["total"])
                self.method.after_backward(self._seed_of_update(turn))
                self.guard.update(terms["total"], stop=self.stop.signal is not None)
                for name, term in terms.items():
                    losses[name] = losses[name] + term.detach() if name in losses else term.detach()
            self.schedule.step()
            self.losses.add(self.position.step, losses, batch)
            self.position.step += 1
            self._after_step()

    def _seed_of_update(self, turn: int) -> int:
        steps = self.position.epoch * len(self.train) + self.position.step
        # of a large seed the low bits: torch's generators take 64
        return (self.config.train.seed % (1 << 23) << 40) + steps * self.method.turns + turn

    def _after_step(self) -> None:
        step, settings = self.position.step, self.config.train
        asked = self.stop.signal is not None and self.ranks.world == 1
        if self.ranks.device.type == "cpu" or step % _READ_EVERY == 0:
            counts = self.read(self.guard.counts)
            if counts is not None:
                self._stop_if_not_finite(counts)
                asked = asked or counts[3] > 0
        if asked:
            self._save_last()
            self._stop(f"epoch {self.position.epoch + 1}, step {step}")
        if settings.checkpoint_every_steps and step % settings.checkpoint_every_steps == 0:
            self._save_last()

    def _stop(self, where: str) -> None:
        raise StoppedBySignal(f"stopped by {self.stop.signal or 'a signal to another process'} after {where}")

    def _stop_if_not_finite(self, counts: list[float]) -> None:
        limit = self.config.train.nonfinite_limit
        if counts[2] <= limit:
            return
        self._save_last()
        raise TrainingStopped(
            f"{counts[2]:.0f} updates in a row up to epoch {self.position.epoch + 1}, step "
            f"{self.position.step} of stage "
            f"{self.stage.name} were skipped, since the loss or its gradient was not finite "
            f"(train.nonfinite_limit={limit}); "
            f"try a lower train.lr than {self.config.train.lr:g}, train.precision=fp32, or "
            "look for extreme features with "
            f"pgm-fast check-data. {self.folder.last} is written"
        )

    def _end_epoch(self) -> None:
        counts = self.guard.counts.tolist()
        self._stop_if_not_finite(counts)
        losses = self.losses.means(self.ranks)
        now = time.perf_counter()
        train_seconds = self.epoch_seconds + now - self._clock
        self.ranks.share_buffers(self.method)
        result = self._validate()
        rates = {group["name"].removesuffix(NO_DECAY): group["lr"] for group in self.optimizer.param_groups}
        self.schedule.epoch(result["score"], result["fused_loss"])
        seconds = train_seconds + time.perf_counter() - now
        record = {
            "stage": self.stage.name,
            "epoch": self.position.epoch + 1,
            "train": losses,
            "valid": result["valid"],
            "shares": result["shares"],
            "lr": rates,
            "samples_per_s": self.train.num_rows / train_seconds,
            "skipped_steps": int(counts[0]),
            "seconds": seconds,
        }
        self.position.epoch += 1
        self.position.stage_epoch += 1
        self.position.step = 0
        self.position.seconds += seconds
        self.position.train_seconds += train_seconds
        self.position.skipped += int(counts[0])
        last = (self.stage.keep or self.config.train.keep) == "last"
        better = self.best.offer(self.position.epoch, result["score"], result["fused_loss"], always=last)
        self._begin_epoch()
        self.ranks.on_main(lambda: self._write_epoch(record, better))
        # Last of all: what is written for an epoch that last.pt does not know of is written again, the same, when the
        # run goes on from it.
        self._save_last()
        asked = self.stop.signal is not None if self.ranks.world == 1 else counts[3] > 0
        if asked:
            self._stop(f"epoch {self.position.epoch}")

    def _validate(self) -> dict[str, Any]:
        """Scores of the model as it would be saved now."""
        result = self._score_valid()
        # A consequence that changes the answers (which modality speaks, say): those are the ones to choose by.
        return self._score_valid() if self.method.after_validation(result["unimodal"], result["held_out"]) else result

    def _score_valid(self) -> dict[str, Any]:
        batches = self.valid.batches(0)
        predictions = collect(
            self.method, batches, self.ranks, count=len(self.valid), precision=self.config.train.precision
        )
        return self.ranks.on_main(lambda: self._score(predictions))

    def _score(self, predictions: Predictions) -> dict[str, Any]:
        spec, monitor = self.method.spec, self.config.train.monitor
        # a sort per query: in every epoch only where epochs are chosen by it
        relevance = self.valid.features.relevance if monitor == "map" else None
        valid = measure(predictions, spec.task, spec.num_outputs, relevance)
        return {
            "valid": valid,
            "shares": mean_shares(predictions),
            "score": score(spec.task, valid["fused"], monitor),
            "fused_loss": fused_loss(predictions, spec.task),
            "unimodal": {m: score(spec.task, metrics) for m, metrics in valid["unimodal"].items()},
            "held_out": held_out(predictions),
        }

    def _write_epoch(self, record: Mapping[str, Any], better: bool) -> None:
        self.folder.lock.require()
        line = json_line(record)
        append_line(self.folder.metrics, line)
        self.records += line
        if better:
            state = {"model": self.method.state_dict(), "position": self._position(), "best": asdict(self.best)}
            checkpoints.save(self.folder.best, {**self.identity, **state})
        self.observers.epoch(record, asdict(self.best), self.stage_epochs)

    def _position(self) -> dict[str, int]:
        """The counts without the clocks, so that best.pt holds nothing that differs from one run to the next."""
        return {key: value for key, value in asdict(self.position).items() if isinstance(value, int)}

    def _save_last(self) -> None:
        now = time.perf_counter()
        if self.position.step:
            self.epoch_seconds += now - self._clock
            self._clock = now
        cuda = torch.cuda.get_rng_state(self.ranks.device) if self.ranks.device.type == "cuda" else None
        generators = self.ranks.collect({"cpu": torch.get_rng_state(), "cuda": cuda})
        losses = self.losses.state_dict(self.ranks)
        state = {
            **self.identity,
            "model": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generators": generators,
            "position": asdict(self.position),
            "best": asdict(self.best),
            "records": self.records,
            "epoch": {"losses": losses, "counts": self.guard.counts, "seconds": self.epoch_seconds},
        }
        self.ranks.on_main(lambda: self._replace_last(state))

    def _replace_last(self, state: dict[str, Any]) -> None:
        self.folder.lock.require()
        checkpoints.keep(self.folder.last, self.folder.previous)
        checkpoints.save(self.folder.last, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.position = Position(**state["position"])
        self.best = Best(**state["best"])
        self.records = state["records"]
        self.method.load_state_dict(state["model"])
        self._begin_stage()
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        epoch = state["epoch"]
        self.losses.load_state_dict(epoch["losses"], self.ranks)
        self.epoch_seconds = epoch["seconds"]
        self.guard.counts = epoch["counts"].to(self.ranks.device)
        self.guard.counts[3] = 0.0  # the wish that ended the run before
        if epoch["counts"][2] > self.config.train.nonfinite_limit:
            # The run was ended by this count; whoever takes it up again has mended the cause or wants to see it once
            # more.
            self.guard.counts[1:3] = 0.0
        generators = state["generators"][self.ranks.rank]
        torch.set_rng_state(generators["cpu"])
        if generators["cuda"] is not None:
            torch.cuda.set_rng_state(generators["cuda"], self.ranks.device)
