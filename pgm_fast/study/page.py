"""The text of study.md, made of the content of study.json and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .intervals import LEVEL

__all__ = ["COLUMNS", "as_markdown", "condition_cell", "overview_cell", "set_rows"]

COLUMNS = ("method", "validation", "test", "n", "difference", "corrected")

_NOT_IN_PERCENT = ("mae", "pearson", "nll", "median_rank")


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
    lines += ["", *_overview(content["sets"], list(study["methods"]))]
    for name, of in content["sets"].items():
        lines += ["", f"## {name}", "", *(_section(name, of, content["cells"]) if of else ["No results yet."])]
    made = content["made_by"]
    lines += ["", "## Made by", "", *(f"- {key}: {'; '.join(values)}" for key, values in made.items() if values)]
    asked = json.dumps(study, indent=1, ensure_ascii=False)
    lines += ["", "<details><summary>Asked for</summary>", "", "```json", asked, "```", "", "</details>"]
    return "\n".join([*lines, ""])


def _overview(sets: Mapping[str, Any], rows: Sequence[str]) -> list[str]:
    """All sets in one table, with a mark where the interval of the difference is clear of zero."""
    lines = [
        "Test; ▲ above the baseline and ▼ below it with an interval clear of zero, = the baseline:",
        "",
        f"| set | metric | {' | '.join(rows)} |",
        "|---|---|" + "---|" * len(rows),
    ]
    for name, of in sets.items():
        if of:
            cells = [overview_cell(of, row) for row in rows]
            lines.append(f"| {name} | {of['metric']} | {' | '.join(cells)} |")
    return lines


def overview_cell(of: Mapping[str, Any], row: str) -> str:
    """A method's test score on a set, with a mark: = the baseline, ▲ or ▼ where the difference is clear of zero."""
    found = of["methods"].get(row)
    if not found:
        return "–"
    difference = found.get("difference") or {"low": None, "high": None}
    mark = " =" if row == of["baseline"] else ""
    if difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0):
        mark = " ▲" if difference["low"] > 0 else " ▼"
    return _spread(found.get("test"), of["metric"] not in _NOT_IN_PERCENT) + mark


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
            shown = [condition_cell(by_row.get(row), of["metric"]) for row in rows]
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


def condition_cell(found: Mapping[str, Any] | None, metric: str) -> str:
    """A method's test score under a condition, with its difference from the baseline where it has one."""
    percent = metric not in _NOT_IN_PERCENT
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
