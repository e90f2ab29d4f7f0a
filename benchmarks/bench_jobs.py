"""Whole jobs beside their alternatives, and where the time of each goes.

    python benchmarks/bench_jobs.py [--methods pgm dimml dmil] [--batch 64] [--d 128] [--rows 4096] [--forms ...]

An epoch of the engine's loop with and without train.compile, of a bare loop around the same model with torch's
DataLoader, torch.compile and fused AdamW, and of Lightning around the same model with the same optimizer, loader and
clipping. Data and model in ``whole_jobs.py``. An epoch counts what it takes of the processor, all threads together,
without validation, set-up and compilation; forms are measured in turn. Then ``torch.profiler`` says how an epoch of the
engine's loop is spent. Rows that are not measured again stay in ``results/cpu/jobs.json`` as they are.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import harness
import torch
import whole_jobs
from whole_jobs import MODALITIES, STAGE, D

from pgm_fast.data.batch import Batch
from pgm_fast.train.assembly import Run, machine
from pgm_fast.train.config import Config
from pgm_fast.train.configure import make_config
from pgm_fast.train.loop import Training

BARE, EAGER, COMPILED = "bare loop, torch.compile, fused AdamW", "fit", "fit, train.compile"
LIGHTNING = "Lightning, fused AdamW"
FORMS = (BARE, LIGHTNING, EAGER, COMPILED)
PARTS = ("data", "forward", "backward", "clip and step", "loop")
INSIDE = ("pgm_fast", "aten")  # ops of these names, called by forward or backward
Epoch = Callable[[], tuple[float, float]]  # trains one; the mean of its losses and what it took of the processor


def timed(epoch: Callable[[], float]) -> Epoch:
    """With the processor's clock around it."""

    def call() -> tuple[float, float]:
        begin = time.process_time()
        return epoch(), time.process_time() - begin

    return call


def lightning(config: Config, parts: Run) -> Epoch:
    """The same under Lightning's Trainer, with nothing on that an epoch need not have."""
    from lightning import Callback, LightningModule, Trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    method, optimizer, loader = whole_jobs.own_loop(config, parts)

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.method = method
            self.total = 0.0

        def training_step(self, rows, _):
            loss = self.method(whole_jobs.as_batch(rows)).losses["total"]
            self.total += float(loss.detach()) / len(loader)
            return loss

        def configure_optimizers(self):
            return optimizer

    class Clock(Callback):
        """Of the processor, around the steps of an epoch, which a call of ``fit`` has much before and after."""

        def on_train_epoch_start(self, trainer, module):
            self.begin, module.total = time.process_time(), 0.0

        def on_train_epoch_end(self, trainer, module):
            self.seconds = time.process_time() - self.begin

    module, clock = Module(), Clock()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

    def epoch() -> tuple[float, float]:
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            gradient_clip_val=config.train.clip_norm,
            callbacks=[clock],
            **quiet,
        )
        trainer.fit(module, loader)
        return module.total, clock.seconds

    return epoch


def make(form: str, config: Config, parts: Run, out: Path) -> Epoch:
    """An epoch of a form."""
    if form == LIGHTNING:
        return lightning(config, parts)
    return timed(whole_jobs.bare(config, parts) if form == BARE else whole_jobs.engine(config, parts, out))


def configuration(method: str, batch: int, d: int, **more: Any) -> Config:
    settings = {"method": method, "model.dim": d, "model.hidden": d, "train.device": "cpu", "train.batch_size": batch}
    return make_config(None, {**settings, "train.schedule": "constant", **more})


def rates(method: str, batch: int, d: int, rows: int, rounds: int, forms: Sequence[str], out: Path) -> list[dict]:
    """Samples per second of processor time, one row per form."""
    torch.compiler.reset()
    configs = {form: configuration(method, batch, d, **{"train.compile": form == COMPILED}) for form in forms}
    data = whole_jobs.features(rows, d)
    epochs, start, seconds, losses = {}, {}, {form: [] for form in forms}, {form: [] for form in forms}
    with machine(configs[forms[0]]) as ranks:
        first = Run.new(configs[forms[0]], data, None, ranks)
        for form, config in configs.items():
            parts = Run(config, data, first.spec, first.normalizer, copy.deepcopy(first.method), ranks)
            epochs[form] = make(form, config, parts, out / method / form)
            begin = time.perf_counter()
            losses[form].append(epochs[form]()[0])
            start[form] = time.perf_counter() - begin
        order, draw = list(epochs), random.Random(0)
        for _ in range(rounds):
            draw.shuffle(order)
            for form in order:
                loss, spent = epochs[form]()
                losses[form].append(loss)
                seconds[form].append(spent)
    measured = []
    for form, spent in seconds.items():
        rate = rows / statistics.median(spent)
        measured.append(
            {
                "kind": "rate",
                "method": method,
                "form": form,
                "shape": {"batch": batch, "modalities": len(MODALITIES), "d": d},
                "samples_per_processor_second": round(rate, 1),
                "slowest_and_fastest": [round(rows / max(spent), 1), round(rows / min(spent), 1)],
                "first_epoch_s": round(start[form], 1),
                "losses": [round(loss, 4) for loss in losses[form]],
            }
        )
        print(f"{method:6} batch {batch:5} d {d:4} {form:38} {rate:8.0f} samples/s", flush=True)
    return measured


