"""Calls of the command line in this process, and a small file of features for them."""

from __future__ import annotations

import csv
import os

import numpy as np
from typer.testing import CliRunner

from pgm_fast.cli.app import app

FAST = [
    "train.epochs=2",
    "train.batch_size=16",
    "train.plots=false",
    "train.logger=[]",
    "train.device=cpu",
    "model.dim=8",
    "model.hidden=8",
]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "Errno" not in result.stderr, result.output
    return result.stderr.removeprefix("error: ").rstrip()


def write_features(path, **changes):
    rng = np.random.default_rng(0)
    label = np.arange(48) % 3
    values = {
        "audio": rng.normal(size=(48, 5)).astype(np.float32) + label[:, None],
        "vision": rng.normal(size=(48, 4)).astype(np.float32),
        "label": label,
        "split": np.array(["train", "train", "valid", "test"] * 12),
        "id": np.array([f"clip {number}" for number in range(48)]),
    }
    values.update(changes)
    np.savez(path, **{key: value for key, value in values.items() if value is not None})
    return path


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
