"""study.json and study.md: means, intervals of differences, and everything that they rest on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..train.files import atomic_write
from ..train.metrics import monitored_metric
from ..train.reports import write_json
from .cells import content_of
from .choice import Choice
from .intervals import LEVEL, moments, paired_interval
from .plan import Study

__all__ = ["COLUMNS", "as_markdown", "set_rows", "write_tables"]

COLUMNS = ("method", "validation", "test", "n", "difference", "corrected")

_NOT_IN_PERCENT = ("mae", "pearson", "nll", "median_rank")
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
        kept = ("set", "method", "split", "seed", "trial", "settings", "task", "rows", "valid", "test")
        more = ("epochs", "best_epoch", "parameters", "shares", "timing", "processor", "versions", "commit", "date")
        found.append(
            {
                **{key: content[key] for key in kept},
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
        methods[row] = {
            split: moments(list(v.values())) for split, v in (("valid", validation[row]), ("test", test)) if v
        }
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


def _best(baselines: Sequence[str], validation: Mapping[str, Mapping[Any, float]], direction: str) -> str | None:
    """The baseline with the best mean validation score; test scores are not at hand here."""
    means = {row: moments(list(validation[row].values()))["mean"] for row in baselines if row in validation}
    if not means:
        return None
    return (max if direction == "max" else min)(means, key=means.get)


def _overlap(cells: Sequence[Mapping[str, Any]]) -> float:
    """Test rows per training row where each split is random, 0 where all share the set's own test rows."""
    if cells[0]["split"] is None:
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


def as_markdown(content: Mapping[str, Any]) -> str:
    """The content of study.md, from that of study.json."""
    study = content["study"]
    lines = ["# Study", ""]
    if content["missing"]:
        lines += [f"**Not finished: {content['missing']} cells are missing or wait for a choice.**", ""]
    if content["failed"]:
        lines += ["Failed:", "", *(f"- {one['cell']}: {one['error']}" for one in content["failed"]), ""]
    search = study["search"]
    lines += [
        f"Settings are chosen on the validation score from at most {search['trials']} combinations per method, and so "
        "is the baseline that",
        "each set is compared with. Test: mean ± sample standard deviation over n cells (split and seed).",
        f"Difference: how much better than the baseline, paired by split and seed, with its {100 * LEVEL:g} % "
        "t-interval;",
        "*corrected*: the interval that allows for random splits sharing their rows (Nadeau and Bengio 2003).",
    ]
    for name, of in content["sets"].items():
        lines += ["", f"## {name}", "", *(_section(name, of, content["cells"]) if of else ["No results yet."])]
    made = content["made_by"]
    lines += ["", "## Made by", "", *(f"- {key}: {'; '.join(values)}" for key, values in made.items() if values)]
    lines += [
        "",
        "<details><summary>Asked for</summary>",
        "",
        "```json",
        json.dumps(study, indent=1, ensure_ascii=False),
    ]
    lines += ["```", "", "</details>"]
    return "\n".join([*lines, ""])


def _section(name: str, of: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    metric, baseline = of["metric"], of["baseline"]
    percent = metric not in _NOT_IN_PERCENT
    counts = ", ".join(f"{count} {split}" for split, count in of["rows"].items())
    lines = [
        f"{of['task']}, {metric}{' in percent' if percent else ''}; rows: {counts}; baseline: {baseline or 'none'}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(row)} |" for row in set_rows(of)),
    ]
    if of["conditions"]:
        rows = list(of["methods"])
        lines += ["", "Under conditions (test; in brackets the difference from the baseline):", ""]
        lines += [f"| condition | {' | '.join(rows)} |", "|---|" + "---|" * len(rows)]
        for condition, by_row in of["conditions"].items():
            shown = [_under(by_row.get(row), percent) for row in rows]
            lines.append(f"| {condition} | {' | '.join(shown)} |")
    lines += [
        "",
        "<details><summary>Chosen settings</summary>",
        "",
        "| method | split | seed | chosen | valid | test |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for cell in cells:
        if cell["set"] == name:
            scores = [_number(cell[split]["fused"].get(metric), percent) for split in ("valid", "test")]
            split = "own" if cell["split"] is None else cell["split"]
            chosen = ", ".join(f"{key}={value}" for key, value in cell["settings"].items()) or "–"
            lines.append(f"| {cell['method']} | {split} | {cell['seed']} | {chosen} | {' | '.join(scores)} |")
    return [*lines, "", "</details>"]


def set_rows(of: Mapping[str, Any]) -> list[list[str]]:
    """The text of a set's table, a row per method; what stands where is in :data:`COLUMNS`."""
    percent = of["metric"] not in _NOT_IN_PERCENT
    rows = []
    for name, found in of["methods"].items():
        test = found.get("test")
        scores = [_spread(found.get("valid"), percent), _spread(test, percent), str(test["n"]) if test else "–"]
        rows.append([name, *scores, *_differences(found.get("difference"), percent)])
    return rows


def _under(found: Mapping[str, Any] | None, percent: bool) -> str:
    difference = (found or {}).get("difference")
    return _spread(found, percent) + (f" ({_differences(difference, percent)[0]})" if difference else "")


def _differences(found: Mapping[str, Any] | None, percent: bool) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    plain = _number(found["mean"], percent, sign=True) + _interval(found["low"], found["high"], percent)
    low, high = found["corrected"]
    return plain, _interval(low, high, percent).strip() or "–"


def _interval(low: float | None, high: float | None, percent: bool) -> str:
    return "" if low is None else f" [{_number(low, percent)}, {_number(high, percent)}]"


def _spread(found: Mapping[str, Any] | None, percent: bool) -> str:
    if not found:
        return "–"
    deviation = "" if found["sd"] is None else f" ± {_number(found['sd'], percent)}"
    return _number(found["mean"], percent) + deviation


def _number(value: float | None, percent: bool, sign: bool = False) -> str:
    if value is None:
        return "–"
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f}" if percent else f"{value:{plus}.3f}"
