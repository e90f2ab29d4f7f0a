"""Whoever does as a message of a run says gets on: the command that it names is run, word for word."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pgm_fast.cli.app import app
from pgm_fast.train import fit

SETTINGS = ("train.epochs=2", "model.dim=4", "model.hidden=4", "train.plots=false", "train.tensorboard=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("a folder")  # commands must stand a space
    rng = np.random.default_rng(0)
    split = np.array(["train"] * 20 + ["valid"] * 10 + ["test"] * 10)
    values = {m: rng.normal(size=(40, 4)).astype(np.float32) for m in "ab"}
    np.savez(root / "d.npz", **values, label=np.arange(40) % 3, split=split)
    fit(data=str(root / "d.npz"), out=str(root / "run"), **dict(pair.split("=") for pair in SETTINGS))
    return root / "run"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "a run"))


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, " ".join(result.output.split())


def do_as_told(message: str) -> tuple[int, str]:
    """Run the first command of the message, up to where its sentence goes on."""
    found = re.search(r"pgm-fast ((?:resume|evaluate) (?:'[^']*'|\S+?)(?: --checkpoint \w+)?)(?=[`,;]| |$)", message)
    assert found, message
    return call(*shlex.split(found[1]))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_a_damaged_best_names_a_checkpoint_that_serves(run):
    damage(run / "checkpoints" / "best.pt")
    status, message = call("evaluate", run)
    assert status == 2 and "best.pt cannot be read" in message
    status, message = do_as_told(message)
    assert status == 0 and "last.pt" in message


def test_damaged_last_and_previous_name_the_best(run):
    for name in ("last.pt", "previous.pt"):
        damage(run / "checkpoints" / name)
    (run / "report.json").unlink()
    status, message = call("resume", run)
    assert status == 2 and "last.pt cannot be read" in message
    assert do_as_told(message)[0] == 0


def test_a_folder_that_holds_an_unfinished_run_is_gone_on_with(run):
    (run / "report.json").unlink()
    status, message = call("train", "--data", run.parent / "none.npz", "--out", run)
    assert status == 2 and "holds a started run" in message
    assert do_as_told(message)[0] == 0 and (run / "report.json").is_file()


@pytest.mark.parametrize("name", ["metrics.jsonl", "report.json"])
def test_a_file_that_is_no_json_is_written_anew(run, name):
    whole = (run / name).read_bytes()
    (run / name).write_bytes(b"{]\n" + whole)
    assert call("resume", run)[0] == 0
    if name == "metrics.jsonl":
        assert (run / name).read_bytes() == whole
    assert call("resume", run)[0] == 0


def test_a_configuration_that_was_edited_is_put_back_by_the_values_named(run):
    (run / "report.json").unlink()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("batch_size: 64", "batch_size: 8"))
    status, message = call("resume", run)
    assert status == 2
    now, then = re.search(r"train\.batch_size is (\d+) and was (\d+)", message).groups()
    (run / "config.yaml").write_text(text.replace(f"batch_size: {now}", f"batch_size: {then}"))
    assert call("resume", run)[0] == 0
