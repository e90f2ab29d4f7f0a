"""Statistics come from present, valid values of the training split only, whatever the chunks; constants stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FP32, FP64, MEAN_OF_3000_FP64

from pgm_fast.data import FeatureSet, Loader, Normalizer, load
from pgm_fast.data import normalize as module
from pgm_fast.data.arrays import iterate_valid
from pgm_fast.errors import DataError


def drawn(seed: int) -> FeatureSet:
    rng = np.random.default_rng(seed)
    rows = 24
    scale = 10.0 ** rng.integers(-3, 4, 3)
    presence = rng.random((rows, 2)) < 0.7
    presence[~presence.any(axis=1), 0] = True
    presence[:3] = True
    features = FeatureSet(
        name="drawn",
        modalities={"v": rng.standard_normal((rows, 3)) * scale + 5 * scale, "s": rng.standard_normal((rows, 4, 2))},
        task="regression",
        labels=rng.standard_normal(rows),
        split=np.array(["train", "valid", "test"])[np.arange(rows) % 3],
        lengths={"s": rng.integers(1, 5, rows)},
        presence=presence,
    )
    outside = features.split != "train"
    for m, array in enumerate(features.modalities.values()):
        array[outside | ~presence[:, m]] = np.nan
    features.modalities["s"][np.arange(4) >= features.lengths["s"][:, None]] = np.nan
    return features


@given(seed=st.integers(0, 999), chunk=st.sampled_from([1, 50, 1 << 20]))
def test_only_present_valid_training_values_count(seed, chunk):
    features = drawn(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "iterate_valid", lambda *arguments: iterate_valid(*arguments, chunk_bytes=chunk))
        normalizer = Normalizer.fit(features)
    for name, array in features.modalities.items():
        values = array.reshape(-1, array.shape[-1])
        values = values[~np.isnan(values).any(axis=1)]
        np.testing.assert_allclose(normalizer.mean[name], values.mean(axis=0), rtol=FP64, atol=FP64)
        np.testing.assert_allclose(normalizer.scale[name], values.std(axis=0), rtol=FP64)
        result = normalizer.apply(name, values)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result.mean(axis=0, dtype=np.float64), 0, rtol=0, atol=FP32)


def test_a_constant_feature_has_scale_one_even_where_its_mean_rounds():
    rows = 3000
    values = np.stack([np.full(rows, 0.1), np.zeros(rows), np.full(rows, 1e7 / 3), np.arange(rows)], axis=1)
    features = FeatureSet("c", {"v": values}, "regression", np.zeros(rows), np.full(rows, "train"))
    normalizer = Normalizer.fit(features)
    assert normalizer.scale["v"][:3].tolist() == [1, 1, 1] and normalizer.scale["v"][3] > 1
    assert np.abs(normalizer.apply("v", values)[:, :3]).max() < MEAN_OF_3000_FP64


def test_a_small_change_on_a_large_offset_is_kept():
    rng = np.random.default_rng(0)
    values = 1e9 + rng.standard_normal((500, 1))
    features = FeatureSet("o", {"v": values}, "regression", np.zeros(500), np.full(500, "train"))
    result = Normalizer.fit(features).apply("v", values)
    np.testing.assert_allclose(result.std(dtype=np.float64), 1, rtol=FP32)


def test_the_state_goes_through_a_weights_only_file(tmp_path):
    normalizer = Normalizer.fit(drawn(0))
    torch.save(normalizer.state_dict(), tmp_path / "n.pt")
    again = Normalizer.from_state_dict(torch.load(tmp_path / "n.pt", weights_only=True))
    block = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    assert np.array_equal(normalizer.apply("v", block), again.apply("v", block))


def test_other_data_is_refused_by_name():
    normalizer = Normalizer.fit(drawn(0))
    with pytest.raises(DataError, match="'v' has 4 features; the normaliser was fitted on 3"):
        normalizer.apply("v", np.ones((2, 4)))
    with pytest.raises(DataError, match="'w' is unknown.*v, s"):
        normalizer.apply("w", np.ones((2, 4)))


@pytest.mark.parametrize("resident", ["always", "never"])
@pytest.mark.parametrize("stored", ["memory", "file"])
def test_gaps_are_filled_with_the_mean_after_standardising(tmp_path, resident, stored):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 3)) + 100
    gaps = rng.random((40, 3)) < 0.3
    gaps[gaps.all(axis=1)] = False
    arrays = {"x": np.where(gaps, np.nan, values), "label": np.arange(40) % 2, "split": np.arange(40) % 4 // 2}
    np.savez(tmp_path / "set.npz", **arrays)
    for key, array in arrays.items():
        np.save(tmp_path / f"{key}.npy", array)
    features = load(tmp_path / "set.npz" if stored == "memory" else tmp_path, nonfinite="zero")
    normalizer = Normalizer.fit(features)
    train = features.rows("train")
    held = np.ma.masked_array(values, gaps)
    np.testing.assert_allclose(normalizer.mean["x"], held[train].mean(axis=0), rtol=FP64)
    np.testing.assert_allclose(normalizer.scale["x"], held[train].std(axis=0), rtol=FP64)
    batch = next(Loader(features, "train", batch_size=40, normalizer=normalizer, resident=resident).batches(0))
    expected = np.where(gaps, 0, normalizer.apply("x", values))[train]
    assert np.array_equal(batch.inputs["x"].numpy(), expected)
