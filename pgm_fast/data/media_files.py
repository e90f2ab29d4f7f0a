"""Where a sound or picture lies: a file of its own, or some bytes of an archive, which is not unpacked."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["Member", "Place", "extent_of", "open_place"]


@dataclass(frozen=True)
class Member:
    """``size`` bytes from byte ``offset`` on of the file ``archive``, called ``name`` in it."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


Place = Path | Member


def open_place(place: Place) -> BinaryIO:
    """Its bytes, to read and to seek in. Raises OSError."""
    if isinstance(place, Member):
        return io.BufferedReader(_Window(place))
    return open(place, "rb")


def extent_of(place: Place) -> tuple:
    """The file that holds it; of a member also where its bytes begin, and how many there are."""
    return (place.archive, place.offset, place.size) if isinstance(place, Member) else (place,)


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, member: Member):
        self._file = open(member.archive, "rb", buffering=0)  # noqa: SIM115  (closed with the window)
        self._offset = member.offset
        self._size = member.size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, place) -> int:
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(place)[: max(0, self._size - self._at)])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
