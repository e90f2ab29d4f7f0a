"""Where the numbers of a run go besides its own files: TensorBoard, Weights & Biases, MLflow, each by its own library.

Nothing is sent unless the user's environment says where to, and nothing that fails here stops a run.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import util
from typing import Any, Protocol

from ...env import EXTRAS
from ...errors import ConfigError
from ..config import Config
from ..configure import TRACKERS, flat, to_dict
from ..run.folder import RunFolder

__all__ = ["Trackers", "require_trackers"]

log = logging.getLogger(__name__)

PROJECT = "pgm-fast"  # of W&B, experiment of MLflow; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME name another
_PARAMS_PER_CALL, _METRICS_PER_CALL = 100, 1000  # MLflow's limits of a batch


class Tracker(Protocol):
    """What takes the numbers of a run. Made when training begins; any method may raise.

    Attributes:
        id: under which the library goes on with the run; None where it needs none.
    """

    id: str | None

    def __init__(self, folder: RunFolder, config: Config, done: int, id: str | None): ...

    def log(self, scalars: Mapping[str, float], epoch: int) -> None: ...

    def summary(self, scalars: Mapping[str, float], epoch: int) -> None: ...

    def close(self, status: str) -> None: ...


class TensorBoard:
    """Event files in ``tensorboard/``; events after ``done`` epochs are taken back, since they are written again."""

    id = None

    def __init__(self, folder: RunFolder, config: Config, done: int, id: str | None):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.events), purge_step=done + 1)

    def log(self, scalars: Mapping[str, float], epoch: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    summary = log

    def close(self, status: str) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases, files in ``wandb/``: offline unless WANDB_MODE or WANDB_API_KEY is set."""

    def __init__(self, folder: RunFolder, config: Config, done: int, id: str | None):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        offline = not (os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"))
        # A run folder holds no links; git would run what the repository at hand names, see env.checked_out.
        settings = {"symlink": False, "disable_git": True, "disable_code": True, "console": "off"}
        self.id = id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=folder.path.resolve().name,
            id=self.id,
            resume="allow" if id else None,
            dir=str(folder.path),
            config=to_dict(config),
            mode="offline" if offline else None,
            reinit="create_new",  # a run of the caller's own stays open
            settings=wandb.Settings(**settings, **({"silent": True} if offline else {})),
        )

    def log(self, scalars: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(scalars), step=epoch)

    def summary(self, scalars: Mapping[str, float], epoch: int) -> None:
        self._run.summary.update(dict(scalars))

    def close(self, status: str) -> None:
        self._run.finish(exit_code=int(status == "FAILED"))


class MLflow:
    """MLflow, where MLFLOW_TRACKING_URI points; else the database ``mlruns/mlflow.db``.

    Not its older folders of files: mlflow refuses them unless asked twice.
    """

    def __init__(self, folder: RunFolder, config: Config, done: int, id: str | None):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # each table's making is told at INFO
        uri, artifacts = None, None
        if not mlflow.is_tracking_uri_set():
            database = folder.mlflow.resolve()
            database.parent.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{database.as_posix()}", (database.parent / "artifacts").as_uri()
        self._client = mlflow.MlflowClient(uri)
        if id:
            self.id = id
            self._client.update_run(id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        self.id = self._client.create_run(experiment, run_name=folder.path.resolve().name).info.run_id
        params = [mlflow.entities.Param(_plain(key), str(value)) for key, value in flat(config).items()]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(self.id, params=params[start : start + _PARAMS_PER_CALL])

    def log(self, scalars: Mapping[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(_plain(name), value, now, epoch) for name, value in scalars.items()]
        for start in range(0, len(metrics), _METRICS_PER_CALL):
            self._client.log_batch(self.id, metrics=metrics[start : start + _METRICS_PER_CALL])

    summary = log

    def close(self, status: str) -> None:
        self._client.set_terminated(self.id, status)


_KINDS: dict[str, type[Tracker]] = dict(zip(TRACKERS, (TensorBoard, WandB, MLflow), strict=True))
# Tracker -> the extra that brings it, and the modules of it that it needs.
_NEEDS = {
    "tensorboard": ("train", ("tensorboard",)),
    "wandb": ("trackers", ("wandb",)),
    "mlflow": ("trackers", ("mlflow", "sqlalchemy", "alembic")),
}


def require_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError where the library of a tracker is not installed."""
    for name in names:
        extra, modules = _NEEDS[name]
        missing = [EXTRAS[extra][module] for module in modules if util.find_spec(module) is None]
        if missing:
            raise ConfigError(
                f"train.logger names {name}, which needs {', '.join(missing)}, not installed here: "
                f'pip install "pgm-fast[{extra}]", or leave {name} out of train.logger'
            )


class Trackers:
    """Context manager over the trackers of a run. One that fails is said once, and the run goes on without it.

    Args:
        names: which, of :data:`~pgm_fast.train.configure.TRACKERS`.
        folder: of the run, which keeps their ids.
        config: of the run.
        done: epochs already done, by which a resumed run begins.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder, config: Config, done: int = 0):
        self._names = names
        self._folder = folder
        self._config = config
        self._done = done
        self._open: dict[str, Tracker] = {}

    def __enter__(self) -> Trackers:
        for name in self._names:
            try:
                ids = self._folder.tracker_ids()
                tracker = _KINDS[name](self._folder, self._config, self._done, ids.get(name))
                self._open[name] = tracker
                if tracker.id not in (None, ids.get(name)):
                    self._folder.keep_tracker_ids({**ids, name: tracker.id})
            except Exception as error:
                self._lose(name, error)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest) -> None:
        stopped = kind is not None and issubclass(kind, (SystemExit, KeyboardInterrupt))
        status = "FINISHED" if kind is None else "KILLED" if stopped else "FAILED"
        self._tell(lambda tracker: tracker.close(status))

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch ended: its line of metrics.jsonl."""
        self._tell(lambda tracker: tracker.log(dict(_scalars(record)), record["epoch"]))

    def summary(self, report: Mapping[str, Any]) -> None:
        """The run ended: its report."""

        def told(tracker: Tracker) -> None:
            scalars = dict(_scalars({key: report[key] for key in ("best_epoch", "test")}))
            tracker.summary(scalars, report["epochs"])

        self._tell(told)

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                what(tracker)
            except Exception as error:  # of a library that is not ours, over disks and networks
                self._lose(name, error)

    def _lose(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
        log.warning("%s fails (%s); training goes on without it, metrics.jsonl holds the same", name, reason)


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """``("valid/fused/accuracy", 0.9)``, ... for every number of a record."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key != "epoch":
            yield f"{prefix}{key}", float(value)


def _plain(name: str) -> str:
    """A name that MLflow takes: a modality's may hold anything."""
    return re.sub(r"[^\w./ -]", "_", name)
