"""A run that is interrupted, however it is interrupted, ends as one that never was: bitwise, clocks aside."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from same_run import assert_same_run

from pgm_fast.errors import CheckpointError, ConfigError, DataError, PgmFastError
from pgm_fast.train import Config, fit, jobs, loop, resume
from pgm_fast.train.configure import make_config, to_yaml
from pgm_fast.train.step.guard import UpdateGuard

STEPS = 6  # per epoch
EPOCHS = 3

SETTINGS = {
    "method": "pgm",
    "model.dim": 8,
    "model.hidden": 8,
    "model.dropout": 0.3,
    "data.modality_dropout": 0.3,
    "train.epochs": EPOCHS,
    "train.batch_size": 16,
    "train.lr": 0.01,
    "train.device": "cpu",
    "train.threads": 1,
    "train.plots": False,
    "train.logger": [],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    rng = np.random.default_rng(0)
    label = np.arange(150) % 3
    arrays = {m: (rng.normal(size=(150, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    split = np.array(["train"] * 90 + ["valid"] * 30 + ["test"] * 30)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **arrays, label=label, split=split)
    return str(path)


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(data=source, out=str(out), **SETTINGS)
    return out


def stop_at(monkeypatch, update: int, number=signal.SIGTERM):
    """Send this process a signal while update ``update`` (counted from 1) runs."""
    original, count = UpdateGuard.update, [0]

    def with_signal(self, *args, **kwargs):
        count[0] += 1
        if count[0] == update:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(UpdateGuard, "update", with_signal)


@pytest.mark.parametrize("update", [1, 4, STEPS, STEPS + 1, STEPS * EPOCHS])
def test_a_signal_writes_last_and_exits_0_with_the_command_that_goes_on(
    source, reference, tmp_path, monkeypatch, capsys, update
):
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        stop_at(patch, update, signal.SIGINT if update == 4 else signal.SIGTERM)
        fit(data=source, out=str(out), **SETTINGS)
    assert stopped.value.code == 0
    assert f"pgm-fast resume {out}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    position = torch.load(out / "checkpoints" / "last.pt", weights_only=True)["position"]
    assert position["epoch"] * STEPS + position["step"] == update
    assert not (out / "report.json").exists()
    resume(out)
    assert_same_run(out, reference)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_process_that_torchrun_starts_anew_goes_on_from_the_last_checkpoint(
    source, reference, tmp_path, monkeypatch, overwrite
):
    out, updates = tmp_path / "run", []
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, STEPS + 2)
        fit(data=source, out=str(out), **SETTINGS)
    original = UpdateGuard.update
    monkeypatch.setattr(UpdateGuard, "update", lambda *a, **k: updates.append(1) or original(*a, **k))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ConfigError, match="holds a started run"):
        fit(data=source, out=str(out), **SETTINGS | {"train.lr": 0.5})  # another run than the one that died
    fit(data=source, out=str(out), overwrite=overwrite, **SETTINGS)
    assert len(updates) == STEPS * EPOCHS - STEPS - 2
    assert_same_run(out, reference)


def test_a_run_interrupted_again_and_again_is_still_the_same(source, reference, tmp_path, monkeypatch):
    out, calls = tmp_path / "run", 0
    while not (out / "report.json").exists():
        with monkeypatch.context() as patch:
            stop_at(patch, 5)
            try:
                resume(out) if calls else fit(data=source, out=str(out), **SETTINGS)
            except SystemExit:
                calls += 1
    assert calls == STEPS * EPOCHS // 5
    assert_same_run(out, reference)


# method -> settings, and updates per batch
BALANCING = {
    "ogm": ({"ogm.last_epoch": 1, "train.optimizer": "sgd"}, 1),
    "pretrained": ({"pretrained.alone_epochs": 1}, 1),
    "umt": ({"umt.alone_epochs": 1}, 1),
    "mla": ({}, 2),
    "mmpareto": ({}, 1),
    "mcr": ({"mcr.alone_epochs": 1, "mcr.bottleneck_weight": 0.1}, 1),
}


@pytest.mark.parametrize("method", BALANCING)
def test_methods_that_balance_modalities_go_on_as_they_began(source, tmp_path, monkeypatch, method):
    own, turns = BALANCING[method]
    settings = {**SETTINGS, "method": method, **own}
    fit(data=source, out=str(tmp_path / "whole"), **settings)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, turns * (STEPS + 3))
        fit(data=source, out=str(tmp_path / "cut"), **settings)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


LARGE = {
    "method": "joint",
    "train.batch_size": 8,
    "train.accumulate": 2,
    "train.max_steps": 2 * STEPS + 4,
    "train.validate_every": 2,
    "train.ema": 0.9,
    "train.precision": "fp16",
    "model.recompute": True,
}


@pytest.mark.parametrize("update", [STEPS + 1, STEPS + 2])
def test_settings_of_large_runs_go_on_as_they_began(source, tmp_path, monkeypatch, update):
    settings = {**SETTINGS, **LARGE}
    fit(data=source, out=str(tmp_path / "whole"), **settings)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, update)
        fit(data=source, out=str(tmp_path / "cut"), **settings)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_metrics_of_epochs_that_last_does_not_know_are_taken_back(source, reference, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, STEPS + 2)
        fit(data=source, out=str(out), **SETTINGS)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "stage": "main", "train": {"total": 7.0}}\n{"epoch": 3, "st')
    resume(out)
    assert_same_run(out, reference)


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize(
    "damage",
    ["lost", "shortened", "garbled", *(pytest.param(way, marks=pytest.mark.slow) for way in ("emptied", "binary"))],
)
def test_a_damaged_log_or_report_beside_a_whole_checkpoint_is_written_again(
    source, reference, halfway, tmp_path, caplog, damage, over
):
    out = halfway
    if over:
        resume(out)
    before = (out / "metrics.jsonl").read_bytes()
    ways = {
        "shortened": before[before.index(b"\n") + 1 :],
        "garbled": before.replace(b"{", b"#", 1),
        "emptied": b"",
        "binary": b"\xff\x00\n",
    }
    for name in ["metrics.jsonl", "report.json"][: 1 + over]:
        if damage == "lost":
            (out / name).unlink()
        else:
            (out / name).write_bytes(ways[damage])
        resume(out)
        assert (out / "metrics.jsonl").read_bytes().startswith(before)
        assert_same_run(out, reference)


def test_before_the_first_checkpoint_a_run_begins(source, reference, tmp_path, monkeypatch):
    from pgm_fast.train.run import checkpoints

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fit(data=source, out=str(out), **SETTINGS)
    assert [p.name for p in out.iterdir()] == ["config.yaml"]
    resume(out)
    assert_same_run(out, reference)


def test_a_finished_run_is_left_alone_and_a_lost_report_is_written_again(source, tmp_path):
    out = tmp_path / "run"
    report = fit(data=source, out=str(out), **SETTINGS)
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert resume(out) == report
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == files
    (out / "report.json").unlink()
    assert resume(out) == report
    assert json.loads((out / "report.json").read_text()) == report


def test_an_empty_configuration_is_named_and_comes_back_by_the_command_that_is_said(halfway, reference):
    config = halfway / "config.yaml"
    config.write_text("\n")
    with pytest.raises(
        CheckpointError, match=r"config\.yaml is empty; put a copy of it back, or what last\.pt"
    ) as found:
        resume(halfway)
    command = str(found.value).partition("knows of it: python ")[2]
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    resume(halfway)
    assert_same_run(halfway, reference)
    config.write_text("")
    shutil.rmtree(halfway / "checkpoints")
    with pytest.raises(CheckpointError, match="is empty; put a copy of it back, or train anew into another folder"):
        resume(halfway)


@pytest.mark.parametrize("key", ["train.lr", "train.epochs", "model.dim", "method"])
def test_a_finished_run_whose_configuration_was_changed_is_refused_as_an_unfinished_one(reference, tmp_path, key):
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    other = {"train.lr": 0.5, "train.epochs": EPOCHS + 2, "model.dim": 16, "method": "joint"}[key]
    config = make_config(out / "config.yaml", {key: other})
    (out / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(CheckpointError, match=rf"started with: {key} is {other!r} and was .*; put it back, or train"):
        resume(out)
    allowed = {key: SETTINGS[key], "out": str(reference), "train.plots": True}
    (out / "config.yaml").write_text(to_yaml(make_config(out / "config.yaml", allowed)))
    assert resume(out) == json.loads((out / "report.json").read_text())


@pytest.fixture
def halfway(source, tmp_path, monkeypatch) -> Path:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, STEPS + 2)
        fit(data=source, out=str(out), **SETTINGS)
    return out


def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(halfway):
    last = halfway / "checkpoints" / "last.pt"
    (halfway / "checkpoints" / "previous.pt").unlink()
    last.write_bytes(last.read_bytes()[:-100])
    files = {p: p.read_bytes() for p in halfway.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read.*best\.pt"):
        resume(halfway)
    last.unlink()
    with pytest.raises(CheckpointError, match=r"last\.pt does not exist.*best\.pt"):
        resume(halfway)
    assert all(p.read_bytes() == data for p, data in files.items() if p != last)


@pytest.mark.parametrize("flip", [True, False])
def test_a_damaged_last_is_replaced_by_the_one_before_it_by_name(halfway, reference, caplog, flip):
    last = halfway / "checkpoints" / "last.pt"
    if flip:
        data = bytearray(last.read_bytes())
        for at in range(len(data) // 2, len(data) // 2 + 128):  # more than the padding between two tensors
            data[at] ^= 4
        last.write_bytes(data)
    else:
        last.unlink()
    resume(halfway)
    assert re.search(r"last\.pt .*; going on from .*previous\.pt: 1 epochs, 0 steps", caplog.text)
    assert_same_run(halfway, reference)


def keys_of(value, depth, path=()):
    """The places of a nested state down to some depth."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        if depth > 1:
            yield from keys_of(value[key], depth - 1, (*path, key))


