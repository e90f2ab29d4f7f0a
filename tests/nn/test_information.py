"""Targets of shares are the parts of the information; how much a head knows is a part of what there is to know."""

from __future__ import annotations

import pytest
import torch
from tolerances import DEVIATION_OF_20000, FP64

from pgm_fast.nn import Calibration, information_targets, share_error

KAPPA = 0.1


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("a", "b", "together", "masses"),
    [  # masses of a: uni-only, paired-only, shared, unused
        (1.0, 0.0, 1.0, (1, 0, 0, 0)),  # a alone knows all
        (1.0, 1.0, 1.0, (0, 0, 1, 0)),  # both know all
        (0.0, 0.0, 1.0, (0, 1, 0, 0)),  # only together
        (0.0, 1.0, 1.0, (0, 0, 0, 1)),  # a knows nothing that is needed
    ],
)
def test_pure_kinds_of_information_have_the_mass_of_their_name(a, b, together, masses):
    uni, paired = information_targets({"a": column(a), "b": column(b)}, column(together))["a"]
    low, high = KAPPA / (1 + KAPPA), 1.0
    assert uni.item() == pytest.approx(high if masses[0] or masses[2] else low, abs=FP64)
    assert paired.item() == pytest.approx(high if masses[1] or masses[2] else low, abs=FP64)
    error = share_error(torch.tensor([masses], dtype=torch.float64), (uni, paired))
    assert error.item() <= 2 * low**2 + FP64


def test_nobody_knowing_anything_keeps_gates_open():
    targets = information_targets({"a": column(0.0), "b": column(0.0)}, column(0.0))
    assert all(side.item() == 1.0 for target in targets.values() for side in target)


def test_an_absent_modality_knows_nothing_and_shares_nothing():
    presence = {"b": torch.tensor([True, False])}
    targets = information_targets({"a": column(0.8, 0.8), "b": column(0.8, 0.8)}, column(0.8, 0.8), presence)
    both, alone = targets["a"][1]
    assert both.item() == pytest.approx(1.0, abs=FP64)
    assert alone.item() == pytest.approx(KAPPA / (0.8 + KAPPA), abs=FP64)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_head_that_guesses_knows_nothing_and_one_that_is_told_knows_nearly_all(task):
    generator = torch.Generator().manual_seed(0)
    n, outputs = 600, 4
    if task == "classification":
        labels = torch.randint(outputs, (n,), generator=generator)
        told = 20 * torch.nn.functional.one_hot(labels, outputs).double()
    else:
        labels = torch.randn(n, outputs, generator=generator).double()
        labels = (labels > 1).double() if task == "multilabel" else labels
        told = 20 * (2 * labels - 1) if task == "multilabel" else labels + 0.01
    guess = torch.randn(n, outputs, generator=generator).double()
    heads = {"told": told, "guess": guess}
    calibration = Calibration(list(heads), task, outputs)
    calibration.fit(heads, labels, {})
    known = calibration.information(heads, labels)
    assert all(((0 <= i) & (i <= 1)).all() for i in known.values())
    assert known["told"].mean() > 0.95
    assert known["guess"].mean() < 0.15


def test_of_jointly_normal_variables_the_information_is_about_the_squared_correlation():
    generator = torch.Generator().manual_seed(0)
    signal, noise = torch.randn(2, 20000, 1, generator=generator).double()
    labels = 0.8**0.5 * signal + 0.2**0.5 * noise
    heads = {"head": 0.8**0.5 * signal}
    calibration = Calibration(["head"], "regression", 1)
    calibration.fit(heads, labels, {})
    assert calibration.temperature.item() == pytest.approx(0.2**0.5, abs=DEVIATION_OF_20000)
    assert 0.6 < calibration.information(heads, labels)["head"].mean() < 0.8


def test_calibration_without_rows_changes_nothing():
    calibration = Calibration(["head"], "classification", 3)
    calibration.fit({"head": torch.zeros(0, 3)}, torch.zeros(0, dtype=torch.int64), {})
    assert calibration.temperature.item() == 1.0
