"""Data that changed in a single value is told from what a run was started with; files that did not change are not read
again, and the same values in another file are the same data."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgm_fast.data import MediaConfig, load
from pgm_fast.data.feature_set import FeatureSet
from pgm_fast.data.media import SpectrogramRows
from pgm_fast.errors import DataError
from pgm_fast.train import evaluate, fit
from pgm_fast.train.run import fingerprints
from pgm_fast.train.run.fingerprints import differences, fingerprint, require_same_data

ROWS = 300
LONG_AGO = 1e9  # seconds, as a file's time


def arrays(rng) -> dict:
    values = {"a": rng.normal(size=(ROWS, 6)), "b": rng.normal(size=(ROWS, 3, 4))}
    split = np.repeat(["train", "valid", "test"], [200, 50, 50])
    return {**{m: x.astype(np.float32) for m, x in values.items()}, "label": np.arange(ROWS) % 3, "split": split}


def write(path, content, kind) -> str:
    if kind == "npz":
        np.savez(path.with_suffix(".npz"), **content)
        return str(path.with_suffix(".npz"))
    path.mkdir(exist_ok=True)
    for name, array in content.items():
        np.save(path / f"{name}.npy", array)
        os.utime(path / f"{name}.npy", (LONG_AGO, LONG_AGO))
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "folder"])
@settings(max_examples=15)
@given(data=st.data())
def test_one_changed_value_anywhere_is_noticed_by_the_name_of_its_modality(tmp_path_factory, kind, data):
    content = arrays(np.random.default_rng(0))
    options = {"nonfinite": data.draw(st.sampled_from(["error", "zero"]))}
    folder = tmp_path_factory.mktemp("data")
    marks = fingerprint(load(write(folder / "one", content, kind), **options))
    name = data.draw(st.sampled_from("ab"))
    place = data.draw(st.integers(0, content[name].size - 1))
    content[name].flat[place] = np.nextafter(content[name].flat[place], np.float32(np.inf))
    assert differences(load(write(folder / "two", content, kind), **options), marks) == [f"modality {name}"]


def test_the_same_values_in_another_kind_of_file_are_the_same_data(tmp_path):
    content = arrays(np.random.default_rng(0))
    npz, folder = (load(write(tmp_path / kind, content, kind)) for kind in ("npz", "folder"))
    assert differences(folder, fingerprint(npz)) == differences(npz, fingerprint(folder)) == []


def test_classes_of_a_retrieval_set_are_part_of_it_and_older_runs_that_did_not_keep_them_go_on(tmp_path):
    content = arrays(np.random.default_rng(0))
    features = load(write(tmp_path / "one", content, "npz"), task="retrieval")
    marks = fingerprint(features)
    content["label"] = content["label"] % 2
    other = load(write(tmp_path / "two", content, "npz"), task="retrieval")
    assert differences(other, marks) == ["relevance"]
    assert differences(other, {key: value for key, value in marks.items() if key != "relevance"}) == []


@pytest.mark.parametrize("options", [{}, {"nonfinite": "zero"}, {"modalities": ["a"], "group_by": "clip"}])
def test_files_that_did_not_change_are_not_read_again(tmp_path, monkeypatch, options):
    content = {**arrays(np.random.default_rng(0)), "clip": np.arange(ROWS) // 10}
    content["split"] = np.repeat(["train", "valid", "test"], [200, 50, 50])
    source = write(tmp_path / "f", content, "folder")
    marks = fingerprint(load(source, **options))
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "_content", lambda array: pytest.fail("read again"))
        require_same_data(load(source, **options), marks)
    os.utime(tmp_path / "f" / "a.npy", (LONG_AGO + 1, LONG_AGO + 1))
    require_same_data(load(source, **options), marks)  # read again, and the same
    content["a"][7, 3] += 1
    write(tmp_path / "f", content, "folder")
    os.utime(tmp_path / "f" / "a.npy", (LONG_AGO + 2, LONG_AGO + 2))
    with pytest.raises(DataError, match="modality a differ"):
        require_same_data(load(source, **options), marks)


def test_a_file_that_changed_just_now_is_read_whatever_its_time_says(tmp_path):
    content = arrays(np.random.default_rng(0))
    source = write(tmp_path / "f", content, "folder")
    now = fingerprint(load(source))
    assert all(now["stamps"].values())
    os.utime(tmp_path / "f" / "a.npy")
    recent = fingerprint(load(source))
    assert recent["stamps"]["a"] is None and {**now, "stamps": 0} == {**recent, "stamps": 0}


def test_evaluating_a_run_notices_that_its_data_changed(tmp_path):
    content = arrays(np.random.default_rng(0))
    source = write(tmp_path / "d", content, "npz")
    small = {"train.epochs": 1, "model.dim": 4, "model.hidden": 4, "train.plots": False, "train.logger": []}
    fit(data=source, out=str(tmp_path / "run"), **small)
    content["b"][101] *= 2
    write(tmp_path / "d", content, "npz")
    with pytest.raises(DataError, match="modality b differ"):
        evaluate(tmp_path / "run")


def test_a_sound_file_that_changed_is_noticed(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.wav" for number in range(4)]
    for file in files:
        soundfile.write(file, rng.normal(size=800) * 0.1, 8000)
        os.utime(file, (LONG_AGO, LONG_AGO))

    def features() -> FeatureSet:
        rows = SpectrogramRows(files, MediaConfig(sample_rate=8000, n_fft=64, hop=32, max_steps=20))
        label, split = np.arange(4) % 2, np.array(["train", "train", "valid", "test"])
        return FeatureSet("sounds", {"sound": rows}, "classification", label, split)

    marks = fingerprint(features())
    require_same_data(features(), marks)
    soundfile.write(files[2], rng.normal(size=800) * 0.1, 8000)
    with pytest.raises(DataError, match="modality sound differ"):
        require_same_data(features(), marks)