def shares(method: str, batch: int, d: int, rows: int, rounds: int, out: Path) -> dict:
    """Of an epoch of the engine's loop under the profiler: the parts' percent of its time, and of forward and backward
    what is spent inside of our ops and of torch's; between them are Python and autograd. Medians over epochs."""
    config, data = configuration(method, batch, d), whole_jobs.features(rows, d)
    with machine(config) as ranks:
        training = whole_jobs.training_of(config, Run.new(config, data, None, ranks), out / method / "shares")
        whole_jobs.epoch_of(training)  # the first makes tables and copies
        training.train.batches = _marked_each(training.train.batches)
        training.wrapped = _marked("forward", training.wrapped)
        training.method.backward = _marked("backward", training.method.backward)
        training.guard.update = _marked("clip and step", training.guard.update)
        epochs = [_profiled(training) for _ in range(rounds)]
    median = {kind: statistics.median(epoch[kind] for epoch in epochs) for kind in epochs[0]}
    whole = median.pop("epoch")
    return {
        "kind": "shares",
        "method": method,
        "shape": {"batch": batch, "modalities": len(MODALITIES), "d": d},
        "ms_per_step": round(whole / 1e3 / (rows // batch), 3),
        "percent": {kind: round(percent, 1) for kind, percent in median.items()},
    }


def _profiled(training: Training) -> dict[str, float]:
    """Microseconds of an epoch, and what part of it, in percent, was spent where."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with torch.profiler.record_function("loop"):
            whole_jobs.epoch_of(training)
    took = dict.fromkeys((*PARTS, *INSIDE), 0.0)
    for event in profile.events():
        name = event.name if event.name in PARTS else event.name.partition("::")[0]
        if name in PARTS or (name in INSIDE and _outermost(event)):
            took[name] += event.cpu_time_total
    whole = took["loop"]
    took["loop"] -= sum(took[part] for part in PARTS[:-1])
    return {"epoch": whole, **{name: 100 * spent / whole for name, spent in took.items()}}


def _marked(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments, **named):
        with torch.profiler.record_function(name):
            return run(*arguments, **named)

    return call


def _marked_each(batches: Callable[..., Iterator[Batch]]) -> Callable[..., Iterator[Batch]]:
    def marked(*arguments, **named):
        draw = _marked("data", lambda source: next(source, None))
        source = batches(*arguments, **named)
        while (batch := draw(source)) is not None:
            yield batch

    return marked


def _outermost(event: Any) -> bool:
    """Whether the op is called by forward or backward, and not by another op."""
    while (event := event.cpu_parent) is not None:
        if event.name in ("forward", "backward"):
            return True
        if event.name.startswith(("aten::", "pgm_fast::")):
            return False
    return False


def keep(rows: list[dict], **facts: Any) -> Path:
    """Into the result file, in place of earlier rows of the same."""
    device = torch.device("cpu")
    dated = [{**row, "date": date.today().isoformat(), **facts} for row in rows]
    new = {_key(row) for row in dated}
    kept = [row for row in harness.earlier("jobs", device) if _key(row) not in new]
    return harness.write("jobs", device, kept + dated)


def _key(row: dict) -> tuple:
    return row["kind"], row["method"], row.get("form"), *row["shape"].values()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=sorted(STAGE), default=list(STAGE))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--d", type=int, default=D, help="of inputs and of all features")
    parser.add_argument("--rows", type=int, default=4096, help="a multiple of the batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--shares", action="store_true", help="only where the time of an epoch goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as out:
        for method in options.methods:
            at = method, options.batch, options.d, options.rows, options.rounds
            folder = Path(out)
            measured = [shares(*at, folder)] if options.shares else rates(*at, options.forms, folder)
            print(keep(measured, rounds=options.rounds, threads=options.threads))


if __name__ == "__main__":
    main()
