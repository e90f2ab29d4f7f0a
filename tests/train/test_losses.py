"""Epoch means are means over rows, whatever the batches, and survive a checkpoint."""

from __future__ import annotations

import math

import torch

from pgm_fast.train.distributed import Ranks
from pgm_fast.train.step.losses import LossTable

RANKS = Ranks()


def filled(values, sizes) -> LossTable:
    table = LossTable(len(values), RANKS.device)
    for number, (value, rows) in enumerate(zip(values, sizes, strict=True)):
        table.add(number, {"task": torch.tensor(value), "total": torch.tensor(2 * value)}, rows)
    return table


def test_updates_count_with_their_rows():
    means = filled([1.0, 4.0], [30, 10]).means(RANKS)
    assert means == {"task": 1.75, "total": 3.5}


def test_batches_that_were_not_finite_are_left_out():
    means = filled([1.0, math.nan, 3.0, math.inf], [5, 100, 5, 100]).means(RANKS)
    assert means == {"task": 2.0, "total": 4.0}
    assert all(math.isnan(value) for value in filled([math.nan], [5]).means(RANKS).values())
    assert LossTable(3, RANKS.device).means(RANKS) == {}


def test_a_table_goes_on_from_its_state():
    whole, half = filled([1.0, 4.0], [30, 10]), LossTable(2, RANKS.device)
    half.add(0, {"task": torch.tensor(1.0), "total": torch.tensor(2.0)}, 30)
    again = LossTable(2, RANKS.device)
    again.load_state_dict(half.state_dict(RANKS), RANKS)
    again.add(1, {"task": torch.tensor(4.0), "total": torch.tensor(8.0)}, 10)
    assert again.means(RANKS) == whole.means(RANKS)
