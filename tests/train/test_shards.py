"""A folder of shards may be a stranger's: nothing in it is run, and nothing outside of it is read."""

import io
import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from pgm_fast.errors import CheckpointError
from pgm_fast.train.run.shards import _checksum, with_shards


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


class Posing(TensorStorageMetadata):
    """What torch takes for bytes and looks at as a tensor, as a pickle may have it that fills objects itself."""

    def __reduce__(self):
        state = {"size": self.size, "properties": self.properties, "chunks": self.chunks}
        return BytesStorageMetadata, (), state


def test_a_program_that_torch_would_read_as_a_value_is_not_run(tmp_path):
    mark, shards, program = tmp_path / "was here", tmp_path / "shards-0", io.BytesIO()
    shards.mkdir()
    torch.save(Program(mark), program)
    (shards / "__0_0.distcp").write_bytes(program.getvalue())
    value = Posing(TensorProperties(torch.float32), torch.Size([1]), [])
    place = {MetadataIndex("model/x"): _StorageInfo("__0_0.distcp", 0, len(program.getvalue()))}
    (shards / ".metadata").write_bytes(pickle.dumps(Metadata({"model/x": value}, storage_data=place)))
    with pytest.raises(CheckpointError, match="BytesStorageMetadata, which shards have no use for"):
        with_shards(tmp_path / "last.pt", state_of(shards))
    assert not mark.exists()


def edited(folder, edit):
    """A checkpoint whose metadata was changed."""
    path, _ = written(folder)
    place = folder / "shards-0" / ".metadata"
    metadata = pickle.loads(place.read_bytes())
    edit(metadata)
    place.write_bytes(pickle.dumps(metadata))
    return path, state_of(place.parent)


def put_elsewhere(metadata):
    for info in metadata.storage_data.values():
        info.relative_path = "../secret.distcp"


def leave_out_a_piece(metadata):
    metadata.state_dict_metadata["model/x"].size = torch.Size([4])


def name_another_reader(metadata):
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["stream.zstd"]


def give_a_size_that_is_none(metadata):
    metadata.state_dict_metadata["model/x"].size = [3]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (put_elsewhere, "'../secret.distcp' is none of their files"),
        (leave_out_a_piece, "the pieces of 'model/x' are not the whole of it"),
        (name_another_reader, "is none of their files"),
        (give_a_size_that_is_none, "a list in place of a size"),
    ],
)
def test_metadata_that_are_not_of_whole_tensors_in_their_files_are_refused(tmp_path, edit, says):
    (tmp_path / "secret.distcp").write_bytes(b"what is not theirs")
    with pytest.raises(CheckpointError, match=says) as error:
        with_shards(*edited(tmp_path, edit))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    "entry",
    [
        {"files": {"../secret.distcp": 0}},
        {"files": {3: 0}},
        {"files": None},
        {"places": {"model/x": ["folder", "x"]}},
        {"places": {"model/y": ["model", "y"]}},
        {"places": {"model/x": 3}},
    ],
    ids=str,
)
def test_what_last_pt_says_of_shards_is_checked(tmp_path, entry):
    path, state = written(tmp_path)
    state["shards"] |= entry
    state["folder"] = "a value, which holds no others"
    with pytest.raises(CheckpointError) as error:
        with_shards(path, state)
    assert "\n" not in str(error.value)
