"""float16: the factor moves as torch.amp.GradScaler's, and a run in it is one in float32 within its roundings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tolerances import AUTOCAST_FP16

from pgm_fast.data import FeatureSet
from pgm_fast.methods import METHODS
from pgm_fast.train import fit
from pgm_fast.train.step.scaling import LossScale


def test_the_factor_moves_as_gradscalers():
    ours, theirs = LossScale(torch.device("cpu")), torch.amp.GradScaler("cpu")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    bad = {0, 1, 5, 2010}
    for step in range(4020):
        weight.grad = torch.full((1,), float("inf") if step in bad else 1.0)
        scaled = theirs.scale(torch.ones(()))
        assert ours.factor == scaled
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(float(step in bad)))
    assert ours.factor == 2.0 ** (16 - 4 + 2)


def test_gradients_get_their_size_back():
    scale, gradient = LossScale(torch.device("cpu")), torch.randn(5)
    scaled = gradient * scale.factor
    scale.unscale_([scaled])
    assert torch.equal(scaled, gradient)
    scale.unscale_([])


@pytest.mark.parametrize("method", [*METHODS])
def test_a_run_in_float16_is_one_in_float32_within_its_roundings(tmp_path, method):
    rng = np.random.default_rng(0)
    label = np.arange(48) % 3
    modalities = {m: (rng.normal(size=(48, 4)) + label[:, None]).astype(np.float32) for m in "ab"}
    data = FeatureSet("tiny", modalities, "classification", label, np.array(["train"] * 32 + ["valid"] * 16))
    # One update: its losses are of the same weights.
    settings = {"model.dim": 8, "model.hidden": 8, "model.dropout": 0.0, "train.max_steps": 1, "method": method}
    settings |= {"train.plots": False, "train.logger": [], "train.device": "cpu"}
    totals = []
    for precision in ("fp32", "fp16"):
        fit(data=data, out=str(tmp_path / precision), **settings, **{"train.precision": precision})
        line = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()[0]
        totals.append(json.loads(line)["train"]["total"])
    assert totals[0] == pytest.approx(totals[1], rel=AUTOCAST_FP16, abs=0)
    state = torch.load(tmp_path / "fp16" / "checkpoints" / "last.pt", weights_only=True)
    assert all(value.dtype != torch.float16 for value in state["model"].values())
