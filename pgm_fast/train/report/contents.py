"""What a run reports: the content of report.json, the summary over seeds, and both as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..run.json_files import plain
from ..scores.metrics import METRICS

__all__ = [
    "build_report",
    "cell",
    "require_same",
    "summarise",
    "summary_table",
]


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
        task: see :data:`~pgm_fast.train.scores.metrics.METRICS`.
        seed: of this run.
        epochs: how many were trained, over all stages.
        best_epoch: the epoch, counted from 1, that the scores belong to.
        backend: what served the operations, one name or a name per operation.
        valid, test: as from :func:`~pgm_fast.train.scores.metrics.evaluate_predictions`; empty for a split
            without rows.
        shares: as from :func:`~pgm_fast.train.scores.shares.mean_shares`, on the test split.
        timing: seconds and rates by name.
        gates: as from :func:`~pgm_fast.train.scores.gates.mean_gates`, on the test split.
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
