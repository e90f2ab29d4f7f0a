"""The average of the weights is the formula's, is what validation sees, and is what is kept."""

from __future__ import annotations

import numpy as np
import torch
from tolerances import AVERAGED_WEIGHTS
from torch import nn

from pgm_fast.data import FeatureSet
from pgm_fast.train import evaluate, fit
from pgm_fast.train.step.averaging import WeightAverage


def test_it_is_the_formula_and_a_skipped_update_changes_nothing():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average, expected = WeightAverage(model, 0.5), model.weight.detach().double().clone()
    for t in range(1, 7):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        skipped = t == 4
        average.update(torch.tensor(float(skipped)))
        if not skipped:
            expected += (1 - min(0.5, (1 + t) / (10 + t))) * (model.weight.detach().double() - expected)
    assert list(average.state_dict()["weights"]) == ["weight"]
    found = average.state_dict()["weights"]["weight"]
    torch.testing.assert_close(found.double(), expected, rtol=AVERAGED_WEIGHTS, atol=AVERAGED_WEIGHTS)
    own = model.weight.detach().clone()
    with average.in_place():
        assert torch.equal(model.weight, found) and not torch.equal(found, own)
    assert torch.equal(model.weight, own)


def test_the_average_is_validated_and_kept_and_last_goes_on_from_the_weights(tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    modalities = {m: (rng.normal(size=(90, 4)) + label[:, None]).astype(np.float32) for m in "ab"}
    split = np.array(["train", "train", "valid"])[np.arange(90) // 3 % 3]
    data, out = FeatureSet("tiny", modalities, "classification", label, split), tmp_path / "run"
    settings = {"model.dim": 8, "model.hidden": 8, "train.epochs": 2, "train.device": "cpu", "train.keep": "last"}
    settings |= {"train.plots": False, "train.logger": [], "train.ema": 0.99, "train.lr": 0.05, "method": "joint"}
    report = fit(data=data, out=str(out), **settings)
    best, last = (torch.load(out / "checkpoints" / f"{name}.pt", weights_only=True) for name in ("best", "last"))
    for name, average in last["average"]["weights"].items():
        assert torch.equal(best["model"][name], average)
    assert any(not torch.equal(last["model"][name], value) for name, value in last["average"]["weights"].items())
    again = evaluate(out, data=data, split="valid")
    assert again["losses"] == report["valid"]["losses"]
