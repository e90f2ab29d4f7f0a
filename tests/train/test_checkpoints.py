"""A checkpoint is whole or the one before it, and one that is not whole is named with what to do."""

from __future__ import annotations

import os
import pickle
import resource
import shutil

import pytest
import torch
from same_run import assert_equal

from pgm_fast.errors import CheckpointError
from pgm_fast.train import evaluate, fit
from pgm_fast.train.run import checkpoints

STATE = {
    "model": {"w": torch.arange(5000.0)},
    "position": {"epoch": 3},
    "names": ["a"],
    "score": float("-inf"),
    "none": None,
}


def test_a_state_comes_back_as_it_was(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoints.save(path, STATE)
    loaded = checkpoints.load(path)
    assert torch.equal(loaded.pop("model")["w"], STATE["model"]["w"])
    assert loaded == {"format": checkpoints.FORMAT, **{k: v for k, v in STATE.items() if k != "model"}}
    assert os.listdir(path.parent) == ["last.pt"]


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -1000])
def test_a_truncated_checkpoint_is_refused_and_the_whole_one_beside_it_named(tmp_path, kept):
    for name in ("last.pt", "best.pt"):
        checkpoints.save(tmp_path / "checkpoints" / name, STATE)
    path = tmp_path / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CheckpointError, match=r"last\.pt cannot be read.*best\.pt beside it is whole.*evaluate"
    ) as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_byte_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    checkpoints.save(path, STATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"data.pkl") + 40
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        checkpoints.load(path)


def test_no_flipped_bit_is_taken_for_what_was_written(tmp_path):
    path = tmp_path / "last.pt"
    checkpoints.save(path, {**STATE, "model": {"w": torch.arange(200.0)}})
    written, whole = path.read_bytes(), checkpoints.load(path)
    noticed = 0
    for at in range(0, len(written), 3):
        data = bytearray(written)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        try:
            assert_equal(checkpoints.load(path), whole)  # padding between the parts says nothing
        except CheckpointError as error:
            assert "last.pt cannot be read" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 200 * 4 / 3  # every one of those inside of the tensor, at least


def test_the_checkpoint_before_is_kept_unless_it_is_damaged(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    checkpoints.keep(last, previous)
    assert os.listdir(tmp_path) == []
    for number in range(3):
        checkpoints.keep(last, previous)
        checkpoints.keep(last, previous)
        checkpoints.save(last, {"number": number})
    assert checkpoints.load(previous)["number"] == 1
    last.write_bytes(last.read_bytes()[:-9])
    checkpoints.keep(last, previous)
    assert checkpoints.load(previous)["number"] == 1
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_a_file_system_without_links_keeps_a_copy(tmp_path, monkeypatch):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    checkpoints.save(last, STATE)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    checkpoints.keep(last, previous)
    assert previous.read_bytes() == last.read_bytes() and not previous.samefile(last)
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


class _Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoints.FORMAT, "model": _Evil()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Evil()))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=name):
            checkpoints.load(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_a_foreign_or_missing_file_is_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"foreign\.pt is not a checkpoint of this engine"):
        checkpoints.load(tmp_path / "foreign.pt")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match=r"tensor\.pt is not a checkpoint of this engine"):
        checkpoints.load(tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
        checkpoints.load(tmp_path / "none.pt")


def test_a_refusing_disk_leaves_the_checkpoint_that_was_there(tmp_path):
    path = tmp_path / "last.pt"
    checkpoints.save(path, STATE)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file size limit refuses the write in the middle, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*last\.pt"):
            checkpoints.save(path, {"model": {"w": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_what_is_not_plain_is_refused_when_it_is_written_or_read(tmp_path):
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"thing": object})
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoints.load(path)


def test_a_checkpoint_that_there_is_not_or_of_another_run_is_refused_by_name(tmp_path):
    settings = {"model.dim": 4, "train.epochs": 1, "train.plots": False, "train.logger": [], "train.device": "cpu"}
    for method in ("joint", "unimodal"):
        fit(method=method, data="digits", out=str(tmp_path / method), **settings)
    with pytest.raises(CheckpointError, match=r"'bst' \(did you mean best\?\); it takes best, last, previous, or the"):
        evaluate(tmp_path / "joint", checkpoint="bst")
    best = tmp_path / "unimodal" / "checkpoints" / "best.pt"
    shutil.copy(tmp_path / "joint" / "checkpoints" / "best.pt", best)
    with pytest.raises(CheckpointError, match="of a run of joint on digits, and this run's config.yaml says unimodal"):
        evaluate(tmp_path / "unimodal")
    assert evaluate(tmp_path / "unimodal", checkpoint=str(best)) == evaluate(tmp_path / "joint")
