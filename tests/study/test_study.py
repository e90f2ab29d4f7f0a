"""A whole study of tiny cells: cached, taken up again, chosen on validation alone, failures named."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from tolerances import FP64, ROUNDED_7
from typer.testing import CliRunner

from pgm_fast.cli.app import app
from pgm_fast.errors import CheckpointError
from pgm_fast.study import read_study, run_study
from pgm_fast.study.cells import TrainJob, describe_data
from pgm_fast.train.features import load_features
from pgm_fast.train.run.lock import RunLock

TEXT = """
seeds: [0, 1]
common: {{train.epochs: 1, train.batch_size: 16, train.device: cpu, model.dim: 4, model.hidden: 4}}
sets:
  own: {{data.source: {source}}}
  random: {{data.source: {source}, data.resplit: all, methods: [joint, logistic]}}
  pairs: {{data.source: {source}, data.task: retrieval, methods: [joint, ensemble]}}
methods:
  joint: {{method: joint}}
  ensemble: {{method: ensemble}}
  logistic: {{method: logistic, space: {{C: [0.01, 1.0]}}}}
search: {{trials: 2, space: {{train.lr: [0.001, 0.01, 0.03]}}}}
test: {{missing: [0.0, 0.5], noise: [1.0]}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    rng, label = np.random.default_rng(0), np.arange(60) % 3
    audio = rng.normal(size=(60, 5)).astype(np.float32) + label[:, None]
    vision = rng.normal(size=(60, 4)).astype(np.float32)
    split = np.array(["train", "train", "train", "valid", "test"] * 12)
    np.savez(folder / "set.npz", audio=audio, vision=vision, label=label, split=split)
    (folder / "study.yaml").write_text(TEXT.format(source=folder / "set.npz"))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def finished(file):
    """(folder, exit status, what was printed)."""
    out = file.parent / "out"
    done = CliRunner().invoke(app, ["study", str(file), "--out", str(out)])
    return out, done.exit_code, done.output


def read(folder):
    return json.loads((folder / "study.json").read_text())


def test_what_cannot_be_trained_is_named_and_the_rest_is_there(finished):
    out, status, printed = finished
    result = read(out)
    assert status == 1 and result["missing"] == 0
    assert {one["cell"].split(",")[0] for one in result["failed"]} == {"ensemble on pairs"}
    assert all("task is retrieval" in one["error"] for one in result["failed"])
    found = {(cell["set"], cell["method"], cell["split"], cell["seed"]) for cell in result["cells"]}
    own = {("own", method, None, seed) for method in ("joint", "ensemble", "logistic") for seed in (0, 1)}
    random = {("random", method, seed, seed) for method in ("joint", "logistic") for seed in (0, 1)}
    assert found == own | random | {("pairs", "joint", None, seed) for seed in (0, 1)}
    assert "study.md" in printed and "ensemble on pairs" in (out / "study.md").read_text()
    assert not (out / "models").exists()


def test_all_seeds_of_a_split_share_what_was_chosen_and_tests_are_done_on_it(finished):
    result = read(finished[0])
    for row in ("joint", "ensemble", "logistic"):
        cells = [cell for cell in result["cells"] if cell["set"] == "own" and cell["method"] == row]
        assert cells[0]["trial"] == cells[1]["trial"]
        for cell in cells:
            assert list(cell["conditions"]) == ["missing", "noise audio", "noise vision"]
            nothing_hidden = cell["conditions"]["missing"]["0"]
            assert nothing_hidden["hidden"] == 0
            assert nothing_hidden["fused"]["accuracy"] == pytest.approx(
                cell["test"]["fused"]["accuracy"], rel=0, abs=ROUNDED_7
            )
            assert 0 < cell["conditions"]["missing"]["0.5"]["hidden"] <= 0.5


def test_a_second_call_trains_what_is_missing_and_nothing_else(file, finished):
    out, before = finished[0], read(finished[0])
    written = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    gone = out / next(cell["file"] for cell in before["cells"] if cell["method"] == "joint")
    content = json.loads(gone.read_text())
    gone.unlink()
    lines = []
    run_study(read_study(file), out, workers=1, progress=lines.append)
    trained = [line for line in lines if line.startswith("[") and "failed" not in line]
    assert len(trained) == 1
    assert {path for path in written if path.stat().st_mtime_ns != written[path]} == {gone}
    again = json.loads(gone.read_text())
    assert [again[key] for key in ("valid", "test", "settings")] == [
        content[key] for key in ("valid", "test", "settings")
    ]


def test_no_test_score_enters_a_choice(file, finished, tmp_path):
    """With other test scores in every cell, the trials and baselines that are chosen are the same."""
    before = read(finished[0])
    rng = np.random.default_rng(1)
    for path in (finished[0] / "cells").iterdir():
        content = json.loads(path.read_text())
        if "test" in content:
            content["test"]["fused"] = {key: rng.random() for key in content["test"]["fused"]}
        (tmp_path / "cells").mkdir(exist_ok=True)
        (tmp_path / "cells" / path.name).write_text(json.dumps(content))
    after = run_study(read_study(file), tmp_path, workers=0)
    chosen = [[(cell["file"], cell["trial"]) for cell in result["cells"]] for result in (before, after)]
    assert chosen[0] == chosen[1]
    assert [of["baseline"] for of in before["sets"].values()] == [of["baseline"] for of in after["sets"].values()]
    assert before["sets"]["own"]["methods"]["joint"]["test"] != after["sets"]["own"]["methods"]["joint"]["test"]


def test_a_study_without_results_says_so(file, tmp_path):
    result = run_study(read_study(file), tmp_path, workers=0)
    assert result["missing"] > 0 and result["cells"] == []
    assert "Not finished" in (tmp_path / "study.md").read_text()


def test_a_study_has_one_writer(file, finished):
    lock = RunLock(finished[0])
    lock.acquire()
    try:
        with pytest.raises(CheckpointError, match="is writing this study; wait until it ends"):
            run_study(read_study(file), finished[0], workers=0)
    finally:
        lock.release()


def test_differences_are_paired_by_split_and_seed(finished):
    result = read(finished[0])
    of = result["sets"]["own"]
    assert of["baseline"] in ("joint", "ensemble")
    scores = {
        row: [c["test"]["fused"]["accuracy"] for c in result["cells"] if c["set"] == "own" and c["method"] == row]
        for row in ("logistic", of["baseline"])
    }
    pairs = np.subtract(*scores.values())
    assert of["methods"]["logistic"]["difference"]["mean"] == pytest.approx(pairs.mean(), rel=FP64, abs=FP64)
    assert "difference" not in of["methods"][of["baseline"]]


def test_a_cell_is_the_same_whatever_other_methods_are_set_to_and_wherever_the_data_lies(file, tmp_path):
    def key(text, group=0):
        (tmp_path / "study.yaml").write_text(text)
        study = read_study(tmp_path / "study.yaml")
        group = list(study.groups())[group]
        cell = study.cell(group, 0, 0)
        return TrainJob(cell, describe_data(load_features(cell.config)), tmp_path).key

    text = file.read_text()
    shutil.copy(file.parent / "set.npz", tmp_path / "elsewhere.npz")
    assert key(text) == key(text.replace(str(file.parent / "set.npz"), str(tmp_path / "elsewhere.npz")))
    assert key(text) == key(text.replace("train.epochs: 1", "train.epochs: 1, pgm.uni_weight: 3, data.resident: never"))
    assert key(text) != key(text.replace("train.epochs: 1", "train.epochs: 2"))
    assert key(text) != key(text.replace("train.epochs: 1", "train.epochs: 1, baseline.rates: {shared: {head: 2}}"))
    assert key(text) != key(text.replace("train.epochs: 1", "train.epochs: 1, data.modalities: [vision, audio]"))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_it_in_one_line_with_what_is_there_kept(file, tmp_path):
    (tmp_path / "study.yaml").write_text(file.read_text().replace("train.epochs: 1", "train.epochs: 300"))
    command = [sys.executable, "-m", "pgm_fast", "study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests that run in the background of a shell were told to ignore it, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    first = process.stdout.readline()
    assert first.startswith("[1/"), first + process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 2
    assert re.fullmatch(r"error: stopped with [1-9]\d* of \d+ cells in [^\n]+; the same command goes on\n", errors)
    assert read(tmp_path / "out")["missing"] > 0
    assert len(list((tmp_path / "out" / "cells").glob("*.json"))) >= 1


def test_the_example_is_a_study(repository):
    study = read_study(repository / "examples" / "study.yaml")
    assert {group.method for group in study.groups()} == set(study.methods)
    assert {len(study.trials(group)) for group in study.groups()} == {study.search.trials}
