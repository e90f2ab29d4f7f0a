"""Finished runs of several methods on the same data beside each other: a table, pictures, a page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..run.folder import RunFolder
from ..run.json_files import read_json, read_jsonl, write_json
from ..scores.metrics import METRICS, primary_metric
from .contents import cell, require_same
from .page import html_table, save_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .plots.shares import Shares

__all__ = ["comparison_tables", "write_comparison"]

ALONE = "unimodal"  # the method in which no modality's gradient reaches another


@dataclass(frozen=True)
class _Entry:
    """A run, or the seeds of one configuration.

    Attributes:
        name: in tables and pictures.
        result: content of report.json, or of summary.json.
        records: the objects of metrics.jsonl; of the first seed where there are several.
        measured: whether its shares follow measured information.
    """

    name: str
    result: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    measured: bool


def write_comparison(
    runs: Sequence[str | os.PathLike], out: str | os.PathLike, *, across: bool = False
) -> dict[str, Any]:
    """Compare finished runs, and write what is found into a folder.

    ``compare.json`` (every number), ``compare.html`` (the tables and pictures), ``curves.png`` (each modality's score
    within the runs, epoch by epoch, against learning alone where a run of the method ``unimodal`` is among them),
    ``shares.png`` (runs with a partitioner) and ``gates.png`` (runs that weigh components).

    Args:
        runs: folders of runs, or of several seeds of one (with a summary.json), on the same data. At least two.
        out: the folder; files of an earlier comparison are replaced.
        across: the runs may be of different data and tasks. Their scores do not compare then: what is drawn are their
            shares and gates beside each other.

    Returns:
        The content of compare.json: ``{"data", "task", "runs": [{"name", "folder", "data", "task", ...}]}`` with the
        scores, shares and gates of every run as in its report.json or summary.json; ``across``: without the first two.

    Raises:
        ConfigError: fewer than two runs, or they differ in data or task without ``across``.
        CheckpointError: a folder holds no finished run, or the file system refused.
    """
    if len(runs) < 2:
        raise ConfigError(f"a comparison is of two runs or more, got {len(runs)}: give the folders of more")
    names = _names(runs)
    entries = [_read(Path(folder), name) for folder, name in zip(runs, names, strict=True)]
    first = entries[0].result
    if not across:
        try:
            require_same([entry.result for entry in entries], ("data", "task"))
        except ConfigError as error:
            raise ConfigError(f"{error}, or compare their shares alone with across=True (--across)") from None
    kept = ("method", "data", "task", "seed", "seeds", "epochs", "best_epoch", "valid", "test", "shares")
    kept = (*kept, "share_intervals", "gates", "timing")
    content = {
        **({} if across else {"data": first["data"], "task": first["task"]}),
        "runs": [
            {"name": e.name, "folder": str(folder), **{key: e.result[key] for key in kept if key in e.result}}
            for e, folder in zip(entries, runs, strict=True)
        ],
    }
    out = Path(out)
    drawn = _draw(entries, out, across)
    heading = "Shares across tasks" if across else first["data"]
    parts = [f"<h1>{escape(heading)}</h1>"]
    for title, columns, rows in comparison_tables(content):
        parts += [f"<h2>{escape(title)}</h2>", html_table(columns, rows)]
    write_json(out / "compare.json", content)
    save_page(out / "compare.html", f"{heading}: {', '.join(names)}", parts, drawn)
    return content


def comparison_tables(content: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """``(title, columns, rows)`` as text, from the content of compare.json: the fused scores of the test split (of the
    validation split where there is none), and the primary score of every modality within each run; of runs on different
    data each one's primary score and its shares."""
    if "task" not in content:
        return _tables_across(content["runs"])
    task, runs = content["task"], content["runs"]
    split = "test" if all(run["test"]["fused"] for run in runs) else "valid"
    words = {"test": "test", "valid": "validation"}[split]
    scores = [run[split] for run in runs]
    metrics = [m for m in METRICS[task] if any(m in of["fused"] for of in scores)]
    heads = [[run["name"], run["method"]] for run in runs]
    tables = [
        (
            f"Fused scores, {words}",
            ["run", "method", *metrics],
            [[*head, *(cell(of["fused"].get(m)) for m in metrics)] for head, of in zip(heads, scores, strict=True)],
        )
    ]
    primary, _ = primary_metric(task)
    modalities = list(dict.fromkeys(m for of in scores for m in of.get("unimodal", {})))
    if modalities:
        rows = [
            [*head, *(cell(of.get("unimodal", {}).get(m, {}).get(primary)) for m in modalities)]
            for head, of in zip(heads, scores, strict=True)
        ]
        tables.append((f"{primary} of each modality, {words}", ["run", "method", *modalities], rows))
    return tables


