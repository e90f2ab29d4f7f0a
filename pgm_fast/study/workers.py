"""Processes that work off jobs, each on one core. One that dies takes its job with it and nothing else."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import PgmFastError

__all__ = ["Workers"]

_END = 5.0  # seconds to finish a training step in, before a worker is killed


class Workers:
    """Up to ``count`` processes, begun when there is work for them.

    Use as a context manager: at the end of the block none is left.
    """

    def __init__(self, count: int):
        self.count = count
        self._context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, tuple[Any, Any]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc_info) -> None:
        connections = [connection for _, connection in self._idle] + list(self._busy)
        processes = [process for process, _ in self._idle] + [process for process, _ in self._busy.values()]
        for process, _ in self._busy.values():
            process.terminate()
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(_END)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def free(self) -> int:
        """How many more jobs can be worked on at once."""
        return self.count - len(self._busy)

    @property
    def busy(self) -> int:
        """How many jobs are being worked on."""
        return len(self._busy)

    def start(self, job: Any) -> None:
        """Hand ``job``, an object with a method ``run()`` that can be pickled, to a process."""
        process, connection = self._idle.pop() if self._idle else self._new()
        try:
            connection.send(job)
        except OSError:  # it died while it waited
            process.join()
            process, connection = self._new()
            connection.send(job)
        self._busy[connection] = process, job

    def finished(self) -> list[tuple[Any, str | None]]:
        """Wait until a job has ended: those that have, each with the reason in one line where it failed."""
        ended = []
        for connection in wait(list(self._busy)):
            process, job = self._busy.pop(connection)
            try:
                problem = connection.recv()
                self._idle.append((process, connection))
            except (EOFError, OSError):
                process.join()
                problem = (
                    f"its process ended with status {process.exitcode}; memory may have run out: use fewer workers"
                )
            ended.append((job, problem))
        return ended

    def _new(self) -> tuple[Any, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(there,), daemon=True)
        process.start()
        there.close()
        return process, here


def _work(connection: Connection) -> None:
    """A process: one job after the other, until the other end is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_quiet_and_small()
    with suppress(EOFError, OSError):
        while True:
            connection.send(_problem(connection.recv().run))


def _end_with_parent() -> None:
    """A parent that is killed says nothing, and nobody would wait for the job."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _be_quiet_and_small() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C at a terminal reaches the study alone, which ends its workers
    logging.getLogger("pgm_fast").setLevel(logging.ERROR)  # the study itself has read the same data
    sys.stdout = open(os.devnull, "w")


def _problem(run: Callable[[], None]) -> str | None:
    try:
        run()
    except PgmFastError as error:
        return " ".join(str(error).split())
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {' '.join(str(error).split())} ({where.filename}:{where.lineno})"
    return None
