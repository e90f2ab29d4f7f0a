"""Finished runs of several methods on the same data beside each other: a table, pictures, a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .folder import RunFolder
from .metrics import METRICS, primary_metric
from .reports import cell, html_table, read_json, read_jsonl, require_same, save_page, write_json

__all__ = ["comparison_tables", "write_comparison"]

ALONE = "unimodal"  # the method in which no modality's gradient reaches another


@dataclass(frozen=True)
class _Entry:
    """A run, or the seeds of one configuration.

    Attributes:
        name: in tables and pictures.
        result: content of report.json, or of summary.json.
        records: the objects of metrics.jsonl; of the first seed where there are several.
    """

    name: str
    result: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]


def write_comparison(runs: Sequence[str | os.PathLike], out: str | os.PathLike) -> dict[str, Any]:
    """Compare finished runs, and write what is found into a folder.

    ``compare.json`` (every number), ``compare.html`` (the tables and pictures), ``curves.png`` (each modality's score
    within the runs, epoch by epoch, against learning alone where a run of the method ``unimodal`` is among them),
    ``shares.png`` (runs with a partitioner) and ``gates.png`` (runs that weigh components).

    Args:
        runs: folders of runs, or of several seeds of one (with a summary.json), on the same data. At least two.
        out: the folder; files of an earlier comparison are replaced.

    Returns:
        The content of compare.json: ``{"data", "task", "runs": [{"name", "folder", ...}]}`` with the scores, shares
        and gates of every run as in its report.json or summary.json.

    Raises:
        ConfigError: fewer than two runs, or they differ in data or task.
        CheckpointError: a folder holds no finished run, or the file system refused.
    """
    if len(runs) < 2:
        raise ConfigError(f"a comparison is of two runs or more, got {len(runs)}: give the folders of more")
    names = _names(runs)
    entries = [_read(Path(folder), name) for folder, name in zip(runs, names, strict=True)]
    require_same([entry.result for entry in entries], ("data", "task"))
    first = entries[0].result
    kept = ("method", "seed", "seeds", "epochs", "best_epoch", "valid", "test", "shares", "gates", "timing")
    content = {
        "data": first["data"],
        "task": first["task"],
        "runs": [
            {"name": e.name, "folder": str(folder), **{key: e.result[key] for key in kept if key in e.result}}
            for e, folder in zip(entries, runs, strict=True)
        ],
    }
    out = Path(out)
    drawn = _draw(entries, out)
    parts = [f"<h1>{escape(first['data'])}</h1>"]
    for title, columns, rows in comparison_tables(content):
        parts += [f"<h2>{escape(title)}</h2>", html_table(columns, rows)]
    write_json(out / "compare.json", content)
    save_page(out / "compare.html", f"{first['data']}: {', '.join(names)}", parts, drawn)
    return content


def comparison_tables(content: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """``(title, columns, rows)`` as text, from the content of compare.json: the fused scores of the test split (of the
    validation split where there is none), and the primary score of every modality within each run."""
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


def _draw(entries: Sequence[_Entry], out: Path) -> list[str]:
    """Names of the pictures that were drawn."""
    from .plots.canvas import save
    from .plots.curves import compared_shares
    from .plots.dimensions import competition_curves
    from .plots.gates import compared_gates

    task = entries[0].result["task"]
    alone = next((entry.records for entry in entries if entry.result["method"] == ALONE), [])
    joint = {entry.name: entry.records for entry in entries if entry.records is not alone and entry.records}
    modalities = dict.fromkeys(
        m for r in [*joint.values(), alone] for one in r for m in one["valid"].get("unimodal", {})
    )
    figures = {
        "curves.png": competition_curves(joint, dict.fromkeys(modalities, alone), task) if joint else None,
        "shares.png": compared_shares({entry.name: _means(entry.result["shares"]) for entry in entries}),
        "gates.png": compared_gates({e.name: _means(e.result.get("gates", {})).get("all", {}) for e in entries}),
    }
    for name, figure in figures.items():
        if figure is not None:
            save(figure, out / name)
        elif (out / "compare.json").exists():  # of an earlier comparison, and no one else's
            (out / name).unlink(missing_ok=True)
    return [name for name, figure in figures.items() if figure is not None]


def _read(folder: Path, name: str) -> _Entry:
    run = RunFolder(folder)
    if run.report.exists() or not (folder / "summary.json").exists():
        return _Entry(name, read_json(run.report), read_jsonl(run.metrics))
    summary = read_json(folder / "summary.json")
    return _Entry(name, summary, read_jsonl(RunFolder(folder / f"seed-{summary['seeds'][0]}").metrics))


def _names(runs: Sequence[str | os.PathLike]) -> list[str]:
    """The last part of each path, or the whole path where that is not one run's alone."""
    last = [Path(run).resolve().name for run in runs]
    return [name if last.count(name) == 1 else str(run) for name, run in zip(last, runs, strict=True)]


def _means(value: Any) -> Any:
    """A report's nested numbers as they are, a summary's as their means."""
    if not isinstance(value, Mapping):
        return value
    return value["mean"] if set(value) == {"mean", "std"} else {key: _means(item) for key, item in value.items()}
