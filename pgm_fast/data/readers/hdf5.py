"""HDF5 files, ``.h5`` and ``.hdf5``: datasets under the keys of our own layout, or groups train, valid, test of such.

Only what lies in the file itself is read: links, datasets in other files and references are refused, and so is a filter
that HDF5 would look for among plug-ins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..packages import import_package
from ..raw import Problem, Raw, RefusedData, Request
from .apart import read_apart
from .generic import interpret
from .parts import has_parts, interpret_parts

__all__ = ["members_of", "read_hdf5"]

PROGRAM = Path(__file__).with_name("hdf5_child.py")


def read_hdf5(path: Path, request: Request) -> Raw:
    """Datasets that lie in one piece stay in the file and are read by rows; others are unpacked into memory."""
    content = members_of(path, request, "HDF5 files", "hdf5")
    if has_parts(content):
        return interpret_parts(path, content, request)
    return interpret(path, content, request)


def members_of(path: Path, request: Request, needs: str, extra: str, matlab: bool = False) -> dict[str, Any]:
    """What a file holds: arrays, or a mapping for each group. What is to be ignored is not read, and is empty.

    Args:
        path: of the file.
        request: how it is read.
        needs: what needs h5py, for :func:`~pgm_fast.data.packages.import_package`, as is ``extra``.
        extra: see there.
        matlab: the file is MATLAB's: axes the other way round, text as numbers, groups of its own.

    Raises:
        RefusedData: no HDF5 file, or something in it that is not read.
    """
    import_package("h5py", str(path), needs, extra)
    content = read_apart(PROGRAM, path, request, matlab=matlab)
    held = {key: value for key, value in content.items() if key not in request.ignore}
    if not held:
        raise RefusedData(Problem(str(path), "", None, "holds no dataset; <modality>, label and split are expected"))
    if has_parts(held):
        return {key: held.get(key, {}) for key in content}
    for key, value in held.items():
        if isinstance(value, Mapping):
            leave_out = f"data.ignore=[{','.join((*request.ignore, key))}]"
            message = f"a group, and datasets beside it; splits are groups, all of them, or leave it out by {leave_out}"
            raise RefusedData(Problem(str(path), key, None, message))
    return content
