"""The synthetic sets hold the interactions they claim: bits are read back from vectors, and information is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tolerances import FP32, FP64, PLUG_IN_INFORMATION, frequency

from pgm_fast.data import Loader, draw, generate, load
from pgm_fast.errors import DataError

LOG2 = math.log(2)


def information(values: np.ndarray, label: np.ndarray) -> float:
    """Mutual information in nats between the rows of a discrete array and the label, from counts."""
    _, code = np.unique(values, axis=0, return_inverse=True)
    joint = np.histogram2d(code, label, bins=(code.max() + 1, 2))[0] / len(label)
    outer = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum())


@pytest.mark.parametrize("modalities", [2, 3])
def test_bits_carry_the_information_that_the_truth_states(modalities):
    drawn = draw(kind="mixture", n=30000, modalities=modalities, seed=3)
    label = drawn.features.labels
    for name in np.unique(drawn.interaction):
        rows = drawn.interaction == name
        single = [information(drawn.bits[rows, m : m + 1], label[rows]) for m in range(modalities)]
        together = information(drawn.bits[rows], label[rows])
        redundancy, synergy = drawn.redundancy[rows][0], drawn.synergy[rows][0]
        expected = drawn.uniqueness[rows][0] + redundancy
        assert np.abs(np.array(single) - expected).max() < PLUG_IN_INFORMATION
        assert abs(together - (redundancy + drawn.uniqueness[rows][0].sum() + synergy)) < PLUG_IN_INFORMATION
        if modalities == 3 and name == "xor":
            pairs = [information(np.delete(drawn.bits[rows], m, axis=1), label[rows]) for m in range(3)]
            assert max(pairs) < PLUG_IN_INFORMATION
    total = drawn.redundancy + drawn.uniqueness.sum(axis=1) + drawn.synergy
    assert np.allclose(total, LOG2, rtol=0, atol=FP64)


@pytest.mark.parametrize(("kind", "name"), [("copy", "copy"), ("private", "private_b"), ("xor", "xor")])
def test_single_kinds_hold_one_interaction(kind, name):
    drawn = draw(kind=kind, n=200, private=1, dim=1)
    assert set(drawn.interaction) == {name}


@pytest.mark.parametrize("sequence", [False, True])
def test_the_vectors_hold_the_bits_and_the_kind(sequence):
    drawn = draw(kind="mixture", n=3000, noise=0.0, imbalance=[1.0, 0.5], sequence=sequence, steps=3)
    for m, (name, strength) in enumerate((("a", 1.0), ("b", 0.5))):
        values = drawn.features.modalities[name][:, 0] if sequence else drawn.features.modalities[name]
        assert np.allclose(np.linalg.norm(values, axis=1), strength, rtol=0, atol=FP32)
        for interaction in np.unique(drawn.interaction):
            rows = drawn.interaction == interaction
            means = [values[rows & (drawn.bits[:, m] == bit)].mean(axis=0, dtype=np.float64) for bit in (0, 1)]
            assert np.allclose(means[0], -means[1], rtol=0, atol=FP32)
            other = values[~rows] @ means[0]
            assert np.abs(other).max() < FP32


def test_the_best_detector_errs_as_often_as_stated():
    drawn = draw(kind="copy", n=40000, dim=4, noise=0.8, imbalance=2.0, seed=1)
    for m, array in enumerate(drawn.features.modalities.values()):
        direction = array[drawn.bits[:, m] == 1].mean(axis=0)
        wrong = ((array @ direction > 0) != drawn.bits[:, m]).mean()
        p = drawn.bit_error[m]
        assert abs(wrong - p) < frequency(p, 40000)


def test_missing_modalities_are_zero_never_all_and_at_the_rate():
    features = generate(n=5000, missing=0.3, modalities=3)
    assert features.presence.any(axis=1).all()
    rate = 0.3 - 0.3**3 / 3  # where all three would be absent, one is kept
    assert abs((~features.presence).mean() - rate) < frequency(rate, 15000)
    for m, array in enumerate(features.modalities.values()):
        assert (array[~features.presence[:, m]] == 0).all() and (array[features.presence[:, m]] != 0).any()


def test_a_seed_says_everything_and_the_source_gives_the_same():
    options = {"kind": "mixture", "n": 100, "missing": 0.2, "sequence": True, "seed": 7}
    one, two, other = generate(**options), load("synthetic", options=options), generate(**{**options, "seed": 8})
    for name in one.modalities:
        assert np.array_equal(one.modalities[name], two.modalities[name])
        assert not np.array_equal(one.modalities[name], other.modalities[name])
    assert np.array_equal(one.labels, two.labels) and np.array_equal(one.presence, two.presence)
    batch = next(Loader(two, "train", batch_size=8).batches(0))
    assert batch.inputs["a"].ndim == 3 and set(batch.lengths) == {"a", "b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "or"}, "unknown kind 'or'.*mean xor"),
        ({"modalities": 4}, "modalities=4; 2 or 3"),
        ({"n": 2}, "n=2"),
        ({"n": "many"}, "n='many'"),
        ({"dim": 2}, "dim=2 is too small for 4 kinds"),
        ({"noise": -1}, "noise=-1"),
        ({"missing": 1.0}, "missing=1.0"),
        ({"imbalance": 0.0}, "imbalance=0.0"),
        ({"imbalance": [1.0]}, "2 strengths"),
        ({"imbalance": "much"}, "imbalance='much'"),
        ({"seed": -1}, "seed=-1"),
        ({"proportions": {"copy": 0}}, "proportions"),
        ({"private": 2}, "private=2"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(DataError, match=message):
        load("synthetic", options=options)
