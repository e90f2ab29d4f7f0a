"""A folder of shards may be a stranger's: nothing in it is run, and nothing outside of it is read."""

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from pgm_fast.errors import CheckpointError
from pgm_fast.train.shards import _checksum, with_shards


class Program:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def written(folder):
    """A checkpoint with one tensor in shards: its path and its content."""
    shards = folder / "shards-0"
    save({"model/x": torch.arange(3.0)}, storage_writer=FileSystemWriter(shards), no_dist=True)
    return folder / "last.pt", state_of(shards)


def state_of(shards):
    files = {file.name: _checksum(file) for file in shards.iterdir()}
    return {"shards": {"folder": shards.name, "files": files, "places": {"model/x": ["model", "x"]}}}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_was_written_is_read(tmp_path):
    assert with_shards(*written(tmp_path))["model"]["x"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_program_in_place_of_metadata_is_not_run(tmp_path):
    path, _ = written(tmp_path)
    mark = tmp_path / "was here"
    (tmp_path / "shards-0" / ".metadata").write_bytes(pickle.dumps(Program(mark)))
    with pytest.raises(CheckpointError, match="mkdir, which shards have no use for"):
        with_shards(path, state_of(tmp_path / "shards-0"))
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["..", "../shards-0", "/tmp", 3])
def test_a_folder_elsewhere_is_refused(tmp_path, name):
    path, state = written(tmp_path)
    state["shards"]["folder"] = name
    with pytest.raises(CheckpointError):
        with_shards(path, state)
