"""Jobs that the processes of a study can be given; in a module of their own, which they import."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Write:
    path: Path

    def run(self):
        self.path.write_text("done")


@dataclass(frozen=True)
class Die:
    status: int

    def run(self):
        os._exit(self.status)


@dataclass(frozen=True)
class Fail:
    message: str

    def run(self):
        raise ValueError(self.message)


@dataclass(frozen=True)
class Wait:
    """Says who works on it, and never ends."""

    path: Path

    def run(self):
        self.path.with_suffix(".begun").write_text(str(os.getpid()))
        self.path.with_suffix(".begun").rename(self.path)
        threading.Event().wait()
