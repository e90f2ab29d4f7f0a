"""Files of arrays that somebody else wrote: whatever is in them ends in an array or in one error."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from .memory import free_bytes

__all__ = ["UNREADABLE", "require_free", "require_room", "unpack_npz"]

UNREADABLE = (
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What readers of archives and of numpy's, torch's and safetensors' files raise where bytes are not what they should
be: a header that is no literal, a size that nobody has, a password, a compression that is not known, ..."""


# Arrays below this many bytes are read without a look at how much is free.
SMALL = 1 << 26


def require_free(size: int) -> None:
    """Raises ValueError where arrays of ``size`` bytes do not fit into the memory that is free."""
    if size > SMALL and size > (free := free_bytes(torch.device("cpu"))):
        raise ValueError(
            f"its arrays take {size / 1e9:.1f} GB unpacked and {free / 1e9:.1f} GB are free: store them in a folder "
            "of .npy files, which is read row by row"
        )


def require_room(path: Path) -> None:
    """Raises ValueError where the members of a zip archive, unpacked, take more memory than is free."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            require_free(sum(member.file_size for member in archive.infolist()))


def unpack_npz(path: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Name and reader of every array of an ``.npz``; a reader is to be called before the next is asked for.

    Raises:
        ValueError: a member that is no array, one whose header claims other bytes than it has, or arrays that take more
            memory, unpacked, than is free.
        others of :data:`UNREADABLE`.
    """
    require_room(path)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise ValueError(f"{member.filename} in it is no .npy array")
            yield name, lambda member=member: _unpack(archive, member)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        claimed = _claimed_bytes(file)
        if claimed is not None and claimed != member.file_size:
            raise ValueError(f"it has {member.file_size} bytes and its header claims {claimed}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _claimed_bytes(file) -> int | None:
    """Size of a ``.npy`` file by its header; None for objects, which are refused elsewhere."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        return None
    count = 1
    for size in shape:
        count *= size  # of Python's integers: a product that numpy would let overflow
    return file.tell() + count * dtype.itemsize