@pytest.mark.parametrize("third", [0, *(pytest.param(other, marks=pytest.mark.slow) for other in (1, 2))])
def test_a_checkpoint_with_a_part_deleted_or_of_another_kind_is_refused_in_one_line_or_serves(
    halfway, monkeypatch, third
):
    last = halfway / "checkpoints" / "last.pt"
    (halfway / "checkpoints" / "previous.pt").unlink()
    monkeypatch.setattr(loop.Training, "_run_stages", lambda self: None)  # what it is for comes after this
    monkeypatch.setattr(jobs, "finish", lambda *_: {})
    written = last.read_bytes()
    state = torch.load(last, weights_only=True)
    places = [place for place in keys_of(state, 2) if place[0] not in ("records", "model")]
    places += [("model", next(iter(state["model"]))), ("optimizer", "state", 0), ("epoch", "losses", "table")]
    refused, tried = 0, list(enumerate(places))[third::3]
    for number, place in tried:
        damaged = copy.deepcopy(state)
        owner = damaged
        for key in place[:-1]:
            owner = owner[key]
        if number % 2:
            del owner[place[-1]]
        else:
            owner[place[-1]] = [None, "x", -3, [], {}, torch.zeros(2, 3)][number // 2 % 6]
        torch.save(damaged, last)
        try:
            resume(halfway)
        except PgmFastError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > len(tried) / 2
    last.write_bytes(written)


@pytest.mark.parametrize("change", ["label", "a", "split", "rows"])
def test_other_data_is_refused_by_name(halfway, source, tmp_path, change):
    with np.load(source) as archive:
        arrays = dict(archive)
    if change == "rows":
        arrays = {key: value[:-1] for key, value in arrays.items()}
    elif change == "split":
        arrays["split"] = np.roll(arrays["split"], 1)
    else:
        arrays[change] = arrays[change][::-1]
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(
        DataError, match={"label": "labels", "a": "modality a", "split": "splits", "rows": "rows"}[change]
    ):
        resume(halfway, data=str(tmp_path / "other.npz"))


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        resume(tmp_path)


def test_a_started_run_is_not_started_again(halfway, source):
    with pytest.raises(ConfigError, match=rf"holds a started run already.*pgm-fast resume {halfway}.*overwrite"):
        fit(data=source, out=str(halfway), **SETTINGS)


def test_the_configuration_in_the_folder_is_the_one_that_ran(reference, source):
    written = make_config(reference / "config.yaml")
    assert isinstance(written, Config)
    assert written == make_config(None, {**SETTINGS, "data.source": source, "out": str(reference)})


def test_kills_at_random_moments_leave_every_checkpoint_readable_and_the_result_the_same():
    """Of all methods, while checkpoints and reports are written and runs taken up again; `make test-kill` does more."""
    command = [sys.executable, str(Path(__file__).with_name("kill_runs.py")), "--kills", "10"]
    # One thread and no CUDA: a process that forks must have started no threads of its own.
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["kills"] == 10
    assert summary["unborn"] < 5  # most kills hit a run that had something to lose
    assert {name.split()[0] for name in summary} >= {"pgm", "dimml", "dmil"}
