"""What may be relied on when something is wrong: one line says what would be right and nothing is lost."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pgm_fast.cli.app import app

SMALL = [
    "train.epochs=1",
    "train.batch_size=16",
    "train.plots=false",
    "train.logger=[]",
    "train.device=cpu",
    "model.dim=8",
    "model.hidden=8",
]


def arrays(**changes):
    """A small classification set of two modalities; None drops an array."""
    rng = np.random.default_rng(0)
    label = np.arange(48) % 3
    values = {
        "audio": rng.normal(size=(48, 5)).astype(np.float32) + label[:, None],
        "vision": rng.normal(size=(48, 4)).astype(np.float32),
        "label": label,
        "split": np.array(["train", "train", "valid", "test"] * 12),
    }
    values.update(changes)
    return {key: value for key, value in values.items() if value is not None}


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(result, *words):
    """One line on stderr that holds every word, status 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    for word in words:
        assert str(word) in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "features.npz"
    np.savez(path, **arrays())
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "features.npz", **arrays())
    result = invoke("train", "--data", folder / "features.npz", "--out", folder / "run", "--quiet", *SMALL)
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    for name, data in contents(finished).items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(data)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epohs=3"], ["'train.epohs'", "did you mean train.epochs?", "section train takes epochs"]),
        (["epochs"], ["'epochs'", "key=value", "train.epochs=5"]),
        (["train.lr=fast"], ["train.lr='fast'", "a number"]),
        (["method=pmg"], ["method='pmg'", "did you mean pgm?", "joint"]),
        (["--seeds", "0,1,x"], ["--seeds '0,1,x'", "--seeds 0 1 2"]),
        (["--seeds", "1", "1"], ["--seeds '1,1'"]),
        (["--seed", "-1"], ["train.seed=-1"]),
        (["--config", "nosuch.yaml"], ["nosuch.yaml", "does not exist"]),
        (["--device", "tpu"], ["train.device='tpu'", "auto, cpu, cuda"]),
        (["pgm.rates.nosuch.uni=2"], ["nosuch", "audio", "vision"]),
        (["pgm.rates.audio.nosuch=2"], ["nosuch", "encoder"]),
        (["data.label=labels_typo"], ["labels_typo"]),
        (["data.modalities=[audio,nosuch]"], ["nosuch", "audio", "vision"]),
    ],
)
def test_a_wrong_configuration(source, tmp_path, overrides, words):
    before = contents(tmp_path)
    assert_refused(invoke("train", "--data", source, "--out", tmp_path / "out", *SMALL, *overrides), *words)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision": np.zeros((47, 4), np.float32)}, ["vision", "47", "48"]),
        ({"label": np.where(np.arange(48) == 5, -1, np.arange(48) % 3)}, ["label", "row 5", "-1"]),
        ({"label": np.arange(47) % 3}, ["label", "47", "48"]),
        ({"audio": np.where(np.eye(48, 5, dtype=bool), np.nan, 1).astype(np.float32)}, ["audio", "row 0", "NaN"]),
        (
            {"audio": np.where(np.eye(48, 5, k=-7, dtype=bool), -np.inf, 1).astype(np.float32)},
            ["audio", "row 7", "-inf"],
        ),
        ({"split": np.array(["train", "valid", "holdout", "test"] * 12)}, ["split", "holdout"]),
        ({"audio": None, "vision": None}, ["features.npz"]),
    ],
)
def test_unusable_features(tmp_path, changes, words):
    source = tmp_path / "features.npz"
    np.savez(source, **arrays(**changes))
    before = contents(tmp_path)
    assert_refused(invoke("train", "--data", source, "--out", tmp_path / "out", *SMALL), source, *words)
    checked = invoke("check-data", source)
    assert checked.exit_code == 1
    for word in words:
        assert word in checked.stdout
    assert contents(tmp_path) == before


def test_check_data_names_every_problem_at_once(tmp_path):
    source = tmp_path / "features.npz"
    bad = np.full((48, 4), np.nan, np.float32)
    np.savez(source, **arrays(audio=np.zeros((40, 5), np.float32), vision=bad, label=np.full(48, -3)))
    checked = invoke("check-data", source)
    assert checked.exit_code == 1
    for word in ("audio", "vision", "label"):
        assert any(line.startswith("error:") and word in line for line in checked.stdout.splitlines()), checked.stdout


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", None], ids=["empty", "damaged", "missing"])
@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pkl", ".safetensors"])
def test_a_missing_or_damaged_file(tmp_path, suffix, content):
    source = tmp_path / f"features{suffix}"
    if content is not None:
        source.write_bytes(content)
    before = contents(tmp_path)
    assert_refused(invoke("train", "--data", source, "--out", tmp_path / "out", *SMALL), source)
    assert invoke("check-data", source).exit_code == 1
    assert contents(tmp_path) == before


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, suffix):
    proof, source = tmp_path / "executed", tmp_path / f"features{suffix}"
    payload = {"train": {"text": Bomb(proof)}}
    if suffix == ".pkl":
        source.write_bytes(pickle.dumps(payload))
    else:
        torch = pytest.importorskip("torch")
        torch.save(payload, source)
    assert_refused(invoke("train", "--data", source, "--out", tmp_path / "out", *SMALL), source)
    assert invoke("check-data", source).exit_code == 1
    assert not proof.exists()
    # The file would have run under the standard unpickler: the test can fail.
    if suffix == ".pkl":
        pickle.loads(source.read_bytes())
        assert proof.exists()


