"""Whether two runs ended the same: bitwise, clocks aside."""

from __future__ import annotations

import json
from pathlib import Path

import torch

CLOCKS = {"seconds", "train_seconds", "samples_per_s", "timing", "seconds_per_epoch"}


def timeless(value):
    """The value without what differs between two equal runs: clocks, and the folder's name inside the configuration."""
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if k not in CLOCKS and k != "config"}
        return {k: timeless(lines(v) if k == "records" else v) for k, v in value.items()}
    return [timeless(v) for v in value] if isinstance(value, (list, tuple)) else value


def lines(text: str) -> list:
    return [json.loads(line) for line in text.splitlines()]


def assert_equal(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for number, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}/{number}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(one: Path, other: Path):
    for name in ("last.pt", "best.pt"):
        states = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (one, other)]
        assert_equal(*map(timeless, states), name)
    assert_equal(*(timeless(lines((run / "metrics.jsonl").read_text())) for run in (one, other)), "metrics")
    assert_equal(*(timeless(json.loads((run / "report.json").read_text())) for run in (one, other)), "report")
