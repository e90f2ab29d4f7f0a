"""Predictions hold every row once, in order, with nothing of the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import FP32
from torch import nn

from pgm_fast.data import Batch
from pgm_fast.methods.base import Output
from pgm_fast.train.distributed import Ranks
from pgm_fast.train.evaluation import collect
from pgm_fast.train.scores.measure import fused_loss
from pgm_fast.train.scores.predictions import Predictions


class Echo(nn.Module):
    """Answers with what it is given."""

    def forward(self, batch, report=False):
        assert report and not self.training and torch.is_inference_mode_enabled()
        x = batch.inputs["a"]
        return Output(
            logits=x,
            unimodal={"a": x + 1},
            losses={"total": (x[:, 0] * batch.weight).sum()},
            shares={"a": torch.stack([x[:, 0], 1 - x[:, 0]], 1)},
            features={"a/uni": x * 2},
        )


class Rows:
    """A loader of three batches, padded."""

    def __init__(self, presence=False):
        self.presence = presence

    def __len__(self):
        return 3

    def batches(self, epoch):
        assert epoch == 0
        return padded(self.presence)


def padded(presence):
    rows = torch.tensor([[7, 2, -1], [0, 9, 4], [5, -1, -1]])
    for number, index in enumerate(rows):
        real = (index >= 0).float()
        values = torch.where(index >= 0, index.float(), 1e6)[:, None] / 10
        batch = Batch(
            inputs={"a": values},
            weight=real / real.sum(),
            index=index,
            labels=index.clone(),
            rows=int(real.sum()),
        )
        if presence and number == 1:
            batch.presence = {"a": torch.tensor([True, False, True])}
        yield batch


def test_rows_are_sorted_and_padding_is_dropped():
    method = Echo().train()
    predictions = collect(method, Rows(), Ranks(), features=True)
    assert method.training
    index = np.array([0, 2, 4, 5, 7, 9])
    assert np.array_equal(predictions.index, index) and np.array_equal(predictions.labels, index)
    for got, wanted in (
        (predictions.logits[:, 0], index / 10),
        (predictions.unimodal["a"][:, 0], index / 10 + 1),
        (predictions.shares["a"][:, 1], 1 - index / 10),
        (predictions.features["a/uni"][:, 0], index / 5),
    ):
        np.testing.assert_allclose(got, wanted, rtol=FP32)
    assert predictions.losses["total"] == pytest.approx(index.mean() / 10, rel=FP32, abs=0)


def test_presence_that_only_some_batches_name_is_true_in_the_others():
    predictions = collect(Echo(), Rows(presence=True), Ranks())
    assert predictions.index.tolist() == [0, 2, 4, 5, 7, 9]
    assert predictions.presence["a"].tolist() == [True, True, True, True, True, False]
    assert predictions.features == {}


def test_the_method_is_left_in_its_mode_even_where_it_fails():
    class Failing(Echo):
        def forward(self, batch, report=False):
            raise ValueError("broken")

    method = Failing().train()
    with pytest.raises(ValueError, match="broken"):
        collect(method, Rows(), Ranks())
    assert method.training


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_the_fused_loss_is_the_tasks_own_whatever_was_trained_on(task):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(6, 3)).astype(np.float32)
    labels = np.arange(6) % 3 if task == "classification" else (logits > 0.2).astype(np.float32)
    predictions = Predictions(np.arange(6), labels, logits, losses={"total": 99.0})
    if task == "classification":
        wanted = np.mean([np.log(np.exp(row).sum()) - row[y] for row, y in zip(logits, labels, strict=True)])
    elif task == "multilabel":
        wanted = np.mean(np.log1p(np.exp(logits)) - labels * logits)
    else:
        wanted = np.mean((logits - labels) ** 2)
    assert fused_loss(predictions, task) == pytest.approx(wanted, rel=FP32, abs=0)
    assert fused_loss(Predictions(np.arange(6), losses={"total": 2.0}), "retrieval") == 2.0
