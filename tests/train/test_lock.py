"""A run folder has one writer at a time; the second is told who the first is, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import socket
import threading

import numpy as np
import pytest

from pgm_fast.errors import CheckpointError
from pgm_fast.train import fit, loop, resume
from pgm_fast.train.lock import RunLock


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
    rng = np.random.default_rng(0)
    source = tmp_path / "d.npz"
    split = np.array(["train"] * 20 + ["valid"] * 10)
    values = {m: rng.normal(size=(30, 4)).astype(np.float32) for m in "ab"}
    np.savez(source, **values, label=np.arange(30) % 3, split=split)
    settings = {"train.epochs": 2, "model.dim": 4, "model.hidden": 4, "train.plots": False, "train.tensorboard": False}
    out, refused = tmp_path / "run", []
    original = loop.Training._end_epoch

    def meddle(self):
        for second in (lambda: resume(out), lambda: fit(data=str(source), out=str(out), overwrite=True, **settings)):
            with pytest.raises(CheckpointError, match=f"in use: process {os.getpid()} "):
                second()
            refused.append(1)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_end_epoch", meddle)
        report = fit(data=str(source), out=str(out), **settings)
    assert len(refused) == 4 and report["epochs"] == 2
    assert not (out / ".lock").exists()
    (out / "report.json").unlink()
    assert resume(out) == report
