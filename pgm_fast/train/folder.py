"""The folder of a run: what lies where, and who may write into it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from .files import atomic_write
from .lock import RunLock

__all__ = ["PLOTS", "RunFolder"]

PLOTS = (
    "confusion.png",
    "effective_dimensions.png",
    "gates.png",
    "labels.png",
    "learning_curves.png",
    "projection.png",
    "ranks.png",
    "scatter.png",
    "shares.png",
)
"""Names of the pictures of a run."""


class RunFolder:
    """Paths inside a run folder. Making one touches nothing.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.json"
        self.page = self.path / "report.html"
        self.last = self.path / "checkpoints" / "last.pt"
        self.previous = self.path / "checkpoints" / "previous.pt"
        self.best = self.path / "checkpoints" / "best.pt"
        self.plots = self.path / "plots"
        self.events = self.path / "tensorboard"
        self.lock = RunLock(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run."""
        return f"pgm-fast resume {shlex.quote(str(self.path))}"

    @property
    def started(self) -> bool:
        """Whether a run has written here."""
        return any(path.exists() for path in (self.config, self.metrics, self.report, self.last, self.best))

    def claim(self, overwrite: bool = False) -> None:
        """Make sure that a new run may write here.

        Args:
            overwrite: remove the files that the run here has written (and nothing else), whose config.yaml says that
                it is one.

        Raises:
            ConfigError: a run is here already, or the path is a file.
            CheckpointError: the old files cannot be removed.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out={self.path} is a file; name a folder that does not exist yet")
        if not self.started:
            return
        if not overwrite:
            state = "a finished" if self.report.exists() else "a started"
            raise ConfigError(
                f"out={self.path} holds {state} run already; choose another out, continue it with "
                f"`{self.resume_command}`, or replace it with --overwrite (overwrite=True)"
            )
        if not self._is_ours():
            raise ConfigError(
                f"out={self.path} holds files that are not of a run of this program (its {self.config.name} does not "
                "say so), and nothing of them is removed; choose another out"
            )
        try:
            # The configuration goes last: a folder whose removal was cut short still says what it was.
            for path in (*self._written(), self.config):
                path.unlink(missing_ok=True)
            for folder in (self.plots, self.events, self.last.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise CheckpointError(
                f"cannot remove the old run in {self.path}: {error.strerror}; choose another out"
            ) from error

    def _is_ours(self) -> bool:
        from .configure import written_by_a_run

        try:
            return written_by_a_run(self.read_config())
        except CheckpointError:
            return False

    def _written(self) -> list[Path]:
        """What a run writes, by name; what else lies in its folders is somebody's."""
        plots = [path for path in self.plots.glob("*.png") if path.name in PLOTS]
        events = list(self.events.glob("events.out.tfevents.*"))
        checkpoints = [self.last, self.previous, self.best]
        return [self.report, self.page, *plots, *events, *checkpoints, self.metrics]

    def require_no_links(self) -> None:
        """Raises CheckpointError where a place that a run writes to is a symbolic link: it would write somewhere else.

        The folder itself may be one.
        """
        files = (self.config, self.metrics, self.report, self.page, self.last, self.previous, self.best)
        folders = (self.last.parent, self.plots, self.events)
        inside = (path for folder in folders if not folder.is_symlink() for path in folder.rglob("*"))
        for path in (*folders, *files, *inside):
            if path.is_symlink():
                raise CheckpointError(
                    f"{path} is a symbolic link to {os.readlink(path)}, and a run writes through none inside of its "
                    "folder; put what it points to in its place, or link the whole folder"
                )

    def read_config(self) -> str:
        """The text of config.yaml. Raises CheckpointError where it cannot be read."""
        try:
            return self.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{self.config} cannot be read as text ({error}); restore it, or train anew"
            ) from None

    def write_config(self, text: str) -> None:
        """The first file of a run. Raises CheckpointError where the file system refuses."""
        with atomic_write(self.config, "w") as file:
            file.write(text)

    def require(self) -> None:
        """Raises CheckpointError unless a run has written its configuration here."""
        if not self.config.is_file():
            raise CheckpointError(
                f"{self.path} is not the folder of a run: there is no {self.config.name} in it; give the out of a run"
            )
