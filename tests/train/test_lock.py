"""A run folder has one writer at a time; the second is told who the first is, and a dead one holds nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import threading

import numpy as np
import pytest

from pgm_fast.errors import CheckpointError, ConfigError
from pgm_fast.train import fit, loop, resume
from pgm_fast.train.run.lock import RunLock


def held_by_a_child(folder) -> int:
    """The process id of a child that holds the lock until it is killed."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        RunLock(folder).acquire()
        os.write(tell, b"x")
        signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return pid


def settle(tmp_path) -> tuple[str, dict]:
    rng = np.random.default_rng(0)
    split = np.array(["train"] * 20 + ["valid"] * 10)
    values = {m: rng.normal(size=(30, 4)).astype(np.float32) for m in "ab"}
    np.savez(tmp_path / "d.npz", **values, label=np.arange(30) % 3, split=split)
    small = {
        "train.epochs": 2,
        "model.dim": 4,
        "model.hidden": 4,
        "train.plots": False,
        "train.logger": ["tensorboard"],
    }
    return str(tmp_path / "d.npz"), small


def test_the_second_writer_is_told_who_the_first_is_and_a_killed_one_leaves_the_folder_free(tmp_path):
    pid = held_by_a_child(tmp_path / "run")
    lock = RunLock(tmp_path / "run")
    try:
        with pytest.raises(CheckpointError, match=rf"in use: process {pid} on {socket.gethostname()}") as caught:
            lock.acquire()
        assert "\n" not in str(caught.value)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    lock.acquire()
    lock.release()
    assert os.listdir(tmp_path / "run") == []


def test_of_many_that_want_it_at_once_one_has_it_at_any_time(tmp_path):
    holders, most, done = [0], [0], []

    def work():
        for _ in range(50):
            lock = RunLock(tmp_path)
            try:
                lock.acquire()
            except CheckpointError:
                continue
            holders[0] += 1
            most[0] = max(most[0], holders[0])
            done.append(1)
            holders[0] -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and done


def test_a_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"cannot write .*\.lock"):
        RunLock(tmp_path / "run").acquire()
    assert (tmp_path / "precious").read_text() == "mine"


def test_training_and_resuming_hold_the_lock_while_they_write_and_not_after(tmp_path, monkeypatch):
    source, small = settle(tmp_path)
    out, refused = tmp_path / "run", []
    original = loop.Training._end_epoch

    def look(self):
        with pytest.raises(CheckpointError, match=f"in use: process {os.getpid()} "):
            RunLock(out).acquire()
        refused.append(1)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_end_epoch", look)
        report = fit(data=source, out=str(out), **small)
    assert len(refused) == 2 and not (out / ".lock").exists()
    (out / "report.json").unlink()
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    other = RunLock(out)
    other.acquire()
    for second in (lambda: resume(out), lambda: fit(data=source, out=str(out), overwrite=True, **small)):
        with pytest.raises(CheckpointError, match=f"in use: process {os.getpid()} "):
            second()
    other.release()
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    assert resume(out) == report


def test_two_threads_do_not_train_at_once_and_each_alone_gives_what_its_seed_gives(tmp_path):
    source, small = settle(tmp_path)
    first, second = ({"data": source, "out": str(tmp_path / name), **small} for name in ("first", "second"))
    results, begun, go_on = {}, threading.Event(), threading.Event()

    def train():
        with pytest.MonkeyPatch.context() as patch:
            original = loop.Training._end_epoch
            patch.setattr(loop.Training, "_end_epoch", lambda s: (begun.set(), go_on.wait(60), original(s)))
            results["first"] = fit(**first)

    thread = threading.Thread(target=train)
    thread.start()
    assert begun.wait(60)
    with pytest.raises(ConfigError, match="another run is being trained in this process"):
        fit(**second)
    assert not (tmp_path / "second").exists()
    go_on.set()
    thread.join()
    assert fit(**second)["valid"] == results["first"]["valid"]


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("when", ["_train_epoch", "_end_epoch", "_save_last"])
def test_a_folder_that_disappears_ends_the_run_in_one_line_and_is_not_made_again(tmp_path, monkeypatch, when, replaced):
    source, small = settle(tmp_path)
    out, original, calls = tmp_path / "run", getattr(loop.Training, when), []

    def vanish(self):
        calls.append(1)
        if len(calls) == 2:
            shutil.rmtree(out)
            if replaced:
                out.mkdir()
        original(self)

    monkeypatch.setattr(loop.Training, when, vanish)
    with pytest.raises(CheckpointError, match="was removed or replaced while this run wrote to it") as caught:
        fit(data=source, out=str(out), **small | {"train.logger": []})
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == [] if replaced else not out.exists()


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "metrics.jsonl", "report.json", "report.html", "checkpoints", "checkpoints/last.pt", "plots"]
    + ["checkpoints/previous.pt", "checkpoints/best.pt", "tensorboard", "tensorboard/*"],
)
def test_a_strangers_folder_makes_no_one_write_through_a_link(tmp_path, name):
    source, small = settle(tmp_path)
    out, outside = tmp_path / "run", tmp_path / "outside"
    fit(data=source, out=str(out), **small)
    (out / "report.json").unlink()
    link = next(out.glob(name), out / name)
    if link.exists():
        link.rename(outside)
    elif "." in name:
        outside.write_text("precious")
    else:
        outside.mkdir()
    link.symlink_to(outside)
    before = {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()}
    with pytest.raises(CheckpointError, match=f"{re.escape(str(link))} is a symbolic link to {outside}"):
        resume(out)
    assert {p: p.read_bytes() for p in (outside, *outside.rglob("*")) if p.is_file()} == before
    link.unlink()
    if outside.is_dir() or name != "report.json":  # as told: what it points to takes its place
        outside.rename(link)
    (tmp_path / "linked").symlink_to(out)
    assert resume(tmp_path / "linked")["epochs"] == 2
