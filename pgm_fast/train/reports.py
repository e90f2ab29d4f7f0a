"""What a run leaves for people and programs: JSON files, the summary over seeds, tables and a page.

JSON knows no NaN: a number that is not finite is written as ``null``.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError
from .card import sentences
from .files import atomic_write
from .metrics import METRICS
from .predictions import Predictions

__all__ = [
    "PARTITIONS",
    "append_line",
    "build_report",
    "cell",
    "class_shares",
    "html_table",
    "json_line",
    "mean_shares",
    "read_json",
    "read_jsonl",
    "require_same",
    "save_page",
    "share_intervals",
    "summarise",
    "summary_table",
    "to_json",
    "write_json",
    "write_page",
]

_NORMAL_95 = 1.96  # standard deviations
PARTITIONS: dict[int, tuple[str, ...]] = {2: ("uni", "paired"), 4: ("uni_only", "paired_only", "shared", "unused")}
"""Names of the partitions by how many there are: the single gate's two, the four of the dual and the boundary gate."""


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON, all or nothing. Numpy numbers and arrays become plain ones.

    Raises:
        CheckpointError: the file system refused.
    """
    with atomic_write(path, "w") as file:
        file.write(to_json(value) + "\n")


def to_json(value: Any) -> str:
    """``value`` as indented JSON. Numpy numbers and arrays become plain ones."""
    return json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False)


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file. Raises CheckpointError where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; is this the folder of a finished run?") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); pgm-fast resume {_folder_of(path)} writes it anew"
        ) from error


def json_line(value: Any) -> str:
    """``value`` as a line of a JSON-lines file. Numpy numbers and arrays become plain ones."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False) + "\n"


def append_line(path: str | os.PathLike, text: str) -> None:
    """Add one line to a JSON-lines file and flush it to the disk.

    A last line without its end, as a killed writer leaves it, is removed first. If the file system refuses, nothing
    else changes.

    Raises:
        CheckpointError: the file system refused.
    """
    line = text.encode()
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            try:
                written = file.write(line)
                if written != len(line):
                    file.write(line[written:])  # a short write: the second attempt names the reason
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}; make room or choose another folder, then resume"
        ) from error


def read_jsonl(path: str | os.PathLike) -> list[Any]:
    """The values of a JSON-lines file; a last line without its end does not count. Empty where there is no file.

    Raises:
        CheckpointError: the file cannot be read, or a line of it is not JSON.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number} is not valid JSON ({error}); pgm-fast resume {_folder_of(path)} writes it anew"
            ) from error
    return values


def _folder_of(path: str | os.PathLike) -> str:
    return shlex.quote(str(Path(path).parent))


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
    return _plain(
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


def write_page(run_dir: str | os.PathLike, report: Mapping[str, Any], plots: Sequence[str] = ()) -> Path:
    """Write report.html into ``run_dir``: the numbers of a report or a summary, and the plots by their relative paths.

    Args:
        run_dir: the run folder.
        report: from :func:`build_report` or :func:`summarise`.
        plots: paths relative to ``run_dir``, as from :func:`~pgm_fast.train.plots.draw_run`.

    Raises:
        CheckpointError: the file system refused.
    """
    title = f"{report['method']} on {report['data']}"
    page = Path(run_dir) / "report.html"
    facts = [[key.replace("_", " "), _fact(report[key])] for key in _FACTS if key in report]
    parts = [f"<h1>{escape(title)}</h1>", html_table(None, facts)]
    for split, heading in (("test", "Test"), ("valid", "Validation")):
        columns, rows = summary_table(report, split)
        if rows:
            parts += [f"<h2>{heading} scores</h2>", html_table(["", *columns[1:]], rows)]
    if report["shares"]:
        names = list(next(iter(report["shares"].values())))
        rows = [
            [modality, *(cell(shares.get(name)) for name in names)] for modality, shares in report["shares"].items()
        ]
        parts += [
            "<h2>Mean share of each partition (test)</h2>",
            html_table(["", *(n.replace("_", " ") for n in names)], rows),
            *(f"<p>{escape(line)}</p>" for line in sentences(report)),
        ]
    if report.get("gates"):
        components = list(report["gates"]["all"])
        groups = {"all rows": report["gates"]["all"], **report["gates"].get("by_class", {})}
        rows = [[name, *(cell(weights.get(c)) for c in components)] for name, weights in groups.items()]
        parts += ["<h2>Mean gate weight of each component (test)</h2>", html_table(["", *components], rows)]
    return save_page(page, title, parts, plots)


def save_page(page: Path, title: str, parts: Sequence[str], plots: Sequence[str] = ()) -> Path:
    """Write an HTML page of ``parts``, which are HTML already, and pictures by their paths relative to the page.

    Raises:
        CheckpointError: the file system refused.
    """
    parts = [*parts, *(["<h2>Plots</h2>"] if plots else [])]
    for plot in plots:
        caption = escape(Path(plot).stem.replace("_", " "))
        parts.append(f'<figure><img src="{escape(plot)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    with atomic_write(page, "w") as file:
        file.write(_PAGE.format(title=escape(title), body="\n".join(parts)))
    return page


_FACTS = ("method", "data", "task", "seed", "seeds", "epochs", "best_epoch", "backend", "timing")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
th, td {{ padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #dde2ea; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; height: auto; border: 1px solid #dde2ea; border-radius: 6px; }}
figcaption {{ color: #5b6675; font-size: .9rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def html_table(columns: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """A table of text, escaped here, as HTML."""

    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = line(columns, "th") if columns else ""
    return "<table>" + head + "".join(line(row, "td") for row in rows) + "</table>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        names = set(value.values())
        if len(value) > 1 and len(names) == 1 and isinstance(next(iter(names)), str):
            return f"{names.pop()} for all"
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact(item) for item in value)
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


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


def _plain(value: Any) -> Any:
    """``value`` in what JSON has: numpy types unpacked, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
