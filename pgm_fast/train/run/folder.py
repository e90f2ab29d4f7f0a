"""The folder of a run: what lies where, and who may write into it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError, ConfigError
from .files import atomic_write, require_place
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
    "shares_by_class.png",
)
"""Names of the pictures of a run."""

_SHARDS = ("__*_*.distcp", ".metadata", ".metadata.tmp")  # what torch.distributed.checkpoint writes

# What wandb leaves of a run.
_WANDB = (
    "run-*.wandb",
    "run-*.wandb.synced",
    "logs/debug*.log",
    *(f"files/{name}" for name in ("config.yaml", "output.log", "requirements.txt")),
    *(f"files/wandb-{name}.json" for name in ("metadata", "summary")),
)


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
        # of last.pt, of previous.pt, and of the one that is being written, in any order
        self.shards = tuple(self.path / "checkpoints" / f"shards-{number}" for number in range(3))
        self.plots = self.path / "plots"
        self.events = self.path / "tensorboard"
        self.wandb = self.path / "wandb"
        self.mlflow = self.path / "mlruns" / "mlflow.db"
        self.trackers = self.path / "trackers.json"
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
        require_place(self.path, "out=")
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
            written = self._written()
            emptied = {folder / name for folder in self._wandb_runs() for name in ("tmp/code", "tmp")}
            for path in (*written, self.config):
                path.unlink(missing_ok=True)
            inside = {parent for path in written for parent in path.parents if self.path in parent.parents}
            inside |= {self.plots, self.events, *emptied}
            for folder in sorted(inside, key=lambda folder: -len(folder.parts)):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            raise CheckpointError(
                f"cannot remove the old run in {self.path}: {error.strerror}; choose another out"
            ) from error

    def _is_ours(self) -> bool:
        from ..configure import written_by_a_run

        try:
            return written_by_a_run(self.read_config())
        except CheckpointError:
            return False

    def _written(self) -> list[Path]:
        """What a run writes, by name; what else lies in its folders is somebody's."""
        plots = [path for path in self.plots.glob("*.png") if path.name in PLOTS]
        events = list(self.events.glob("events.out.tfevents.*"))
        checkpoints = [self.last, self.previous, self.best]
        database = [self.mlflow.with_name(f"{self.mlflow.name}{end}") for end in ("", "-journal", "-wal", "-shm")]
        checkpoints += [path for folder in self.shards for name in _SHARDS for path in folder.glob(name)]
        written = [self.report, self.page, *plots, *events, *checkpoints, *database]
        written += [path for folder in self._wandb_runs() for name in _WANDB for path in folder.glob(name)]
        return [*written, self.trackers, self.metrics]

    def _wandb_runs(self) -> list[Path]:
        """The folders of this run in wandb/: one, and one more for each time that it was resumed."""
        run = self.tracker_ids().get("wandb")
        return [] if run is None else list(self.wandb.glob(f"*run-*-{run}"))

    def tracker_ids(self) -> dict[str, str]:
        """tracker -> the id under which it knows this run; nothing of a file that is not of this form."""
        try:
            ids = json.loads(self.trackers.read_text(encoding="utf-8"))
            return {name: id for name, id in ids.items() if re.fullmatch("[0-9a-f]{8,64}", id)}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def keep_tracker_ids(self, ids: Mapping[str, str]) -> None:
        """Raises CheckpointError where the file system refuses."""
        with atomic_write(self.trackers, "w") as file:
            json.dump(dict(ids), file)

    def require_no_links(self) -> None:
        """Raises CheckpointError where a place that a run writes to is a symbolic link: it would write somewhere else.

        The folder itself may be one.
        """
        files = (self.config, self.metrics, self.report, self.page, self.trackers)
        # Of wandb/ no more: each start has a new folder there, in which wandb itself makes a link to its log.
        files += (self.last, self.previous, self.best, self.wandb)
        folders = (self.last.parent, self.plots, self.events, self.mlflow.parent)
        inside = (path for folder in folders if not folder.is_symlink() for path in folder.rglob("*"))
        for path in (*folders, *files, *inside):
            if path.is_symlink():
                raise CheckpointError(
                    f"{path} is a symbolic link to {os.readlink(path)}, and a run writes through none inside of its "
                    "folder; put what it points to in its place, or link the whole folder"
                )

    def read_config(self) -> str:
        """The text of config.yaml. Raises CheckpointError where it cannot be read or is empty."""
        try:
            text = self.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{self.config} cannot be read as text ({error}); restore it, or train anew"
            ) from None
        if not text.strip():
            raise CheckpointError(f"{self.config} is empty; {self._config_again()}")
        return text

    def _config_again(self) -> str:
        path = next((path for path in (self.last, self.previous, self.best) if path.is_file()), None)
        if path is None:
            return "put a copy of it back, or train anew into another folder"
        program = (
            "import sys, pathlib; from pgm_fast.train.run.checkpoints import load_run; "
            "pathlib.Path(sys.argv[2]).write_text(load_run(sys.argv[1])['config'], encoding='utf-8')"
        )
        command = f'python -c "{program}" {shlex.join([str(path), str(self.config)])}'
        return f"put a copy of it back, or what {path.name} knows of it: {command}"

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
