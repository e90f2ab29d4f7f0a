"""Epochs of whole jobs, a function each that trains one: the engine's loop, and a bare loop around the same model with
torch's DataLoader, torch.compile and torch's fused AdamW.

Three modalities, ten classes, default settings, widths all equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pgm_fast.data import FeatureSet
from pgm_fast.data.batch import Batch
from pgm_fast.methods import Method
from pgm_fast.optim.groups import without_decay
from pgm_fast.train.assembly import Run
from pgm_fast.train.config import Config
from pgm_fast.train.loop import Training
from pgm_fast.train.report.observers import Observers
from pgm_fast.train.report.trackers import Trackers
from pgm_fast.train.run.folder import RunFolder
from pgm_fast.train.signals import StopRequest

MODALITIES, D, CLASSES = ("text", "audio", "vision"), 128, 10
HELD_OUT = 64  # rows of each split that is not trained on
STAGE = {"pgm": 0, "dimml": 0, "dmil": 2}  # the one with most to do


def features(rows: int, d: int = D) -> FeatureSet:
    """``rows`` to train on and few in the other splits."""
    draw, count = np.random.default_rng(0), rows + 2 * HELD_OUT
    labels, centres = draw.integers(0, CLASSES, count), draw.standard_normal((CLASSES, d))
    vectors = {m: (draw.standard_normal((count, d)) + 0.3 * centres[labels]).astype(np.float32) for m in MODALITIES}
    split = np.array(["train"] * rows + ["valid"] * HELD_OUT + ["test"] * HELD_OUT)
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
