"""Stopping on request: the first SIGTERM or SIGINT asks, the second ends the process as it always did."""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["StopRequest"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Context manager that notes a signal instead of dying of it.

    After the first signal, and at the end of the block, the handlers that were there before are in place again.
    Outside of the main thread, where Python allows no handlers, it notes nothing.

    Attributes:
        signal: name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exc_info) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
