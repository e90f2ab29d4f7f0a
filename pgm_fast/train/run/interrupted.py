"""What an interrupted run left: whether it is over, and the state that it goes on from."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..config import Config
from ..configure import flat, from_yaml
from . import checkpoints
from .files import atomic_write
from .folder import RunFolder
from .json_files import read_json, read_jsonl
from .shards import require_whole

__all__ = ["finished", "report_of", "restore_log", "state_of"]

log = logging.getLogger(__name__)

_FREE_TO_CHANGE = ("out", "train.device", "train.threads", "train.plots", "train.logger")


def finished(folder: RunFolder, config: Config, warn: bool = False) -> dict[str, Any] | None:
    """The report of a run that is over, as :func:`report_of`.

    Raises:
        CheckpointError: ``config``, as its config.yaml says now, is not what the run was trained with, as far as a
            checkpoint that can be read tells.
    """
    report = report_of(folder, warn)
    if report is None:
        return None
    for path in (folder.last, folder.previous, folder.best):
        with suppress(CheckpointError):
            started = checkpoints.load_run(path)["config"]
            break
    else:
        return report
    _require_same_config(folder, config, from_yaml(started))
    return report


def report_of(folder: RunFolder, warn: bool = False) -> dict[str, Any] | None:
    """The report of a run that is over; None where there is none, or where report or log are damaged: with last.pt
    both can be written anew, and ``warn`` says so."""
    if not folder.report.is_file():
        return None
    try:
        report, records = read_json(folder.report), read_jsonl(folder.metrics)
        whole, problem = report["epochs"] == len(records), f"{folder.metrics} lacks epochs of {folder.report.name}"
    except CheckpointError as error:
        whole, problem = False, str(error).partition(";")[0]
    except (LookupError, TypeError):
        whole, problem = False, f"{folder.report} is not the report of a run"
    if warn and not whole:
        log.warning("%s; both are written anew from the checkpoints", problem)
    return report if whole else None


def state_of(folder: RunFolder, config: Config, world: int) -> dict[str, Any] | None:
    """What the run in the folder goes on from; None where it has not come to its first checkpoint.

    Args:
        folder: of the run.
        config: as its config.yaml says now.
        world: number of processes now.

    Raises:
        CheckpointError: no checkpoint can be read, or the run was started with another configuration or another number
            of processes, which train.strategy=fsdp alone takes.
    """
    if not any(path.is_file() for path in (folder.last, folder.previous, folder.best, folder.metrics)):
        return None
    state = _last_readable(folder)
    _require_same_config(folder, config, from_yaml(state["config"]))
    if state["world"] != world and config.train.strategy != "fsdp":
        raise CheckpointError(
            f"{folder} was trained by {state['world']} processes, now there are {world}; "
            "resume it with as many, so that the result is the same"
        )
    return state


def restore_log(folder: RunFolder, state: Mapping[str, Any]) -> None:
    """metrics.jsonl as the checkpoint knows it: lines of later epochs are written again, and lost ones come back."""
    records = state["records"].encode()
    if not folder.metrics.is_file() or folder.metrics.read_bytes() != records:
        with atomic_write(folder.metrics, "wb") as file:
            file.write(records)


def _last_readable(folder: RunFolder) -> dict[str, Any]:
    try:
        return _whole(folder.last)
    except CheckpointError as error:
        try:
            state = _whole(folder.previous)
        except CheckpointError:
            raise error from None
        reason = str(error).partition(";")[0]
    epoch, step = state["position"]["epoch"], state["position"]["step"]
    log.warning("%s; going on from %s: %d epochs, %d steps", reason, folder.previous, epoch, step)
    return state


def _whole(path: Path) -> dict[str, Any]:
    state = checkpoints.load_run(path, going_on=True)
    require_whole(path, state)
    return state


def _require_same_config(folder: RunFolder, config: Config, started: Config) -> None:
    """Raises CheckpointError where config.yaml no longer says what the run was started with."""
    now, then = flat(config), flat(started)
    different = [key for key in dict.fromkeys([*then, *now]) if now.get(key) != then.get(key)]
    different = [key for key in different if key not in _FREE_TO_CHANGE]
    if different:
        changes = ", ".join(f"{key} is {now.get(key)!r} and was {then.get(key)!r}" for key in different)
        raise CheckpointError(
            f"{folder.config} is not the configuration that this run was started with: {changes}; "
            "put it back, or train a new run with it in another folder "
            f"(pgm-fast train --config {shlex.quote(str(folder.config))} --out FOLDER)"
        )
