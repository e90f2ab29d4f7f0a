"""Jobs that the processes of a study can be given; in a module of their own, which they import."""

from __future__ import annotations

import os
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
