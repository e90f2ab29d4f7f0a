"""The training loop: stages, epochs, steps, validation, and a state that can be left and taken up again at any step."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..data import Loader
from ..data.batch import Batch
from ..errors import TrainingStopped
from ..methods.base import Method, Stage
from ..optim.groups import NO_DECAY, without_decay
from . import sharding
from .config import Config
from .distributed import Ranks
from .evaluation import collect, held_out
from .report.observers import Observers
from .run import checkpoints
from .run.folder import RunFolder
from .run.json_files import append_line, json_line
from .run.position import Best, Position
from .run.shards import ShardedSaves, remove_unused, with_shards
from .scores.measure import fused_loss, measure
from .scores.metrics import score
from .scores.predictions import Predictions
from .scores.shares import mean_shares
from .signals import StopRequest
from .step.averaging import WeightAverage
from .step.captured import CapturedStep
from .step.compiled import CompiledStep, why_not_compiled
from .step.guard import Counts, DelayedReading, UpdateGuard
from .step.losses import LossTable
from .step.optimizers import Schedule, build_optimizer
from .step.scaling import LossScale, autocast

__all__ = ["StoppedBySignal", "Training"]

log = logging.getLogger(__name__)

_READ_EVERY = 8  # steps between looks at the guard's counts on an accelerator


class StoppedBySignal(Exception):
    """Training was asked to stop and did, with last.pt written. ``args[0]`` says by what and where."""


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
        # parameters that a step may leave without a gradient
        self.unused = bool(self.identity.get("encoders")) or method.turns > 1
        self.sharded = sharding.shard(method, ranks, config, self.unused)  # before groups are made of its parameters
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
        self.saves = ShardedSaves(self.folder, self.ranks) if self.sharded else None
        try:
            if state is None:
                self._begin_stage()
                self._save_last()
            else:
                with checkpoints.reading("values"):
                    self._restore(state)
            self._run_stages()
            self._end_saving()
        finally:
            self.wrapped = None  # it must not outlive the process group, see distributed.connect
            if self.saves is not None:
                self.saves.close()

    def _run_stages(self) -> None:
        while True:
            while not self._stage_is_over():
                self._train_epoch()
                self._end_epoch()
            best = self.ranks.on_main(lambda: checkpoints.load_run(self.folder.best))
            with checkpoints.reading("weights"):
                sharding.load_weights(self.method, best["model"])
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
        epochs = self.stage.epochs or self.config.train.epochs
        return min(epochs, -(-self._most_steps // self.steps_per_epoch)) if self._most_steps else epochs

    @property
    def steps_per_epoch(self) -> int:
        """Updates that an epoch takes; the last one of a stage may be cut short."""
        return -(-len(self.train) // self.config.train.accumulate)

    @property
    def _most_steps(self) -> int:
        return self.config.train.max_steps

    def _epoch_is_over(self) -> bool:
        step, before = self.position.step, self.position.stage_epoch * self.steps_per_epoch
        return step == self.steps_per_epoch or bool(self._most_steps and before + step >= self._most_steps)

    def _out_of_patience(self) -> bool:
        patience = self.config.train.patience if self.stage.patience is None else self.stage.patience
        return bool(patience and self.best.since >= patience)

    def _stage_is_over(self) -> bool:
        return self.position.step == 0 and (self.position.stage_epoch >= self.stage_epochs or self._out_of_patience())

    @property
    def _keeps_last(self) -> bool:
        return (self.stage.keep or self.config.train.keep) == "last"

    def _begin_stage(self) -> None:
        settings = self.config.train
        trained = {id(p) for group in self.stage.groups for p in group["params"]}
        for parameter in self.method.parameters():
            parameter.requires_grad_(id(parameter) in trained)
            parameter.grad = None
        self.method.begin_stage(self.position.stage)
        steps = self.steps_per_epoch
        name = self.stage.optimizer or settings.optimizer
        decay = settings.weight_decay if self.stage.weight_decay is None else self.stage.weight_decay
        groups = without_decay(self.stage.groups) if settings.no_decay else self.stage.groups
        self.optimizer = build_optimizer(name, groups, decay)
        warmup = round(settings.warmup_epochs * steps)
        schedule, options = self.stage.schedule or settings.schedule, self.stage.schedule_options
        total = min(self.stage_epochs * steps, self._most_steps or self.stage_epochs * steps)
        self.schedule = Schedule(schedule, self.optimizer, total, warmup, options)
        self.guard = UpdateGuard(self.optimizer, settings.clip_norm, self.ranks, self.method)
        self.average = WeightAverage(self.method, settings.ema) if settings.ema else None
        self.scale = LossScale(self.ranks.device) if settings.precision == "fp16" else None
        self.wrapped = self.method if self.sharded else self.ranks.wrap(self.method, unused=self.unused)
        self.compiled = self._compiled_step()
        self.captured = self._captured_step()
        self._begin_epoch()

    def _compiled_step(self) -> CompiledStep | None:
        settings = self.config.train
        if not settings.compile:
            return None
        reason = why_not_compiled(self.method, self.ranks, settings)
        if reason is not None:
            log.warning("train.compile: steps are not compiled, %s", reason)
            return None
        log.info("train.compile: steps of stage %s are compiled at the first batch", self.stage.name)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        return CompiledStep(self.method, trained, settings.batch_size, settings.precision)

    def _captured_step(self) -> CapturedStep | None:
        if not self.train.fixed:
            return None
        return CapturedStep(self._update_from, self.optimizer, self.method, self.ranks.device)

    def _begin_epoch(self) -> None:
        self.losses = LossTable(self.steps_per_epoch, self.ranks.device)
        self.validations: list[dict[str, float]] = []  # within the epoch
        self.guard.begin_epoch()
        self.epoch_seconds = 0.0
        self.read = DelayedReading(self.ranks.device)

    def _train_epoch(self) -> None:
        self.method.eval()
        with torch.no_grad():
            self.method.begin_epoch(
                self.position.stage, self.position.stage_epoch, lambda: self.train_in_order().batches(0)
            )
        self.method.train()
        if self.captured is not None and type(self.method).begin_epoch is not Method.begin_epoch:
            self.captured.forget()
        self._clock = time.perf_counter()
        batches = self.train.batches(self.position.epoch, start=self.position.step * self.config.train.accumulate)
        while not (self._epoch_is_over() or self._out_of_patience()):
            self._step(batches)
            self.position.step += 1
            self._after_step()

    def _step(self, batches: Iterator[Batch]) -> None:
        """An update, or one for each of the method's turns, from the next ``train.accumulate`` batches."""
        accumulate = self.config.train.accumulate
        count = min(accumulate, len(self.train) - self.position.step * accumulate)
        if self.captured is not None:
            batch = next(batches)
            losses, rows = self.captured(batch), batch.rows
            if self.average is not None:
                self.average.update(self.guard.skipped)
        else:
            losses, rows = self._updates(islice(batches, count), count)
        self.schedule.step()
        self.losses.add(self.position.step, losses, rows)

    def _updates(self, parts: Iterable[Batch], count: int) -> tuple[dict[str, Tensor], int]:
        """The loss terms and rows of an update of each turn from ``count`` batches."""
        if self.method.turns > 1:
            parts = list(parts)
        losses: dict[str, Tensor] = {}
        rows = 0
        for turn in range(self.method.turns):
            self.method.begin_turn(turn)
            self.optimizer.zero_grad(set_to_none=True)
            self.guard.begin()
            total: Tensor | None = None
            for number, batch in enumerate(parts, 1):
                terms = self._add_gradients(batch, last=number == count)
                total = terms["total"] if total is None else total + terms["total"]
                for name, term in terms.items():
                    losses[name] = losses[name] + term if name in losses else term
                rows += batch.rows if turn == 0 else 0
            self._update(total, turn)
        return losses, rows

    def _update_from(self, batch: Batch) -> dict[str, Tensor]:
        """An update of one turn from one batch, without what the host decides: its loss terms."""
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.begin()
        losses = self._add_gradients(batch, last=True)
        self.guard.update(losses["total"])
        return losses

    def _add_gradients(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        """One pass forth and back; the loss terms. In the ``last`` of an update gradients are averaged over ranks."""
        if self.compiled is not None and (compiled := self.compiled(batch)) is not None:
            return compiled
        with self.ranks.postponed(self.wrapped, not last):
            with autocast(self.ranks.device, self.config.train.precision):
                terms = self.wrapped(batch).losses
            self.method.backward(terms["total"], None if self.scale is None else self.scale.factor)
        return {name: term.detach() for name, term in terms.items()}

    def _update(self, total: Tensor, turn: int) -> None:
        if self.scale is not None:
            self.scale.unscale_(p.grad for p in self.method.parameters() if p.grad is not None)
        self.method.after_backward(self._seed_of_update(turn))
        self.guard.update(total, stop=self.stop.signal is not None)
        if self.scale is not None:
            self.scale.update(self.guard.skipped)
        if self.average is not None:
            self.average.update(self.guard.skipped)

    def _seed_of_update(self, turn: int) -> int:
        steps = self.position.epoch * self.steps_per_epoch + self.position.step
        # of a large seed the low bits: torch's generators take 64
        return (self.config.train.seed % (1 << 23) << 40) + steps * self.method.turns + turn

    def _after_step(self) -> None:
        step, settings = self.position.step, self.config.train
        done = self.position.stage_epoch * self.steps_per_epoch + step
        validated = bool(settings.validate_every and done % settings.validate_every == 0 and not self._epoch_is_over())
        if validated:  # before a stop: whoever goes on begins with the next step
            self._validate_within()
        asked = self.stop.signal is not None and self.ranks.world == 1
        if self.ranks.device.type == "cpu" or step % _READ_EVERY == 0:
            values = self.read(self.guard.counts)
            if values is not None:
                counts = Counts(*values)
                self._stop_if_not_finite(counts)
                asked = asked or counts.stopping > 0
        if asked:
            self._save_last()
            self._stop(f"epoch {self.position.epoch + 1}, step {step}")
        if validated or (settings.checkpoint_every_steps and step % settings.checkpoint_every_steps == 0):
            self._save_last()

    def _validate_within(self) -> None:
        """A validation before the epoch's end: noted in the epoch's record, and the model kept if it is the best."""
        begun = time.perf_counter()
        self.epoch_seconds += begun - self._clock
        self.ranks.share_buffers(self.method)
        result = self._validate()
        offered = self.position.epoch + 1, result["score"], result["fused_loss"]
        if self.best.offer(*offered, always=self._keeps_last, step=self.position.step):
            kept = self._kept()
            self.ranks.on_main(lambda: self._keep_best(kept))
        self._clock = time.perf_counter()
        noted = {"step": self.position.step, "score": result["score"], "loss": result["fused_loss"]}
        self.validations.append({**noted, "seconds": self._clock - begun})

    def _stop(self, where: str) -> None:
        self._end_saving()
        raise StoppedBySignal(f"stopped by {self.stop.signal or 'a signal to another process'} after {where}")

    def _stop_if_not_finite(self, counts: Counts) -> None:
        limit = self.config.train.nonfinite_limit
        if counts.longest <= limit:
            return
        self._save_last()
        self._end_saving()
        raise TrainingStopped(
            f"{counts.longest:.0f} updates in a row up to epoch {self.position.epoch + 1}, step {self.position.step} "
            f"of stage {self.stage.name} were skipped, since the loss or its gradient was not finite "
            f"(train.nonfinite_limit={limit}); try a lower train.lr than {self.config.train.lr:g}, "
            f"train.precision=fp32, or look for extreme features with pgm-fast check-data. {self.folder.last} is "
            "written"
        )

    def _end_epoch(self) -> None:
        counts = Counts(*self.guard.counts.tolist())
        self._stop_if_not_finite(counts)
        losses, rows = self.losses.means(self.ranks), self.losses.rows(self.ranks)
        now = time.perf_counter()
        train_seconds = self.epoch_seconds + now - self._clock
        self.ranks.share_buffers(self.method)
        result = self._validate()
        rates = {group["name"].removesuffix(NO_DECAY): group["lr"] for group in self.optimizer.param_groups}
        self.schedule.epoch(result["score"], result["fused_loss"])
        seconds = train_seconds + time.perf_counter() - now + sum(v["seconds"] for v in self.validations)
        record = {
            "stage": self.stage.name,
            "epoch": self.position.epoch + 1,
            "train": losses,
            "valid": result["valid"],
            "shares": result["shares"],
            "lr": rates,
            "samples_per_s": rows / train_seconds,
            "skipped_steps": int(counts.skipped),
            "seconds": seconds,
        }
        if self.config.train.validate_every:
            record["validations"] = self.validations
        self.position.epoch += 1
        self.position.stage_epoch += 1
        self.position.step = 0
        self.position.seconds += seconds
        self.position.train_seconds += train_seconds
        self.position.skipped += int(counts.skipped)
        self.position.rows += rows
        offered = self.position.epoch, result["score"], result["fused_loss"]
        better = self.best.offer(*offered, always=self._keeps_last)
        self._begin_epoch()
        kept = self._kept() if better else None
        self.ranks.on_main(lambda: self._write_epoch(record, kept))
        # Last of all: what is written for an epoch that last.pt does not know of is written again, the same, when the
        # run goes on from it.
        self._save_last()
        asked = self.stop.signal is not None if self.ranks.world == 1 else counts.stopping > 0
        if asked:
            self._stop(f"epoch {self.position.epoch}")

    def _validate(self) -> dict[str, Any]:
        """Scores of the model as it would be kept now."""
        with self._as_kept():
            result = self._score_valid()
            changed = self.method.after_validation(result["unimodal"], result["held_out"])
            # A consequence that changes the answers (which modality speaks, say): those are the ones to choose by.
            return self._score_valid() if changed else result

    def _as_kept(self) -> AbstractContextManager[None]:
        """The method holds, for the block, the weights that are validated and kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _score_valid(self) -> dict[str, Any]:
        predictions = collect(self.method, self.valid, self.ranks, precision=self.config.train.precision)
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

    def _write_epoch(self, record: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
        self.folder.lock.require()
        line = json_line(record)
        append_line(self.folder.metrics, line)
        self.records += line
        if kept is not None:
            self._keep_best(kept)
        self.observers.epoch(record, asdict(self.best), self.stage_epochs)

    def _kept(self) -> dict[str, Any]:
        """The weights that are kept if this is the best, whole on rank 0; every rank calls it."""
        with self._as_kept():
            weights = self.method.state_dict()
            if self.sharded:
                return sharding.gathered(weights, self.ranks)
            return weights if self.average is None else copy.deepcopy(weights)

    def _keep_best(self, weights: Mapping[str, Any]) -> None:
        self.folder.lock.require()
        state = {"model": weights, "position": self._position(), "best": asdict(self.best)}
        checkpoints.save(self.folder.best, {**self.identity, **state})

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
            "epoch": {
                "losses": losses,
                "counts": self.guard.counts,
                "seconds": self.epoch_seconds,
                "validations": self.validations,
            },
        }
        for name, part in self._optional_parts().items():
            state[name] = part.state_dict()
        if self.saves is not None:
            self.saves.save(state)
        else:
            self.ranks.on_main(lambda: self._replace_last(state))

    def _end_saving(self) -> None:
        """Until last.pt is written, where that is done beside training."""
        if self.saves is not None:
            self.saves.wait()

    def _optional_parts(self) -> dict[str, WeightAverage | LossScale]:
        """What has a state only where a setting asks for it."""
        parts = {"average": self.average, "scale": self.scale}
        return {name: part for name, part in parts.items() if part is not None}

    def _replace_last(self, state: dict[str, Any]) -> None:
        self.folder.lock.require()
        checkpoints.keep(self.folder.last, self.folder.previous)
        checkpoints.save(self.folder.last, state)
        remove_unused(self.folder)

    def _restore(self, state: Mapping[str, Any]) -> None:
        # before there were rows in a position, every epoch saw all
        rows = state["position"]["epoch"] * self.train.num_rows
        self.position = Position(**{"rows": rows, **state["position"]})
        self.best = Best(**state["best"])
        self.records = state["records"]
        state = with_shards(self.folder.last, state, sharding.mesh_of(self.method))
        sharding.load_weights(self.method, state["model"])
        self._begin_stage()
        sharding.load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        epoch = state["epoch"]
        self.losses.load_state_dict(epoch["losses"], self.ranks)
        self.epoch_seconds = epoch["seconds"]
        self.validations = list(epoch.get("validations", []))
        for name, part in self._optional_parts().items():
            part.load_state_dict(state[name])
        self.guard.load_counts(epoch["counts"], self.config.train.nonfinite_limit)
        if self.ranks.rank >= len(state["generators"]):
            # more processes than there were: it draws as it would from the start
            torch.manual_seed(self.config.train.seed + self.ranks.rank)
            return
        generators = state["generators"][self.ranks.rank]
        torch.set_rng_state(generators["cpu"])
        if generators["cuda"] is not None:
            torch.cuda.set_rng_state(generators["cuda"], self.ranks.device)
