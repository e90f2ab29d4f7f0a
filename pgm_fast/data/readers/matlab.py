"""MATLAB files, ``.mat``: what ``save`` (versions 6 and 7) and ``save -v7.3`` write, and ``scipy.io.savemat``.

Versions 5 to 7.2 are one format, read by :mod:`.mat5`; 7.3 is HDF5 and read as such. In both arrays are numbers, text
(one per line), or cell arrays of text; structs are splits. MATLAB knows no array of one axis and no whole numbers by
default, hence:

- an array ``N x 1`` or ``1 x N`` is ``[N]``: a column, unless ``modalities`` names it, which makes it ``[N, 1]``;
- ``split``, ``id``, lengths and presence may be whole numbers of any type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..archives import UNREADABLE
from ..raw import Problem, Raw, RefusedData, Request, one_line
from .generic import RESERVED
from .hdf5 import members_of
from .mat5 import NotRead, Variables
from .parts import interpret_members

__all__ = ["read_matlab"]

HDF5 = b"\x89HDF\r\n\x1a\n"
HDF5_PLACE = 512  # bytes of MATLAB's own before it
WHOLE = ("split", "id", "ids", "step_lengths")  # keys of whole numbers, as are those with an ending of
ENDINGS = ("_lengths", "_presence")
LARGEST_WHOLE = 2**53  # below it a float64 holds every whole number


def read_matlab(path: Path, request: Request) -> Raw:
    """Arrays of our own layout, see :mod:`.generic`, or structs train, valid and test of such; all of it in memory."""
    if _begins_hdf5(path):
        content = members_of(path, request, "MATLAB files of version 7.3", matlab=True)
    else:
        content = _unpack(path, request)
    for key, value in content.items():
        if isinstance(value, Mapping):
            content[key] = {name: _as_meant(name, array, request) for name, array in value.items()}
        else:
            content[key] = _as_meant(key, value, request)
    return interpret_members(path, content, request)


def _begins_hdf5(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            begin = file.read(HDF5_PLACE + len(HDF5))
    except OSError as error:
        raise RefusedData(Problem(str(path), "", None, f"not readable: {one_line(error)}")) from None
    return begin.startswith(HDF5) or begin[HDF5_PLACE:] == HDF5


def _unpack(path: Path, request: Request) -> dict:
    variables = Variables(path, request.ignore)
    content: dict = {}
    try:
        for key, value in variables:
            if key in content:
                raise ValueError("a second array of this name")
            content[key] = value
    except NotRead as refused:
        leave_out = f"data.ignore=[{','.join((*request.ignore, variables.key.rpartition('/')[2]))}]"
        raise RefusedData(
            Problem(str(path), variables.key, None, f"{refused}, or leave it out by {leave_out}")
        ) from None
    except UNREADABLE as error:
        message = f"not readable ({one_line(error)}); truncated, or of another version? Save it again with -v7"
        raise RefusedData(Problem(str(path), variables.key, None, message)) from None
    return content


def _as_meant(key: str, array: np.ndarray, request: Request) -> np.ndarray:
    named = key in (request.modalities or ()) and key not in RESERVED
    if array.ndim == 2 and 1 in array.shape and not named and key != "presence":
        array = array.reshape(-1)
    if (key in WHOLE or key.endswith(ENDINGS)) and array.dtype.kind == "f":
        whole = (array == np.rint(array)) & (np.abs(array) < LARGEST_WHOLE)
        array = array.astype(np.int64) if whole.all() else array
    return array
