"""study.json and study.md: means, intervals of differences, and everything that they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..train.run.files import atomic_write
from ..train.run.json_files import write_json
from ..train.scores.metrics import METRICS, monitored_metric
from .cells import content_of
from .choice import Choice
from .intervals import moments, paired_interval
from .page import as_markdown
from .plan import Study

__all__ = ["write_tables"]

_VERSIONS = ("pgm_fast", "python", "torch", "scikit-learn")


def write_tables(
    folder: Path, study: Study, choices: Sequence[Choice], failed: Sequence[Mapping[str, str]], missing: int
) -> dict[str, Any]:
    """Write both files from the cells that are there.

    Returns:
        The content of study.json.
    """
    cells = [cell for choice in choices for cell in _cells(choice)]
    content = {
        "study": {key: value for key, value in asdict(study).items() if not key.startswith("_")},
        "missing": missing,
        "failed": list(failed),
        "sets": {name: _of_set(study, name, cells) for name in study.sets},
        "made_by": _made_by(cells),
        "cells": cells,
    }
    write_json(folder / "study.json", content)
    with atomic_write(folder / "study.md", "w") as file:
        file.write(as_markdown(content))
    return content


def _cells(choice: Choice) -> list[dict[str, Any]]:
    """The chosen cells of a group that are there."""
    found = []
    for seed, job in choice.chosen.items():
        content = content_of(job)
        if content is None:
            continue
        metric, direction = monitored_metric(content["task"], job.cell.config.train.monitor)
        probe = content_of(choice.probes[seed]) if seed in choice.probes else None
        more = ("epochs", "best_epoch", "parameters", "shares", "timing", "processor", "versions", "commit", "date")
        found.append(
            {
                "set": choice.group.set,
                "method": choice.group.method,
                "split": choice.group.split,
                "seed": seed,
                "trial": job.cell.trial,
                "settings": job.cell.settings,
                **{key: content[key] for key in ("task", "rows", "valid", "test")},
                "resplit": job.cell.config.data.resplit,
                "metric": metric,
                "direction": direction,
                "conditions": {} if probe is None else probe["conditions"],
                **{key: content[key] for key in more if key in content},
                "file": str(job.file.relative_to(job.folder)),
            }
        )
    return found


def _of_set(study: Study, name: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of a set's methods, and their differences from the baseline that is best on validation."""
    here = [cell for cell in cells if cell["set"] == name]
    if not here:
        return {}
    metric, direction = here[0]["metric"], here[0]["direction"]
    rows = {row: {(c["split"], c["seed"]): c for c in here if c["method"] == row} for row in study.methods}
    rows = {row: of for row, of in rows.items() if of}
    validation = {row: _values(of, metric, "valid") for row, of in rows.items()}
    baseline = _best(study.baselines, {row: of for row, of in validation.items() if of}, direction)
    overlap = _overlap(here)
    methods = {}
    for row, of in rows.items():
        test = _values(of, metric, "test")
        scores = {"valid": validation[row], "test": test}
        methods[row] = {split: moments(list(found.values())) for split, found in scores.items() if found}
        methods[row]["metrics"] = _every_metric(of, here[0]["task"])
        if baseline is not None and row != baseline:
            methods[row]["difference"] = _difference(test, _values(rows[baseline], metric, "test"), direction, overlap)
    return {
        "task": here[0]["task"],
        "metric": metric,
        "direction": direction,
        "baseline": baseline,
        "rows": here[0]["rows"],
        "methods": methods,
        "conditions": _conditions(rows, metric, direction, baseline, overlap),
    }


def _values(cells: Mapping[Any, Mapping[str, Any]], metric: str, split: str) -> dict[Any, float]:
    return {pair: c[split]["fused"][metric] for pair, c in cells.items() if metric in c[split]["fused"]}


def _every_metric(cells: Mapping[Any, Mapping[str, Any]], task: str) -> dict[str, Any]:
    """Test moments of every metric that all cells have."""
    found = {metric: list(_values(cells, metric, "test").values()) for metric in METRICS[task]}
    return {metric: moments(values) for metric, values in found.items() if len(values) == len(cells)}


def _best(baselines: Sequence[str], validation: Mapping[str, Mapping[Any, float]], direction: str) -> str | None:
    """The baseline with the best mean validation score; test scores are not at hand here."""
    means = {row: moments(list(validation[row].values()))["mean"] for row in baselines if row in validation}
    if not means:
        return None
    return (max if direction == "max" else min)(means, key=means.get)


def _overlap(cells: Sequence[Mapping[str, Any]]) -> float:
    """Test rows per training row where test rows are drawn anew, 0 where all cells share them."""
    if cells[0]["resplit"] != "all":
        return 0.0
    return cells[0]["rows"]["test"] / cells[0]["rows"]["train"]


def _difference(
    ours: Mapping[Any, float], theirs: Mapping[Any, float], direction: str, overlap: float
) -> dict[str, Any] | None:
    """How much better, over the splits and seeds that both have; None where there are none."""
    sign = 1 if direction == "max" else -1
    pairs = [sign * (ours[pair] - theirs[pair]) for pair in ours if pair in theirs]
    if not pairs:
        return None
    corrected = paired_interval(pairs, overlap)
    return {**paired_interval(pairs), "corrected": [corrected["low"], corrected["high"]]}


def _conditions(
    rows: Mapping[str, Mapping[Any, Mapping[str, Any]]],
    metric: str,
    direction: str,
    baseline: str | None,
    overlap: float,
) -> dict[str, Any]:
    """``{condition: {row: moments and difference}}``."""
    values: dict[str, dict[str, dict[Any, float]]] = {}
    for row, cells in rows.items():
        for pair, cell in cells.items():
            for kind, levels in cell["conditions"].items():
                for level, scores in levels.items():
                    if metric in scores["fused"]:
                        found = values.setdefault(f"{kind} {level}", {}).setdefault(row, {})
                        found[pair] = scores["fused"][metric]
    return {
        condition: {
            row: moments(list(of.values()))
            | (
                {"difference": _difference(of, by_row[baseline], direction, overlap)}
                if baseline in by_row and row != baseline
                else {}
            )
            for row, of in by_row.items()
        }
        for condition, by_row in values.items()
    }


def _made_by(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Every processor, commit and set of versions that a result comes from."""
    versions = {", ".join(f"{name} {cell['versions'].get(name)}" for name in _VERSIONS) for cell in cells}
    return {
        "processors": sorted({cell["processor"] for cell in cells}),
        "devices": sorted({cell["timing"]["device"] for cell in cells if "timing" in cell}),
        "commits": sorted({str(cell["commit"]) for cell in cells}),
        "versions": sorted(versions),
        "dates": sorted({cell["date"] for cell in cells}),
    }
