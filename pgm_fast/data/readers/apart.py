"""Files whose library may end the process that reads a broken one are read in a process of their own, which has limits
of time and memory: whatever happens to it is one error here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..archives import UNREADABLE, require_free
from ..files import FileRows
from ..memory import free_bytes
from ..raw import Problem, RefusedData, Request, one_line

__all__ = ["read_apart"]

SILENCE = 60.0  # seconds without a byte after which the process is ended
LONGEST_LINE = 1 << 30  # bytes
LEAST_MEMORY = 1 << 30  # bytes that a process may take in any case
SHORT_TEXT = 64  # bytes of a text of Python's, and of its place in a list
BROKEN = "damaged or made up? Write it again"


def read_apart(program: Path, path: Path, request: Request, **order: Any) -> dict[str, Any]:
    """What a program such as :mod:`.hdf5_child` finds in a file: arrays, and a mapping for each group.

    Arrays that lie in one piece in the file stay there; what is to be ignored is an array without values.

    Raises:
        RefusedData: what the program refuses or cannot read; it ended, or came to a stand.
    """
    order |= {"path": str(path.resolve()), "ignore": list(request.ignore), "modules": list(map(str, sys.path))}
    order["memory"] = max(LEAST_MEMORY, free_bytes(torch.device("cpu")))
    # switches of a library come by its own variables, and HDF5's own word for no plug-ins is "::"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HDF5_")}
    environment["HDF5_PLUGIN_PRELOAD"] = "::"
    try:
        pipe = _Pipe(_start(program, order, environment))
        try:
            return _receive(pipe, path, request)
        finally:
            pipe.close()
    except (AttributeError, *UNREADABLE) as error:
        if isinstance(error, RefusedData):
            raise
        raise RefusedData(Problem(str(path), "", None, f"not readable: {one_line(error)}")) from None


def _start(program: Path, order: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen:
    with tempfile.TemporaryFile() as orders:
        orders.write(json.dumps(order).encode())
        orders.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", str(program)],
            stdin=orders,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )


def _receive(pipe: _Pipe, path: Path, request: Request) -> dict[str, Any]:
    content: dict[str, Any] = {}
    while "end" not in (message := json.loads(pipe.line())):
        key = message["key"]
        if "broken" in message:
            raise RefusedData(Problem(str(path), key, None, f"not readable ({message['broken']}); {BROKEN}"))
        if "refused" in message:
            leave_out = f"data.ignore=[{','.join((*request.ignore, key.rpartition('/')[2]))}]"
            text = f"{message['refused']}, or leave it out by {leave_out}"
            raise RefusedData(Problem(str(path), key, None, text))
        if "group" in message:
            content[key] = {}
            continue
        group, _, name = key.rpartition("/")
        place = content[group] if group else content
        place[name] = np.empty(0) if "empty" in message else _value(pipe, message, path)
    return content


def _value(pipe: _Pipe, message: dict, path: Path) -> np.ndarray | FileRows:
    if "text" in message:
        return _text(pipe, message)
    shape, dtype = tuple(map(int, message["shape"])), np.dtype(message["dtype"])
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "fiub" or min(shape, default=0) < 0:
        raise ValueError(f"{dtype} {shape}, and numbers are read")
    if "offset" in message:
        if not 0 <= message["offset"] <= message["offset"] + size <= path.stat().st_size:
            raise ValueError(f"{size} bytes from byte {message['offset']} on, of a file of {path.stat().st_size}")
        return FileRows(path, message["offset"], shape, dtype)
    require_free(2 * size if "matlab" in message else size)
    array = np.empty(shape, dtype)
    pipe.fill(memoryview(array.reshape(-1).view(np.uint8)) if array.size else memoryview(bytearray()))
    return _of_matlab(array, message["matlab"]) if "matlab" in message else array


def _text(pipe: _Pipe, message: dict) -> np.ndarray:
    if isinstance(message["text"], str):
        return np.array(message["text"])
    require_free(SHORT_TEXT * message["rows"])
    values, longest = message["text"], 1
    while True:
        longest = max(longest, *map(len, message["text"])) if message["text"] else longest
        require_free(4 * longest * len(values))
        if not message["more"]:
            return np.array(values, f"<U{longest}")
        message = json.loads(pipe.line())
        values.extend(message["text"])


def _of_matlab(array: np.ndarray, kind: str) -> np.ndarray:
    """Rows first, as MATLAB shows them."""
    array = np.ascontiguousarray(array.T)
    return array.astype(bool) if kind == "logical" else array


class _Pipe:
    """Standard output of a process, which must say something every :data:`SILENCE` seconds."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self._held = bytearray()
        self._waiting = 0.0  # since when something is waited for, 0 while nothing is
        self._silent = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, SILENCE / 4)):
            if (since := self._waiting) and time.monotonic() - since > SILENCE:
                self._silent = True
                self._process.kill()
                return

    def close(self) -> None:
        self._closed.set()
        self._process.kill()
        self._process.stdout.close()
        self._process.wait()

    def _more(self) -> bytes:
        self._waiting = time.monotonic()
        piece = self._process.stdout.read1(1 << 20)
        self._waiting = 0.0
        if not piece:
            status = self._process.wait()
            how = f"signal {-status}" if status < 0 else f"status {status}"
            what = f"nothing came of it for {SILENCE:.0f} s" if self._silent else f"its library ended ({how})"
            raise ValueError(f"{what}; {BROKEN}")
        return piece

    def line(self) -> bytes:
        start = 0
        while (end := self._held.find(b"\n", start)) < 0:
            start = len(self._held)
            if start > LONGEST_LINE:
                raise ValueError(f"text of more than {LONGEST_LINE >> 20} MB; {BROKEN}")
            self._held += self._more()
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return line

    def fill(self, place: memoryview) -> None:
        done = min(len(place), len(self._held))
        place[:done] = self._held[:done]
        del self._held[:done]
        while done < len(place):
            piece = self._more()
            used = min(len(piece), len(place) - done)
            place[done : done + used] = piece[:used]
            self._held += piece[used:]
            done += used
