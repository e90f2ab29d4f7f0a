"""HDF5 files, ``.h5`` and ``.hdf5``: datasets under the keys of our own layout, or groups train, valid, test of such.

Only what lies in the file itself is read: links, datasets in other files and references are refused, and so is a filter
that HDF5 would look for among plug-ins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..packages import import_package
from ..raw import Raw, Request
from .apart import read_apart
from .parts import interpret_members

__all__ = ["members_of", "read_hdf5"]

PROGRAM = Path(__file__).with_name("hdf5_child.py")


def read_hdf5(path: Path, request: Request) -> Raw:
    """Datasets that lie in one piece stay in the file and are read by rows; others are unpacked into memory."""
    return interpret_members(path, members_of(path, request, "HDF5 files"), request)


def members_of(path: Path, request: Request, needs: str, matlab: bool = False) -> dict[str, Any]:
    """What a file holds: arrays, or a mapping for each group. What is to be ignored is not read, and is empty.

    Args:
        path: of the file.
        request: how it is read.
        needs: what needs h5py, for :func:`~pgm_fast.data.packages.import_package`.
        matlab: the file is MATLAB's: axes the other way round, text as numbers, groups of its own.

    Raises:
        RefusedData: no HDF5 file, or something in it that is not read.
    """
    import_package("h5py", str(path), needs, "hdf5")
    return read_apart(PROGRAM, path, request, matlab=matlab)
