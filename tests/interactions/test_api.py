"""Estimates on known interactions, on what data may look like, and on trained runs."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import FP64, KNOWN_INTERACTION

from pgm_fast.data import FeatureSet, draw
from pgm_fast.errors import ConfigError, DataError
from pgm_fast.interactions import Settings, estimate, estimate_run
from pgm_fast.interactions.association import pearson, spearman
from pgm_fast.interactions.vectors import principal_components, rows_of
from pgm_fast.train import fit

LOG2 = math.log(2)
QUICK = Settings(epochs=3, resamples=50, hidden=16)
FAST_RUN = {"train.epochs": 2, "train.plots": False, "train.logger": [], "model.dim": 8, "model.hidden": 8}


@pytest.mark.parametrize(
    ("options", "truth"),
    [
        ({"kind": "xor"}, (0, 0, 0, LOG2)),
        ({"kind": "copy"}, (LOG2, 0, 0, 0)),
        ({"kind": "private", "private": 1}, (0, 0, LOG2, 0)),
    ],
)
def test_known_interactions_are_found_with_the_defaults(options, truth):
    found = estimate(draw(**options, n=1500, dim=8, seed=1).features, split="test", device="cpu")
    assert np.abs(np.subtract(found.pairs["a+b"].means, truth)).max() < KNOWN_INTERACTION


def test_a_file_as_the_lsmi_authors_keep_it_is_measured_as_it_is(tmp_path):
    """Their two parts, train and val; val is what is answered for, by models that have seen train alone."""
    drawn = draw(kind="copy", n=300, dim=4, seed=2).features
    content = {}
    for part, rows in (("train", drawn.split != "test"), ("val", drawn.split == "test")):
        for number, name in enumerate(drawn.modalities, start=1):
            content[f"{part}_modal_{number}_features"] = torch.from_numpy(drawn.modalities[name][rows])
        content[f"{part}_targets"] = torch.from_numpy(drawn.labels[rows])
    torch.save(content, tmp_path / "features.pt")
    found = estimate(tmp_path / "features.pt", split="test", device="cpu")
    pair = found.pairs["modal_1+modal_2"]
    assert pair.modalities == ("modal_1", "modal_2")
    assert np.array_equal(found.labels, content["val_targets"].numpy())
    assert np.abs(np.subtract(pair.means, (LOG2, 0, 0, 0))).max() < KNOWN_INTERACTION


@pytest.fixture(scope="module")
def whole():
    """Every row of a set of three modalities, some of them absent."""
    features = draw(n=150, modalities=3, missing=0.2, dim=6).features
    return features, estimate(features, settings=QUICK, device="cpu")


def test_every_row_that_has_both_modalities_has_values_in_every_pair(whole):
    features, found = whole
    assert list(found.pairs) == ["a+b", "a+c", "b+c"] and np.array_equal(found.index, np.arange(150))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        name = "abc"[first] + "+" + "abc"[second]
        both = features.presence[:, first] & features.presence[:, second]
        pair = found.pairs[name]
        assert all(np.array_equal(np.isfinite(values), both) for values in pair.values)
        assert pair.rows == both.sum()
        information = [found.information[view] for view in ("abc"[first], "abc"[second], name)]
        first_alone = (pair.values.redundancy + pair.values.uniqueness_1)[both]
        assert np.allclose(first_alone, information[0][both], rtol=0, atol=FP64)
        assert np.allclose(sum(pair.values)[both], information[2][both], rtol=0, atol=FP64)
        means = [np.nanmean(values) for values in pair.values]
        assert np.allclose(means, pair.means, rtol=0, atol=FP64)


def test_a_seed_gives_the_same_again(whole):
    features, found = whole
    again = estimate(features, settings=QUICK, device="cpu")
    other = estimate(features, settings=replace(QUICK, seed=1), device="cpu")
    assert np.array_equal(found.information["a+b"], again.information["a+b"], equal_nan=True)
    assert found.pairs["a+b"].intervals == again.pairs["a+b"].intervals
    assert not np.array_equal(found.information["a+b"], other.information["a+b"], equal_nan=True)


def test_the_folder_holds_what_was_found(whole, tmp_path):
    features, found = whole
    named = replace(found, ids=np.array([f"clip|{row}" for row in range(150)]))
    paths = named.write(tmp_path / "out")
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "out").iterdir())
    arrays = np.load(tmp_path / "out" / "interactions.npz")
    with open(tmp_path / "out" / "interactions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    synergy = found.pairs["a+b"].values.synergy
    assert np.array_equal(arrays["a+b.synergy"], synergy, equal_nan=True)
    assert [row["id"] for row in table] == list(arrays["id"]) == list(named.ids)
    assert [row["a+b.synergy"] == "" for row in table] == list(np.isnan(synergy))
    written = json.loads((tmp_path / "out" / "interactions.json").read_text())
    pair = written["pairs"]["a+b"]
    assert pair["mean"] == dict(zip(pair["mean"], found.pairs["a+b"].means, strict=True))
    assert pair["shift"] == found.pairs["a+b"].shift and written["settings"] == QUICK.to_dict()
    by_class = [values["synergy"] for values in pair["mean_by_class"].values()]
    counts = [np.isfinite(synergy[features.labels == label]).sum() for label in (0, 1)]
    assert np.average(by_class, weights=counts) == pytest.approx(pair["mean"]["synergy"], rel=0, abs=FP64)
    page = (tmp_path / "out" / "interactions.md").read_text()
    listed = page.split("### Most synergistic")[1].split("###")[0]
    assert f"clip\\|{np.nanargmax(synergy)} |" in listed and f"clip\\|{np.nanargmin(synergy)} |" not in listed


def test_sequences_are_means_over_valid_steps():
    features = draw(n=20, sequence=True, steps=5, dim=6).features
    rows = rows_of(features)
    for name, array in features.modalities.items():
        expected = [array[row, : features.lengths[name][row]].mean(axis=0, dtype=np.float64) for row in range(20)]
        assert np.array_equal(rows.values[name], np.array(expected, np.float32))


def test_labelled_steps_are_rows_of_their_own():
    steps = np.array([2, 3, 1, 2])
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    labels = np.arange(12).reshape(4, 3) % 2
    values = "steps", {"a": x, "b": -x}, "classification", labels, np.array(["train"] * 4)
    lengths = {"lengths": {"a": steps, "b": steps}, "step_lengths": steps}
    features = FeatureSet(*values, **lengths, ids=np.array(list("wxyz")), num_classes=2)
    rows = rows_of(features)
    expected = [(sample, step) for sample in range(4) for step in range(steps[sample])]
    assert list(rows.ids) == [f"{'wxyz'[sample]}/{step}" for sample, step in expected]
    assert np.array_equal(rows.values["a"], np.array([x[at] for at in expected]))
    assert np.array_equal(rows.labels, [labels[at] for at in expected])


def test_wide_modalities_are_reduced_for_the_density_alone():
    x = torch.randn(50, 12, dtype=torch.float64).float() @ torch.randn(12, 12)
    fit_rows = np.arange(30)
    found = principal_components(x, fit_rows, 4)
    seen = found[:30].double()
    covariance = seen.T @ seen / 30 - seen.mean(0).outer(seen.mean(0))
    assert found.shape == (50, 4)
    assert (covariance - torch.eye(4, dtype=torch.float64)).abs().max() < KNOWN_INTERACTION
    assert principal_components(x, fit_rows, 12) is x


def test_other_tasks_and_data_are_refused_by_name():
    features = draw(n=60).features
    regression = replace(features, task="regression", labels=np.linspace(0, 1, 60, dtype=np.float32), num_classes=None)
    with pytest.raises(DataError, match="is a regression set; interactions are estimated for integer class labels"):
        estimate(regression)
    with pytest.raises(DataError, match="has one modality, a"):
        estimate(replace(features, modalities={"a": features.modalities["a"]}))
    with pytest.raises(ConfigError, match="split is 'dev'"):
        estimate(features, split="dev")
    with pytest.raises(ConfigError, match="label say how a source is read"):
        estimate(features, label="y")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 1}, "folds is 1"),
        ({"rule": "best"}, "entropy, information"),
        ({"level": 1.0}, "level"),
        ({"prior": "flat"}, "uniform, empirical"),
        ({"dropout": 1.0}, "dropout"),
        ({"density_rate": 0.0}, "density_rate"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**values)


def test_uneven_classes_are_warned_of_and_counted_on_request(caplog):
    features = draw(kind="private", n=400, noise=30.0, dim=4).features
    keep = (features.labels == 0) | (np.arange(400) % 8 == 0)
    features = replace(
        features,
        modalities={name: values[keep] for name, values in features.modalities.items()},
        labels=features.labels[keep],
        split=features.split[keep],
    )
    uniform = estimate(features, split="test", settings=QUICK, device="cpu")
    assert "classes are uneven" in caplog.text
    empirical = estimate(features, split="test", settings=replace(QUICK, prior="empirical"), device="cpu")
    share = (np.bincount(features.labels[features.split == "train"]) + 1) / ((features.split == "train").sum() + 2)
    offset = (np.log(2) + np.log(share))[empirical.labels]
    assert np.allclose(uniform.information["a"] - empirical.information["a"], offset, rtol=0, atol=FP64)


def test_correlations_against_plain_formulas():
    a, b = np.array([1.0, 2, 2, 5, 9]), np.array([3.0, 1, 4, 4, 8])
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], rel=0, abs=FP64)
    ranks = np.corrcoef([1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5])[0, 1]
    assert spearman(a, b) == pytest.approx(ranks, rel=0, abs=FP64)
    assert pearson(a, np.ones(5)) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    options = {"kind": "mixture", "n": 200, "missing": 0.1}
    fit(method="pgm", data="synthetic", out=str(out), **FAST_RUN, **{"data.options": options, "pgm.gate": "single"})
    return out


@pytest.mark.parametrize("measured_on", ["learned", "inputs"])
def test_a_run_is_measured_and_its_shares_are_compared(run, measured_on):
    found = estimate_run(run, measured_on=measured_on, settings=QUICK, device="cpu")
    assert set(found.splits) == {"test"} and found.run == str(run)
    assert sorted(found.association) == ["a.paired", "a.uni", "b.paired", "b.uni"]
    pair = found.pairs["a+b"]
    for share in ("a", "b"):
        paired, uni = (found.association[f"{share}.{part}"]["a+b"]["synergy"] for part in ("paired", "uni"))
        assert paired["rows"] == pair.rows
        # the two shares of a modality add up to 1
        assert paired["pearson"] == pytest.approx(-uni["pearson"], rel=0, abs=KNOWN_INTERACTION)


def test_a_method_without_features_says_what_to_measure(tmp_path):
    fit(method="joint", data="synthetic", out=str(tmp_path / "run"), **FAST_RUN, **{"data.options": {"n": 60}})
    with pytest.raises(ConfigError, match="measure its inputs"):
        estimate_run(tmp_path / "run")
