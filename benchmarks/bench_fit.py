"""Epochs of whole jobs: the engine's training loop, with and without train.compile, beside a bare loop around the same
model with torch's DataLoader, torch.compile and torch's fused AdamW, in one run.

    python benchmarks/bench_fit.py [--methods pgm dimml dmil] [--rows 4096] [--rounds 5]

Three modalities of 128 dimensions, ten classes, batches of 64, default settings, d 128. An epoch counts what it takes
of the processor, all threads together, without validation and without what happens once (data, compilation): the other
work of a shared machine is not in it. Losses of the forms after equally many steps are written beside.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pgm_fast.data import FeatureSet
from pgm_fast.data.batch import Batch
from pgm_fast.methods import Method
from pgm_fast.optim.groups import without_decay
from pgm_fast.train.assembly import Run, machine
from pgm_fast.train.config import Config
from pgm_fast.train.configure import make_config
from pgm_fast.train.folder import RunFolder
from pgm_fast.train.loop import Training
from pgm_fast.train.observers import Observers
from pgm_fast.train.signals import StopRequest
from pgm_fast.train.trackers import Trackers

MODALITIES, D, CLASSES, BATCH = ("text", "audio", "vision"), 128, 10, 64
STAGE = {"pgm": 0, "dimml": 0, "dmil": 2}  # the one with most to do
BARE, EAGER, COMPILED = "bare loop, torch.compile, fused AdamW", "fit", "fit, train.compile"


def features(rows: int) -> FeatureSet:
    """``rows`` to train on and as many as a batch in the other splits."""
    draw, count = np.random.default_rng(0), rows + 2 * BATCH
    labels, centres = draw.integers(0, CLASSES, count), draw.standard_normal((CLASSES, D))
    vectors = {m: (draw.standard_normal((count, D)) + 0.3 * centres[labels]).astype(np.float32) for m in MODALITIES}
    split = np.array(["train"] * rows + ["valid"] * BATCH + ["test"] * BATCH)
    return FeatureSet("made", vectors, "classification", labels, split, num_classes=CLASSES)


def training_of(config: Config, parts: Run, out: Path) -> Training:
    """The engine's loop at the beginning of the stage."""
    observers = Observers(False, Trackers((), RunFolder(out), config, 0), "accuracy")
    training = Training(
        config,
        parts.method,
        parts.training_loader(),
        parts.loader("valid"),
        parts.training_loader_in_order,
        parts.ranks,
        RunFolder(out),
        {},
        observers,
        StopRequest(),
    )
    training.position.stage = STAGE[config.method]
    training._begin_stage()
    return training


def epoch_of(training: Training) -> float:
    """An epoch of the engine's loop; its total loss."""
    training._train_epoch()
    total = training.losses.means(training.ranks)["total"]
    training.position.epoch += 1
    training.position.step = 0
    training._begin_epoch()
    return total


def engine(config: Config, parts: Run, out: Path) -> Callable[[], float]:
    """An epoch of the engine's loop; its total loss."""
    training = training_of(config, parts, out)
    return lambda: epoch_of(training)


def own_loop(config: Config, parts: Run) -> tuple[Method, torch.optim.AdamW, DataLoader]:
    """What a loop of a user's own has: the model, torch's fused optimizer, torch's loader."""
    method: Method = parts.method
    stage = method.stages(config.train.lr)[STAGE[config.method]]
    method.begin_stage(STAGE[config.method])
    optimizer = torch.optim.AdamW(
        [{**group, "params": list(group["params"])} for group in without_decay(stage.groups)],
        weight_decay=config.train.weight_decay,
        fused=True,
    )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    whole = next(parts._loader("train", len(parts.features.rows("train")), True).batches(0))
    rows = TensorDataset(*whole.inputs.values(), whole.labels, whole.index)
    return method, optimizer, DataLoader(rows, batch_size=config.train.batch_size, shuffle=True)


def as_batch(rows: Sequence[Tensor]) -> Batch:
    """What a method takes, from what torch's loader gives."""
    *inputs, labels, index = rows
    weight = torch.full((len(labels),), 1 / len(labels))
    return Batch(dict(zip(MODALITIES, inputs, strict=True)), weight, index, labels=labels)


def bare(config: Config, parts: Run) -> Callable[[], float]:
    """The same as a loop of a user's own."""
    method, optimizer, loader = own_loop(config, parts)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    compiled = torch.compile(method, dynamic=False)

    def epoch() -> float:
        method.train()
        total = 0.0
        for rows in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = compiled(as_batch(rows)).losses["total"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.train.clip_norm)
            optimizer.step()
            total += float(loss.detach()) / len(loader)
        return total

    return epoch


def measure(method: str, rows: int, rounds: int, out: Path) -> list[dict]:
    """Rows of one method."""
    torch.compiler.reset()
    settings = {"method": method, "model.dim": D, "model.hidden": D, "train.device": "cpu", "train.batch_size": BATCH}
    settings |= {"train.schedule": "constant"}
    configs = {
        BARE: make_config(None, settings),
        EAGER: make_config(None, settings),
        COMPILED: make_config(None, {**settings, "train.compile": True}),
    }
    data = features(rows)
    with machine(configs[EAGER]) as ranks:
        first = Run.new(configs[EAGER], data, None, ranks)
        epochs, start, seconds, losses = {}, {}, {name: [] for name in configs}, {name: [] for name in configs}
        for name, config in configs.items():
            parts = Run(config, data, first.spec, first.normalizer, copy.deepcopy(first.method), ranks)
            epochs[name] = bare(config, parts) if name == BARE else engine(config, parts, out / method / name)
            begin = time.perf_counter()
            losses[name].append(epochs[name]())
            start[name] = time.perf_counter() - begin
        order, draw = list(epochs), random.Random(0)
        for _ in range(rounds):
            draw.shuffle(order)
            for name in order:
                begin = time.process_time()
                losses[name].append(epochs[name]())
                seconds[name].append(time.process_time() - begin)
    measured = []
    for name, spent in seconds.items():
        rate = rows / statistics.median(spent)
        measured.append(
            {
                "method": method,
                "form": name,
                "shape": {"batch": BATCH, "modalities": len(MODALITIES), "d": D},
                "samples_per_processor_second": round(rate, 1),
                "slowest_and_fastest": [round(rows / max(spent), 1), round(rows / min(spent), 1)],
                "first_epoch_s": round(start[name], 1),
                "losses": [round(loss, 4) for loss in losses[name]],
            }
        )
        print(f"{method:6} {name:38} {rate:8.0f} samples/s  first epoch {start[name]:.0f} s", flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=sorted(STAGE), default=list(STAGE))
    parser.add_argument("--rows", type=int, default=4096, help="a multiple of the batch, 64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as out:
        for method in arguments.methods:
            rows += measure(method, arguments.rows, arguments.rounds, Path(out))
            print(harness.write("fit", torch.device("cpu"), rows, rounds=arguments.rounds))


if __name__ == "__main__":
    main()