def test_a_malicious_checkpoint_is_refused_and_never_run(run, tmp_path):
    torch = pytest.importorskip("torch")
    proof, best = tmp_path / "executed", run / "checkpoints" / "best.pt"
    torch.save({"format": "pgm_fast.checkpoint.1", "model": Bomb(proof)}, best)
    assert_refused(invoke("evaluate", run), best)
    assert not proof.exists()


@pytest.mark.parametrize("keep", [0, 1, 0.5])
@pytest.mark.parametrize("command", ["resume", "evaluate", "predict"])
def test_a_truncated_checkpoint(run, tmp_path, command, keep):
    damaged = run / "checkpoints" / ("last.pt" if command == "resume" else "best.pt")
    data = damaged.read_bytes()
    damaged.write_bytes(data[: int(keep * len(data))] if keep != 1 else data[:-1])
    if command == "resume":
        (run / "report.json").unlink()
        (run / "checkpoints" / "previous.pt").unlink()  # else it would serve
    before = contents(tmp_path)
    more = ["--out", tmp_path / "predictions.csv"] if command == "predict" else []
    assert_refused(invoke(command, run, *more), damaged)
    assert contents(tmp_path) == before


def test_a_folder_that_is_no_run(tmp_path):
    for command in (["resume"], ["evaluate"], ["predict", "--out", tmp_path / "p.csv"]):
        assert_refused(invoke(command[0], tmp_path / "nothing", *command[1:]), tmp_path / "nothing", "config.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten_unless_asked(run, source, tmp_path):
    before = contents(run)
    assert_refused(invoke("train", "--data", source, "--out", run, *SMALL), run, "resume", "--overwrite")
    assert contents(run) == before


def test_a_prediction_file_of_unknown_kind(run, tmp_path):
    assert_refused(invoke("predict", run, "--out", tmp_path / "p.txt"), "'.txt'", ".npz or .csv")


def test_other_data_of_another_shape(run, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, **arrays(vision=np.zeros((48, 9), np.float32)))
    assert_refused(invoke("evaluate", run, "--data", other), "vision", "9", "4")
    np.savez(other, **arrays(vision=None))
    assert_refused(invoke("evaluate", run, "--data", other), "vision")


def fail_with_no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_can_go_on(source, tmp_path, monkeypatch):
    """The last checkpoint that found room is kept, and with room again the run ends as it would have."""
    settings = ["--data", source, *SMALL, "train.epochs=3"]
    whole = tmp_path / "whole"
    assert invoke("train", "--out", whole, *settings).exit_code == 0
    import torch

    saves = []
    write = torch.save

    def save(state, file):
        saves.append(state)
        if len(saves) > 4:
            file.write(b"the first part of a checkpoint")
            fail_with_no_space()
        write(state, file)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        result = invoke("train", "--out", out, "--quiet", *settings)
    assert_refused(result, "No space left on device", out / "checkpoints")
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    assert invoke("evaluate", out).exit_code == 0
    assert invoke("resume", out).exit_code == 0
    first, second = (torch.load(folder / "checkpoints" / "best.pt")["model"] for folder in (whole, out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_full_disk_keeps_an_older_prediction_file(run, tmp_path, monkeypatch):
    out = tmp_path / "predictions.csv"
    assert invoke("predict", run, "--out", out).exit_code == 0
    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", fail_with_no_space)
    assert_refused(invoke("predict", run, "--out", out), "No space left on device", out)
    assert contents(tmp_path) == before


def test_debug_shows_the_traceback(tmp_path):
    result = invoke("evaluate", tmp_path / "nothing", "--debug")
    assert result.exit_code != 0 and type(result.exception).__name__ == "CheckpointError"


def test_a_fault_of_ours_keeps_its_traceback(tmp_path, monkeypatch):
    import pgm_fast.env

    monkeypatch.setattr(pgm_fast.env, "doctor", lambda: 1 / 0)
    assert isinstance(invoke("doctor").exception, ZeroDivisionError)


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_real_process_whose_files_cannot_grow(source, tmp_path):
    """The kernel itself refuses (EFBIG): one line on stderr, status 2, and no part of a checkpoint is left."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    command = [
        sys.executable,
        "-m",
        "pgm_fast",
        "train",
        "--data",
        source,
        "--out",
        tmp_path / "out",
        "--quiet",
        *SMALL,
    ]
    done = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"error: [^\n]*File too large[^\n]*\n", done.stderr), done.stderr
    assert not list((tmp_path / "out").rglob("*.pt")) and not list((tmp_path / "out").rglob("*.tmp"))