def _tables_across(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    rows = []
    for run in runs:
        metric, _ = primary_metric(run["task"])
        split = run["test"] if run["test"]["fused"] else run["valid"]
        rows.append([run["name"], run["method"], run["data"], metric, cell(split["fused"].get(metric))])
    tables = [("Runs", ["run", "method", "data", "primary score", "value"], rows)]
    names = list(dict.fromkeys(name for run in runs for shares in run["shares"].values() for name in shares))
    if names:
        rows = [
            [run["name"], modality, *(cell(shares.get(name)) for name in names)]
            for run in runs
            for modality, shares in run["shares"].items()
        ]
        tables.append(("Mean shares", ["run", "modality", *(name.replace("_", " ") for name in names)], rows))
    return tables


def _draw(entries: Sequence[_Entry], out: Path, across: bool) -> list[str]:
    """Names of the pictures that were drawn."""
    from .plots.canvas import save
    from .plots.gates import compared_gates
    from .plots.shares import compared_shares

    figures = {
        "curves.png": None if across else _curves(entries),
        "shares.png": compared_shares({entry.name: _shares(entry) for entry in entries}),
        "gates.png": compared_gates({e.name: _means(e.result.get("gates", {})).get("all", {}) for e in entries}),
    }
    for name, figure in figures.items():
        if figure is not None:
            save(figure, out / name)
        elif (out / "compare.json").exists():  # of an earlier comparison, and no one else's
            (out / name).unlink(missing_ok=True)
    return [name for name, figure in figures.items() if figure is not None]


def _curves(entries: Sequence[_Entry]) -> Figure | None:
    from .plots.dimensions import competition_curves

    alone = next((entry.records for entry in entries if entry.result["method"] == ALONE), [])
    joint = {entry.name: entry.records for entry in entries if entry.records is not alone and entry.records}
    modalities = dict.fromkeys(
        m for r in [*joint.values(), alone] for one in r for m in one["valid"].get("unimodal", {})
    )
    return competition_curves(joint, dict.fromkeys(modalities, alone), entries[0].result["task"]) if joint else None


def _shares(entry: _Entry) -> Shares:
    """A report's shares with intervals over rows, a summary's with intervals over seeds."""
    from .plots.shares import Shares

    means = _means(entry.result["shares"])
    if "seeds" not in entry.result:
        return Shares(means, entry.result.get("share_intervals", {}), entry.measured)
    half = {
        modality: {name: _half_width(value["std"], len(entry.result["seeds"])) for name, value in shares.items()}
        for modality, shares in entry.result["shares"].items()
    }
    return Shares(means, half, entry.measured)


def _half_width(deviation: float | None, count: int) -> float | None:
    """Of the 95 % t-interval of a mean; None of a single value."""
    if deviation is None:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def _read(folder: Path, name: str) -> _Entry:
    run = RunFolder(folder)
    if run.report.exists() or not (folder / "summary.json").exists():
        report = read_json(run.report)
        return _Entry(name, report, read_jsonl(run.metrics), bool(report.get("calibration")))
    summary = read_json(folder / "summary.json")
    first = RunFolder(folder / f"seed-{summary['seeds'][0]}")
    return _Entry(name, summary, read_jsonl(first.metrics), bool(read_json(first.report).get("calibration")))


def _names(runs: Sequence[str | os.PathLike]) -> list[str]:
    """The last part of each path, or the whole path where that is not one run's alone."""
    last = [Path(run).resolve().name for run in runs]
    return [name if last.count(name) == 1 else str(run) for name, run in zip(last, runs, strict=True)]


def _means(value: Any) -> Any:
    """A report's nested numbers as they are, a summary's as their means."""
    if not isinstance(value, Mapping):
        return value
    return value["mean"] if set(value) == {"mean", "std"} else {key: _means(item) for key, item in value.items()}
