"""Files that are either the old version or the new one, never something between."""

from __future__ import annotations

import csv
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ...errors import CheckpointError, ConfigError

__all__ = ["atomic_write", "require_place", "second_name", "sync_folder", "write_csv"]

FORMULA = tuple("=+-@＝＋－＠\t\r\n\0")  # noqa: RUF001  (wide signs are what some spreadsheets take for the narrow ones)


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` for writing; it takes the name ``path`` when the block ends well.

    The content is flushed to the disk before the rename and the folder's entry after it, so at every moment, through a
    kill or a power cut, ``path`` is what it was before or the whole new file. If the block fails the temporary file is
    removed and ``path`` is as it was. Missing folders are made. A file has one writer at a time: what an earlier,
    killed writer left is removed here.

    Args:
        path: the file to create or replace; through a symbolic link, the file that it points to.
        mode: ``wb`` or ``w`` (UTF-8).

    Raises:
        CheckpointError: the file system refused (no space, no permission, ...), naming the path and the reason.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', got {mode!r}")
    target = Path(os.path.realpath(path))
    temporary = _beside(target)
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            with os.fdopen(descriptor, mode, encoding=None if mode == "wb" else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_folder(target.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except CheckpointError:
        raise
    except Exception as error:
        refusal = _file_error(error)
        if refusal is None:
            raise
        reason = refusal.strerror or str(refusal)
        raise CheckpointError(
            f"cannot write {path}: {reason}; what was there before is kept, make room or choose another folder"
        ) from error


def require_place(folder: Path, key: str = "") -> None:
    """Raises ConfigError where a file stands in the place of a folder to write, or of one that it is to lie in.

    Args:
        folder: there or not.
        key: what stands before it in the message, such as ``out=``.
    """
    for path in (folder, *folder.parents):
        if os.path.lexists(path) and not os.path.isdir(path):
            state = f"is {_kind(path)}" if path == folder else f"cannot be made: {path} is {_kind(path)}"
            raise ConfigError(f"{key}{folder} {state}; name a folder, one that is there or a new one")


def _kind(path: Path) -> str:
    return "a link to nothing" if not os.path.exists(path) else "a file"


def second_name(path: Path, name: Path) -> None:
    """Give the file at ``path`` a second name, in place of what is there; a copy where the file system has no links.

    Of a file that is only ever replaced, as by :func:`atomic_write`: its content stays under the second name.

    Raises:
        CheckpointError: as :func:`atomic_write`.
    """
    if name.exists() and path.samefile(name):
        return
    temporary = _beside(name)
    try:
        _remove_leftovers(name)
        os.link(path, temporary)
        os.replace(temporary, name)
    except OSError:
        with open(path, "rb") as source, atomic_write(name, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _file_error(error: BaseException | None) -> OSError | None:
    """The OSError behind ``error``: a serializer may end in an error of its own after a write was refused."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _remove_leftovers(target: Path) -> None:
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.tmp")
    for name in os.listdir(target.parent):
        if pattern.fullmatch(name):
            with suppress(OSError):
                target.with_name(name).unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_csv(file: IO[str], header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Every csv that is written: no cell is a formula to a spreadsheet, whatever a data set's ids and names are.

    A text that begins with ``=``, ``+``, ``-``, ``@``, as wide signs too, or with a tab, the end of a line or a null
    character and is no number gets an apostrophe in front (OWASP, "CSV Injection" and ASVS 1.2.10).
    """
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in chain([header], rows):
        cells = list(map(_as_text, row))
        # csv leaves a lone carriage return bare, and a spreadsheet begins a row behind it.
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)


def _as_text(cell: str) -> str:
    if not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
