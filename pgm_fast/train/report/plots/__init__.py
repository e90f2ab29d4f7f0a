"""Pictures of a run, drawn off screen: what was learned when, how features divide, and what the model gets wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....data.feature_set import DataSpec
from ....errors import ConfigError
from ...run.folder import RunFolder
from ...run.json_files import read_json, read_jsonl
from ...scores.predictions import Predictions
from ..contents import require_same
from .canvas import save
from .curves import learning_curves
from .dimensions import competition_curves, effective_map
from .gates import gate_bars
from .outcome import confusion_matrix, label_bars, match_curves, scatter
from .projection import projection
from .shares import class_map, share_bars

__all__ = ["draw_competition", "draw_run"]

_OUTCOMES = {
    "classification": ("confusion.png", confusion_matrix),
    "multilabel": ("labels.png", label_bars),
    "regression": ("scatter.png", scatter),
    "retrieval": ("ranks.png", match_curves),
}


def draw_run(
    run_dir: str | os.PathLike,
    records: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    predictions: Predictions,
    spec: DataSpec,
    class_names: Sequence[str] | None = None,
) -> list[str]:
    """Draw every plot of a run that its results allow, into ``run_dir/plots``.

    ``learning_curves.png``, ``shares.png`` and, for classes, ``shares_by_class.png`` (methods with a partitioner),
    ``gates.png`` (with a gate), one of ``confusion.png``, ``labels.png``, ``scatter.png`` and ``ranks.png`` by task,
    ``effective_dimensions.png`` (methods that measure them), and ``projection.png`` (where ``predictions`` hold
    features). Files are replaced whole. No display is opened and no global state of matplotlib is touched, so threads
    may draw at the same time. Equal input gives equal files.

    Args:
        run_dir: the run folder.
        records: the objects of metrics.jsonl, one per epoch and stage.
        report: the content of report.json.
        predictions: of the split that the outcome and the projection are to show.
        spec: what the data looks like.
        class_names: names of the classes or labels; their numbers where there are none.

    Returns:
        The paths of the plots that were drawn, relative to ``run_dir``.

    Raises:
        CheckpointError: the file system refused.
    """
    names = list(class_names) if class_names is not None else [str(i) for i in range(spec.num_outputs)]
    outcome_file, outcome = _OUTCOMES[spec.task]
    figures = {
        "learning_curves.png": learning_curves(records, report),
        "shares.png": share_bars(records, report),
        "shares_by_class.png": class_map(report),
        "gates.png": gate_bars(report),
        outcome_file: outcome(predictions, spec, names),
        "effective_dimensions.png": effective_map(report),
        "projection.png": projection(predictions, spec, names),
    }
    drawn = []
    for name, figure in figures.items():
        if figure is not None:
            save(figure, Path(run_dir) / "plots" / name)
            drawn.append(f"plots/{name}")
    return drawn


def draw_competition(runs: Sequence[str | os.PathLike], alone: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draw each modality's score within finished runs against training it alone: does one starve the other?

    Args:
        runs: folders of runs of any methods on the same data.
        alone: folder of a run of the method ``unimodal`` on it, in which no modality's gradient reaches another.
        path: of the picture, PNG.

    Raises:
        ConfigError: the runs differ in their data or task, or ``alone`` is of another method.
        CheckpointError: a folder holds no finished run, or the file system refused.
    """
    folders = [RunFolder(folder) for folder in (alone, *runs)]
    reports = [read_json(folder.report) for folder in folders]
    require_same(reports, ("data", "task"))
    if reports[0]["method"] != "unimodal":
        raise ConfigError(f"{folders[0]} is a run of {reports[0]['method']}, must be of unimodal")
    records = [read_jsonl(folder.metrics) for folder in folders]
    modalities = reports[0]["valid"]["unimodal"]
    names = [report["method"] for report in reports[1:]]
    named = {
        name if names.count(name) == 1 else f"{name} ({f.path.name})": r
        for name, f, r in zip(names, folders[1:], records[1:], strict=True)
    }
    figure = competition_curves(named, dict.fromkeys(modalities, records[0]), reports[0]["task"])
    save(figure, Path(path))
