"""What a run reports: its scores and shares, the summary over seeds, and both as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from .json_files import plain
from .metrics import METRICS
from .predictions import Predictions

__all__ = [
    "PARTITIONS",
    "build_report",
    "cell",
    "class_shares",
    "mean_shares",
    "require_same",
    "share_intervals",
    "summarise",
    "summary_table",
]

_NORMAL_95 = 1.96  # standard deviations
PARTITIONS: dict[int, tuple[str, ...]] = {2: ("uni", "paired"), 4: ("uni_only", "paired_only", "shared", "unused")}
"""Names of the partitions by how many there are: the single gate's two, the four of the dual and the boundary gate."""


def mean_shares(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Mean gate mass over the rows where the modality is present: ``{modality: {partition: float}}``.

    Modalities without a partitioner or without rows are left out.
    """
    return _over_rows(predictions, slice(None), lambda rows: rows.mean(axis=0, dtype=np.float64), least=1)


def share_intervals(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Half width of the 95 % interval of each mean share over rows, by the normal approximation, shaped like
    :func:`mean_shares`. Modalities with fewer than two rows are left out."""
    return _over_rows(predictions, slice(None), _half_width, least=2)


def class_shares(
    predictions: Predictions, task: str, class_names: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Mean shares over the rows of each class: ``{class: {"rows": int, "shares": ..., "intervals": ...}}``, the last
    two as from :func:`mean_shares` and :func:`share_intervals`.

    Empty without labels, for another task than classification, and for a method without a partitioner.
    """
    if task != "classification" or predictions.labels is None or not predictions.shares:
        return {}
    found = {}
    for k in np.unique(predictions.labels).tolist():
        rows = predictions.labels == k
        found[str(k) if class_names is None else class_names[k]] = {
            "rows": int(rows.sum()),
            "shares": _over_rows(predictions, rows, lambda of: of.mean(axis=0, dtype=np.float64), least=1),
            "intervals": _over_rows(predictions, rows, _half_width, least=2),
        }
    return found


def _over_rows(
    predictions: Predictions, chosen: slice | np.ndarray, of: Callable[[np.ndarray], np.ndarray], least: int
) -> dict[str, dict[str, float]]:
    """``{modality: {partition: of(shares [n, K])}}`` of the chosen rows that have the modality, if there are at least
    ``least`` of them."""
    found = {}
    for modality, shares in predictions.shares.items():
        rows = shares[chosen]
        if modality in predictions.presence:
            rows = rows[predictions.presence[modality][chosen]]
        if len(rows) >= least:
            values = of(rows).tolist()
            found[modality] = {
                name: round(value, 7) for name, value in zip(PARTITIONS[len(values)], values, strict=True)
            }
    return found


def _half_width(rows: np.ndarray) -> np.ndarray:
    return _NORMAL_95 * rows.std(axis=0, ddof=1, dtype=np.float64) / math.sqrt(len(rows))


def build_report(
    *,
    method: str,
    data: str,
    task: str,
    seed: int,
    epochs: int,
    best_epoch: int,
    backend: str | Mapping[str, str],
    valid: Mapping[str, Any],
    test: Mapping[str, Any],
    shares: Mapping[str, Mapping[str, float]],
    timing: Mapping[str, float],
    gates: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        method: name of the method.
        data: the data set's name or source.
        task: see :data:`~pgm_fast.train.metrics.METRICS`.
        seed: of this run.
        epochs: how many were trained, over all stages.
        best_epoch: the epoch, counted from 1, that the scores belong to.
        backend: what served the operations, one name or a name per operation.
        valid, test: as from :func:`~pgm_fast.train.metrics.evaluate_predictions`; empty for a split without rows.
        shares: as from :func:`mean_shares`, on the test split.
        timing: seconds and rates by name.
        gates: as from :func:`~pgm_fast.train.gates.mean_gates`, on the test split.
    """
    return plain(
        {
            "method": method,
            "data": data,
            "task": task,
            "seed": seed,
            "epochs": epochs,
            "best_epoch": best_epoch,
            "backend": backend,
            "valid": valid or {"fused": {}, "unimodal": {}},
            "test": test or {"fused": {}, "unimodal": {}},
            "shares": shares,
            "gates": gates or {},
            "timing": timing,
        }
    )


def summarise(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation over runs that differ in their seed: the content of summary.json.

    Args:
        reports: one report per run.

    Returns:
        ``{"method", "data", "task", "runs", "seeds", "valid", "test", "shares", "gates"}``; the last four are nested as
        in a report, with ``{"mean": float, "std": float | None}`` in place of every number. The deviation of a single
        run is not defined: None. A metric that some runs lack is left out, since a mean over other runs compares with
        nothing.

    Raises:
        ConfigError: no reports, or they differ in method, data or task.
    """
    if not reports:
        raise ConfigError("there are no reports to summarise; give at least one seed")
    require_same(reports, ("method", "data", "task"))
    first = reports[0]
    return {
        **{key: first[key] for key in ("method", "data", "task")},
        "runs": len(reports),
        "seeds": [report["seed"] for report in reports],
        **{key: _moments([report.get(key, {}) for report in reports]) for key in ("valid", "test", "shares", "gates")},
    }


def require_same(reports: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Raises ConfigError for reports or summaries that differ in one of ``keys``, and so say nothing together."""
    for key in keys:
        found = sorted({str(report[key]) for report in reports})
        if len(found) > 1:
            raise ConfigError(f"the runs differ in {key}: {', '.join(found)}; take runs of one {key} only")


def summary_table(result: Mapping[str, Any], split: str = "test") -> tuple[list[str], list[list[str]]]:
    """Scores of a report or a summary as text, for a terminal or a page.

    Args:
        result: from :func:`build_report` or :func:`summarise`.
        split: ``valid`` or ``test``.

    Returns:
        ``(columns, rows)``: a row for the fused output, then one per modality (retrieval: per direction) and one per
        further head, a column per metric; a summary's cells read ``mean ± std``. A dash where a metric is not defined.
    """
    scores = result[split]
    kinds = (scores.get(kind, {}) for kind in ("unimodal", "pairs", "further"))
    outputs = {"fused": scores.get("fused", {}), **{name: of for kind in kinds for name, of in kind.items()}}
    outputs = {name: metrics for name, metrics in outputs.items() if metrics}
    metrics = [name for name in METRICS[result["task"]] if any(name in values for values in outputs.values())]
    rows = [[name, *(cell(values.get(metric)) for metric in metrics)] for name, values in outputs.items()]
    return [split, *metrics], rows


def cell(value: Any) -> str:
    """A number of a report, or a summary's mean and deviation, as text."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        mean, std = value["mean"], value["std"]
        return cell(mean) if std is None else f"{mean:.4f} ± {std:.4f}"
    return f"{value:.4f}"


def _moments(values: Sequence[Any]) -> Any:
    """Nested mappings of numbers, one per run, into one nested mapping of their mean and sample standard deviation."""
    if isinstance(values[0], Mapping):
        shared = [key for key in values[0] if all(key in value for value in values)]
        return {key: _moments([value[key] for value in values]) for key in shared}
    numbers = np.asarray(values, dtype=np.float64)
    return {"mean": float(numbers.mean()), "std": float(numbers.std(ddof=1)) if len(numbers) > 1 else None}
