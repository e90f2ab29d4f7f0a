"""The end of a run: the best model scored on validation and test data, the report, the plots, the page."""

from __future__ import annotations

import json
import logging
import platform
from functools import partial
from typing import Any

import torch

from .. import (
    backends,
    ops,  # noqa: F401  (importing the ops registers their backends)
)
from ..env import checked_out, versions
from .assembly import Run
from .evaluation import collect
from .loop import Training
from .report.contents import build_report
from .report.page import write_page
from .run.folder import RunFolder
from .run.json_files import write_json
from .scores.gates import mean_gates
from .scores.measure import measure
from .scores.predictions import Predictions
from .scores.shares import class_shares, mean_shares, share_drift, share_intervals

__all__ = ["describe", "finish", "served_by"]

log = logging.getLogger(__name__)


def served_by(device: torch.device) -> dict[str, str]:
    """op -> the backend that takes its calls on ``device`` (float32, shapes aside)."""
    return {op: backends.chosen(op, device.type) for op in backends.implementations(device.type)}


def describe(run: Run) -> dict[str, Any]:
    """What config.yaml records of the surroundings of a run."""
    return {
        "versions": versions(),
        "git_commit": checked_out(),
        "device": device_name(run.ranks.device),
        "processes": run.ranks.world,
        "threads": torch.get_num_threads(),
        "backend": served_by(run.ranks.device),
        "data": run.features.name,
    }


def device_name(device: torch.device) -> str:
    """The name of a CUDA device, or the architecture of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def finish(run: Run, folder: RunFolder, training: Training) -> dict[str, Any]:
    """Score the model that training ended with and write what is to be read; report.json last: it means done.

    Returns:
        The report, on every rank.
    """
    has_test = len(run.features.rows("test")) > 0
    plots = run.config.train.plots
    said = partial(collect, run.method, ranks=run.ranks, precision=run.config.train.precision)
    valid = said(training.valid, features=plots and not has_test)
    test = said(run.loader("test"), features=plots) if has_test else None
    return run.ranks.on_main(lambda: _write(run, folder, training, valid, test))


def _write(
    run: Run, folder: RunFolder, training: Training, valid: Predictions, test: Predictions | None
) -> dict[str, Any]:
    folder.lock.require()
    config, spec, position = run.config, run.spec, training.position
    shown = valid if test is None else test
    report = build_report(
        method=config.method,
        data=run.features.name,
        task=spec.task,
        seed=config.train.seed,
        epochs=position.epoch,
        best_epoch=training.best.epoch,
        backend=served_by(run.ranks.device),
        valid=measure(valid, spec.task, spec.num_outputs, run.features.relevance),
        test={} if test is None else measure(test, spec.task, spec.num_outputs, run.features.relevance),
        shares=mean_shares(shown),
        gates=mean_gates(shown, spec.task, run.features.class_names),
        timing={
            "seconds": position.seconds,
            "seconds_per_epoch": position.seconds / max(position.epoch, 1),
            "samples_per_s": position.rows / max(position.train_seconds, 1e-9),
            "device": device_name(run.ranks.device),
        },
    )
    by_class = class_shares(shown, spec.task, run.features.class_names)
    report |= {"share_intervals": share_intervals(shown), "shares_by_class": by_class, **run.method.findings()}
    records = [json.loads(line) for line in training.records.split("\n")[:-1]]
    report["share_drift"] = share_drift([record["shares"] for record in records[: training.best.epoch]])
    report["skipped_steps"] = position.skipped
    report["parameters"] = sum(p.numel() for p in run.method.parameters())
    report["processes"] = run.ranks.world
    if not report["valid"]["fused"]:
        log.warning(
            "the model's predictions are not finite, so it has no scores: training diverged; lower train.lr (now %g) "
            "or look for extreme values with pgm-fast check-data",
            config.train.lr,
        )
    plots: list[str] = []
    if config.train.plots:
        from .report.plots import draw_run

        plots = draw_run(folder.path, records, report, shown, spec, run.features.class_names)
    write_page(folder.path, report, plots)
    write_json(folder.report, report)
    return report
