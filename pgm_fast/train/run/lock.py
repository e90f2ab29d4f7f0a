"""One writer per run folder: a lock that the kernel takes back when its holder dies, however it dies."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from ...errors import CheckpointError
from .files import require_place

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

__all__ = ["RunLock"]

# File systems (some network ones) that know no locks: the run goes on without.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_ADVICE = "wait until it ends or stop it (pgm-fast resume goes on from there), or train into another out"


class RunLock:
    """The right to write into a run folder, held by one process at a time.

    The file ``.lock`` in the folder says who holds it. It is removed at the end; one that a killed process left is
    taken over.

    Args:
        folder: of the run; made where it is missing.
        what: is written there, for messages.
        advice: to whoever finds the lock held.
    """

    def __init__(self, folder: str | os.PathLike, what: str = "run", advice: str = _ADVICE):
        self._what, self._advice = what, advice
        self.path = Path(folder) / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: a file is in the place of the folder. CheckpointError: another process (or this one, in
                another call) holds it, or the file system refuses.
        """
        require_place(self.path.parent)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while self._descriptor is None:
                self._descriptor = self._try()
        except BlockingIOError as error:
            raise CheckpointError(
                f"{self.path.parent} is in use: {self._holder()} is writing this {self._what}; {self._advice}"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror}; give a folder that may be written to"
            ) from error

    def require(self) -> None:
        """Raises CheckpointError where the folder whose lock this process holds is gone, or another is in its place."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                return
        raise CheckpointError(
            f"{self.path.parent} was removed or replaced while this run wrote to it, and nothing more is written; "
            "train again into another out"
        )

    def release(self) -> None:
        """Give the lock back, where it is held."""
        if self._descriptor is None:
            return
        # While it is still held: whoever waits for this very file finds that it has no name any more and looks again.
        with suppress(OSError, CheckpointError):
            self.require()
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _try(self) -> int | None:
        """An open, locked descriptor; None where the file was removed in between. BlockingIOError where it is held."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {holder['process']:d} on {holder['host']!s}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process"


def _lock(descriptor: int) -> None:
    if fcntl is None:
        return
    try:
        # Of the open file, not of the process: two threads exclude each other too.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
