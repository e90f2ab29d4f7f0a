"""last.pt of a run whose weights are cut over processes: every one writes its shards, while training goes on.

The shards of a checkpoint lie in a folder of their own beside last.pt (``torch.distributed.checkpoint``). last.pt holds
all else and names the folder; it is replaced when the folder is whole on the disk, as ever from one moment to the next.
Until then, and until there is a previous.pt again, what was before stays.
"""

from __future__ import annotations

import copy
import pickle
import re
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import CheckpointError, PgmFastError, TrainingStopped
from ..distributed import LOST_PEER, Ranks, is_lost_peer
from ..sharding import is_cut
from . import checkpoints
from .files import sync_folder
from .folder import RunFolder

__all__ = ["ShardedSaves", "has_shards", "remove_unused", "require_whole", "with_shards"]

# What torch writes of shards is a pickle, and a pickle is a program: these are the globals that it may name. None is
# handed out: see _Said.
_METADATA = "torch.distributed.checkpoint.metadata"
_GLOBALS = {
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
_KEY = "shards"  # of last.pt: {"folder": name, "files": {name: checksum}, "places": {key: path in the state}}


class ShardedSaves:
    """Writes checkpoints of shards, one at a time. Every method is called by all ranks.

    Args:
        folder: of the run.
        ranks: of the run, more than one.
    """

    def __init__(self, folder: RunFolder, ranks: Ranks):
        self._folder = folder
        self._ranks = ranks
        self._group = dist.new_group(backend="gloo")  # of its own: another thread talks in it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pgm_fast-checkpoint")
        self._pending: Future | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write ``state`` as last.pt, from a copy of its shards; the one before is written to its end first.

        Raises:
            CheckpointError: the one before could not be written; the one before that is still there.
        """
        from torch.distributed.checkpoint import FileSystemWriter, async_save

        self.wait()
        rest, shards, places = _taken_apart(state)
        rest = copy.deepcopy(rest) if self._ranks.is_main else {}  # training goes on with what is in it
        name = self._ranks.on_main(self._free_place)
        path = self._folder.last.with_name(name)
        written = async_save(shards, storage_writer=FileSystemWriter(path), process_group=self._group)
        self._pending = self._thread.submit(self._end, written, rest, path, places)

    def _free_place(self) -> str:
        """The name of an empty folder for shards that neither last.pt nor previous.pt is of."""
        self._folder.lock.require()
        remove_unused(self._folder)
        return next(path.name for path in self._folder.shards if not path.exists())

    def _end(self, written: Future, rest: dict[str, Any], path: Path, places: Mapping[str, list]) -> None:
        written.result()
        if self._ranks.is_main:
            files = {file.name: _checksum(file) for file in path.iterdir()}
            sync_folder(path)
            self._folder.lock.require()
            if _is_whole(self._folder.last):
                checkpoints.keep(self._folder.last, self._folder.previous)
            checkpoints.save(self._folder.last, {**rest, _KEY: {"folder": path.name, "files": files, "places": places}})

    def wait(self) -> None:
        """Until what was begun is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        from torch.distributed.checkpoint import CheckpointException

        try:
            pending.result()
        except PgmFastError:
            raise
        except (Exception, CheckpointException) as error:
            reason = _reason(error)
            if is_lost_peer(reason):
                raise TrainingStopped(LOST_PEER) from error
            raise CheckpointError(
                f"the shards of {self._folder.last} cannot be written ({reason}); what was there before is kept, make "
                f"room and go on with {self._folder.resume_command}"
            ) from error

    def close(self) -> None:
        """As :meth:`wait`, where something else has failed already."""
        with suppress(PgmFastError):
            self.wait()
        self._thread.shutdown()


def has_shards(state: Mapping[str, Any]) -> bool:
    """Whether this, as last.pt has it, lacks what lies in a folder of shards."""
    return _KEY in state


def with_shards(path: Path, state: Mapping[str, Any], mesh: Any = None) -> dict[str, Any]:
    """``state``, as last.pt at ``path`` has it, with its shards in their places; as it is where it has none.

    Args:
        path: of the checkpoint.
        state: its content.
        mesh: of the processes, each of which reads its part of every tensor; None for whole tensors, without others.

    Raises:
        CheckpointError: shards are missing or cannot be read.
    """
    if not has_shards(state):
        return dict(state)
    from torch.distributed.checkpoint import CheckpointException, load
    from torch.distributed.tensor import Shard, empty

    entry = state[_KEY]
    if mesh is None:  # else whoever goes on has looked before it made what they are read into
        require_whole(path, state)
    try:
        reader = _reader(_place(path, entry["folder"]), _files(entry["files"]))
        found = reader.read_metadata().state_dict_metadata
        sizes = {key: (tensor.size, tensor.properties.dtype) for key, tensor in found.items()}
        tensors: dict[str, Tensor] = {
            key: torch.empty(size, dtype=dtype)
            if mesh is None
            else empty(*size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
            for key, (size, dtype) in sizes.items()
        }
        with warnings.catch_warnings():  # that a process alone loads alone
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=mesh is None)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(
            f"the shards of {path} cannot be read ({_reason(error)}); {checkpoints.instead(path)}"
        ) from error
    with checkpoints.reading("shards"):
        return _put_together({key: value for key, value in state.items() if key != _KEY}, tensors, entry["places"])


def require_whole(path: Path, state: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a file of the shards of last.pt at ``path`` is missing or not as it was written."""
    if not has_shards(state):
        return
    with checkpoints.reading("shards"):
        folder, files = _place(path, state[_KEY]["folder"]), _files(state[_KEY]["files"])
    for name, checksum in files.items():
        file = folder / name
        if not file.is_file() or _checksum(file) != checksum:
            found = "damaged: its checksum does not match" if file.is_file() else "missing"
            raise CheckpointError(f"checkpoint {path} cannot be read ({file} is {found}); {checkpoints.instead(path)}")


class _Said:
    """Stands for an object of torch's: what the file says of it, and nothing that it could do."""

    arguments: tuple = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> _Said:
        said = super().__new__(cls)
        said.arguments = arguments
        return said

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


_SAID = {place: type(place[1], (_Said,), {}) for place in _GLOBALS}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in _SAID:
            raise pickle.UnpicklingError(f"they name {module}.{name}, which shards have no use for")
        return _SAID[module, name]


def _reader(folder: Path, files: Mapping[str, int]) -> Any:
    """torch's reader of a folder of shards, of which it gets checked metadata and these files alone."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            if ".metadata" not in files:
                raise ValueError("nothing is known of their metadata")
            with open(folder / ".metadata", "rb") as file:
                metadata = _checked(_Unpickler(file).load(), files)
            metadata.storage_meta = StorageMeta(load_id=self.load_id)
            return metadata

    return Reader(folder)


def _checked(said: Any, files: Mapping[str, int]) -> Any:
    """torch's ``Metadata``, made anew of what is said. torch takes what is no tensor for another pickle, which it runs,
    and what no piece of a tensor covers stays as the memory was.

    Raises:
        ValueError: it is not of whole tensors in these files.
    """
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    whole = _state(said, "Metadata")
    tensors = {
        _of(str, key): _state(tensor, "TensorStorageMetadata") for key, tensor in _items(whole, "state_dict_metadata")
    }
    found = {}
    for key, tensor in tensors.items():
        properties = _state(tensor.get("properties"), "TensorProperties", tuple)
        size = _size(tensor.get("size"))
        chunks = []
        for chunk in _of(list, tensor.get("chunks")):
            chunk = _state(chunk, "ChunkStorageMetadata")
            chunks.append(ChunkStorageMetadata(_size(chunk.get("offsets")), _size(chunk.get("sizes"))))
        if sum(chunk.sizes.numel() for chunk in chunks) != size.numel():
            raise ValueError(f"the pieces of {key!r} are not the whole of it")
        found[key] = TensorStorageMetadata(TensorProperties(_of(torch.dtype, properties[0])), size, chunks)
    places = {}
    for index, info in _items(whole, "storage_data"):
        index, info = _state(index, "MetadataIndex"), _state(info, "_StorageInfo")
        name = _of(str, info.get("relative_path"))
        if name not in files or info.get("transform_descriptors"):
            raise ValueError(f"{name!r} is none of their files")
        place = MetadataIndex(_of(str, index.get("fqn")), _size(index.get("offset")), index.get("index"))
        places[place] = _StorageInfo(name, _of(int, info.get("offset")), _of(int, info.get("length")))
    return Metadata(found, storage_data=places)


def _state(said: Any, name: str, kind: type = dict) -> Any:
    if type(said) is not _SAID.get((_METADATA, name), _SAID.get(("torch.distributed.checkpoint.filesystem", name))):
        raise ValueError(f"a {type(said).__name__} in place of {name}")
    return _of(kind, said.state)


def _items(state: Mapping[str, Any], key: str) -> Iterable[tuple[Any, Any]]:
    return _of(dict, state.get(key)).items()


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _size(said: Any) -> torch.Size:
    if type(said) is not _SAID["torch", "Size"] or len(said.arguments) != 1:
        raise ValueError(f"a {type(said).__name__} in place of a size")
    (numbers,) = said.arguments
    if any(_of(int, number) < 0 for number in _of(tuple, numbers)):
        raise ValueError(f"{numbers} is no size")
    return torch.Size(numbers)


def _place(path: Path, name: Any) -> Path:
    """The folder of this name beside a checkpoint. Raises ValueError for what is no name of a folder of shards."""
    if not isinstance(name, str) or not re.fullmatch(r"shards-\d+", name):
        raise ValueError(f"{name!r} is no folder of shards")
    return path.with_name(name)


def _files(files: Any) -> dict[str, int]:
    """Name and checksum of every file of a folder of shards. Raises ValueError for what is no name of one."""
    for name in _of(dict, files):
        if not isinstance(name, str) or not re.fullmatch(r"\.?\w[\w.]{0,99}", name, re.ASCII):
            raise ValueError(f"{name!r} is no file of shards")
    return files


def remove_unused(folder: RunFolder) -> None:
    """Remove the folders of shards that no checkpoint of the run is of: those of a write that came to no end, say."""
    present = [path for path in folder.shards if path.exists()]
    if not present:
        return
    used = {_folder_of(path) for path in (folder.last, folder.previous)}
    for path in present:
        if path.name not in used:
            shutil.rmtree(path)


def _is_whole(path: Path) -> bool:
    try:
        require_whole(path, checkpoints.load(path))
    except CheckpointError:
        return False
    return True


def _folder_of(path: Path) -> str | None:
    try:
        return checkpoints.load(path)[_KEY]["folder"]
    except (CheckpointError, LookupError, TypeError):
        return None


def _taken_apart(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, list]]:
    """``state`` without what is cut; that by a key; and key -> the place where it was."""
    shards: dict[str, Tensor] = {}
    places: dict[str, list] = {}

    def walk(value: Any, place: tuple) -> Any:
        if not isinstance(value, Mapping):
            return value
        rest = {}
        for key, inner in value.items():
            if is_cut(inner):
                name = "/".join(map(str, (*place, key)))
                shards[name], places[name] = inner, [*place, key]
            else:
                rest[key] = walk(inner, (*place, key))
        return rest

    return walk(state, ()), shards, places


def _put_together(state: dict[str, Any], tensors: Mapping[str, Tensor], places: Mapping[str, list]) -> dict[str, Any]:
    """``state`` with every tensor in its place."""
    for name, (*outer, key) in places.items():
        inner = state
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[key] = tensors[name]
    return state


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _reason(error: BaseException) -> str:
    """The first failure of a collective write or read, in a line."""
    for failure, _ in getattr(error, "failures", {}).values():
        error = failure
        break
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
