"""Folders, configurations and names that came from somebody else do nothing but what they say."""

from __future__ import annotations

import csv
import io
import os
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgm_fast import env
from pgm_fast.cli.export import write_predictions
from pgm_fast.errors import ConfigError
from pgm_fast.train import fit
from pgm_fast.train.run.files import write_csv
from pgm_fast.train.run.folder import PLOTS, RunFolder

FAST = {"train.epochs": 1, "train.logger": [], "model.dim": 8, "model.hidden": 8, "data.options": {"n": 60}}
FORMULA = tuple("=+-@＝＋－＠\t\r\n")  # noqa: RUF001


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
CELLS = st.builds(str.__add__, st.sampled_from(["", *FORMULA]), TEXT)


@given(st.lists(CELLS, min_size=1, max_size=4))
def test_no_cell_of_a_csv_is_a_formula(cells):
    file = io.StringIO(newline="")
    write_csv(file, cells, [cells])
    for row in csv.reader(io.StringIO(file.getvalue(), newline="")):
        for before, cell in zip(cells, row, strict=True):
            assert cell in (before, f"'{before}")
            if cell.startswith(FORMULA):
                float(cell)


def test_numbers_of_a_csv_stay_numbers():
    file = io.StringIO()
    write_csv(file, ["x"], [["-1.5"], ["+2"], ["-inf"], ["nan"], ["=1+1"], ["\0=1"]])
    assert file.getvalue().split() == ["x", "-1.5", "+2", "-inf", "nan", "'=1+1", "'\0=1"]


def test_an_id_is_no_formula_in_the_predictions(tmp_path):
    ids = np.array(["=cmd|'/c calc'!A0", "@SUM(1)", "-1", *(f"clip {k}" for k in range(57))])
    label, split = np.arange(60) % 2, np.array(["train", "train", "train", "valid", "test"] * 12)
    rng = np.random.default_rng(0)
    arrays = {m: rng.normal(size=(60, 4)).astype(np.float32) for m in ("a", "b")}
    np.savez(tmp_path / "data.npz", **arrays, id=ids, label=label, split=split)
    options = {key: value for key, value in FAST.items() if key != "data.options"}
    fit(method="joint", data=str(tmp_path / "data.npz"), out=str(tmp_path / "run"), **options, **{"train.plots": False})
    write_predictions(tmp_path / "run", tmp_path / "p.csv", data=None, split=None, checkpoint="best")
    with open(tmp_path / "p.csv", newline="") as file:
        written = {row["id"] for row in csv.DictReader(file)}
    assert {"'=cmd|'/c calc'!A0", "'@SUM(1)", "-1", "clip 0"} <= written


def test_overwriting_removes_what_the_run_has_written_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    fit(method="pgm", data="synthetic", out=str(out), **{**FAST, "train.logger": ["tensorboard"]})
    assert {path.name for path in (out / "plots").iterdir()} <= set(PLOTS)
    kept = [
        out / "checkpoints" / "llama.bin",
        out / "plots" / "paper.png",
        out / "notes.txt",
        out / "tensorboard" / "x",
    ]
    for path in kept:
        path.write_text("mine")
    RunFolder(out).claim(overwrite=True)
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(kept)


@pytest.mark.parametrize(
    "text",
    [
        "name: another project\n",
        "{}\n",
        "train: {epochs: 5}\n",
        "out: here\nenvironment: conda\n",
        "environment: {versions: {torch: '2'}}\n",
    ],
)
def test_a_folder_that_no_run_has_written_is_not_overwritten(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match="not of a run of this program.*nothing of them is removed"):
        RunFolder(tmp_path).claim(overwrite=True)
    assert (tmp_path / "report.json").exists()


def git(folder, *arguments):
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", folder, *settings, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository_of_a_stranger(tmp_path):
    """A repository whose configuration names a program that git would run, which leaves a file."""
    folder, owned = tmp_path / "repository", tmp_path / "owned"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    program = folder / ".git" / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {owned}\n")
    program.chmod(0o755)
    git(folder, "config", "core.fsmonitor", str(program))
    return folder, owned


@pytest.mark.parametrize("form", ["branch", "packed", "detached", "worktree"])
def test_the_commit_is_read_without_running_anything(repository_of_a_stranger, form, tmp_path):
    folder, owned = repository_of_a_stranger
    commit = (folder / ".git" / "refs" / "heads").iterdir().__next__().read_text().strip()
    if form == "packed":
        git(folder, "pack-refs", "--all")
    if form == "detached":
        (folder / ".git" / "HEAD").write_text(f"{commit}\n")
    if form == "worktree":
        git(folder, "-c", "core.fsmonitor=false", "worktree", "add", "-q", str(tmp_path / "tree"))
        folder = tmp_path / "tree"
    owned.unlink(missing_ok=True)
    (folder / "deep").mkdir()
    assert env.checked_out(folder / "deep") == commit
    assert not owned.exists()


@pytest.mark.parametrize("head", ["", "ref: refs/heads/../../../../etc/passwd", "ref: /etc/passwd", "x" * 100])
def test_a_strange_head_is_no_commit(tmp_path, head):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert env.checked_out(tmp_path) is None


def test_training_inside_of_a_strangers_repository_runs_nothing_of_it(repository_of_a_stranger, monkeypatch):
    folder, owned = repository_of_a_stranger
    monkeypatch.chdir(folder)
    owned.unlink(missing_ok=True)
    fit(method="joint", data="synthetic", out=os.path.join(folder, "run"), **FAST, **{"train.plots": False})
    assert not owned.exists()
