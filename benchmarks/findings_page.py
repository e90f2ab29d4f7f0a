"""Tables of what methods reach, for README.md, docs/findings.md and the pages of the methods, from the result files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attached
import competition
import epochs
import presets
import shares_real
import synthetic_shares
import trials

from pgm_fast.study.intervals import paired_interval
from pgm_fast.study.page import COLUMNS, condition_cell, overview_cell, set_rows
from pgm_fast.train.run.json_files import read_json

STUDIES = Path(__file__).resolve().parent / "results" / "studies"
OF_METHODS = "baselines"  # the study of every method, which has a table of its own
ASIDE = ("classical", "conditions")  # further rows and conditions on sets of the other studies


def results() -> str:
    """Test scores of every set and method, the studies beside each other."""
    studies = [read_json(path) for path in _comparisons()]
    if not studies:
        return "Not measured yet."
    # in the order of the study that has most of them
    most = sorted((list(content["study"]["methods"]) for content in studies), key=len, reverse=True)
    methods = list(dict.fromkeys(name for names in most for name in names))
    lines = [f"| set | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]
    for content in studies:
        for name, of in content["sets"].items():
            if of:
                cells = [overview_cell(of, row) for row in methods]
                lines.append(f"| {name}, {of['metric']} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "Test split, percent, mean ± standard deviation. Settings and epochs are chosen on validation splits, with",
            "the same search for every method. ▲ better than the best baseline (by validation, marked =) with a 95 %",
            "interval of the paired difference that is clear of zero, ▼ worse.",
            "",
            *lines,
        ]
    )


def _findings() -> list[Path]:
    """All studies but that one."""
    return [path for path in sorted(STUDIES.glob("*/study.json")) if path.parent.name != OF_METHODS]


def _comparisons() -> list[Path]:
    """Those that have each set once, and PgM on it."""
    return [path for path in _findings() if path.parent.name not in ASIDE]


def studies() -> str:
    """Every set of every study: scores and differences from the baseline, with their intervals."""
    lines = []
    for path in _findings():
        content = read_json(path)
        made = content["made_by"]
        lines += [
            f"### {path.parent.name}",
            "",
            f"`pgm-fast study benchmarks/studies/{path.parent.name}.yaml`; {'; '.join(made['processors'])}; "
            f"{'; '.join(made['versions'])}.",
            "",
            "| set | rows | " + " | ".join(COLUMNS) + " |",
            "|---|---|" + "---|" * len(COLUMNS),
        ]
        for name, of in content["sets"].items():
            if of:
                rows = ", ".join(f"{count} {split}" for split, count in of["rows"].items())
                for k, row in enumerate(set_rows(of)):
                    first = f"{name}, {of['metric']} | {rows}" if k == 0 else " | "
                    lines.append(f"| {first} | {' | '.join(row)} |")
        methods = list(content["study"]["methods"])
        under = [
            f"| {name}, {condition} | {' | '.join(condition_cell(by_row.get(row), of['metric']) for row in methods)} |"
            for name, of in content["sets"].items()
            for condition, by_row in (of.get("conditions") or {}).items()
        ]
        if under:
            lines += [
                "",
                "Under conditions (missing: each modality of a test row is hidden with that probability, never all of",
                "them; noise: on that modality, of so many deviations of its training rows):",
                "",
                f"| set, condition | {' | '.join(methods)} |",
                "|---|" + "---|" * len(methods),
                *under,
            ]
        lines.append("")
    return "\n".join(lines).rstrip() or "Not measured yet."


def against() -> str:
    """PgM against each baseline by itself, paired by split and seed."""
    rows = ("unimodal", "joint", "ensemble", "ensemble, pool")
    lines = [f"| set | {' | '.join(rows)} | n |", "|---|" + "---|" * (len(rows) + 1)]
    for path in _comparisons():
        content = read_json(path)
        for name, of in content["sets"].items():
            apart = _apart(content, name, of["metric"], rows)
            count = of["methods"]["pgm"]["test"]["n"]
            lines.append(f"| {name}, {of['metric']} | {' | '.join(apart.values())} | {count} |")
    return "\n".join(lines)


def _apart(content: dict[str, Any], name: str, metric: str, rows: Sequence[str]) -> dict[str, str]:
    """Row -> PgM's test score minus its own, paired by split and seed."""
    found: dict[str, dict[tuple, float]] = {}
    for cell in content["cells"]:
        if cell["set"] == name:
            score = 100 * cell["test"]["fused"][metric]
            found.setdefault(cell["method"], {})[cell["split"], cell["seed"]] = score
    ours = found.get("pgm", {})
    pairs = {row: [ours[k] - x for k, x in found.get(row, {}).items() if k in ours] for row in rows}
    return {row: _difference(of) if of else "–" for row, of in pairs.items()}


def every_method() -> str:
    """Every method on the same sets, and how far PgM is from it."""
    content = read_json(STUDIES / OF_METHODS / "study.json")
    sets, made = content["sets"], content["made_by"]
    methods = list(content["study"]["methods"])
    apart = {name: _apart(content, name, of["metric"], methods) for name, of in sets.items()}
    head = " | ".join(f"{name}, validation | {name}, test | PgM minus it" for name in sets)
    lines = [
        f"`pgm-fast study benchmarks/studies/{OF_METHODS}.yaml`; {'; '.join(made['processors'])}; "
        f"{'; '.join(made['versions'])}.",
        "",
        f"| method | {head} |",
        "|---|" + "---|" * (3 * len(sets)),
    ]
    for row in methods:
        cells = []
        for name, of in sets.items():
            scores = [of["methods"][row][split] for split in ("valid", "test")]
            cells += [f"{100 * score['mean']:.1f} ± {100 * score['sd']:.1f}" for score in scores]
            cells.append("–" if row == "pgm" else apart[name][row])
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(pairs: Sequence[float]) -> str:
    found = paired_interval(pairs)
    interval = "" if found["low"] is None else f" [{found['low']:.1f}, {found['high']:.1f}]"
    return f"{found['mean']:+.1f}{interval}"


def attached_table() -> str:
    """A trained model that goes on with PgM and without."""
    return attached.table().split("\n\n", 1)[1].rstrip()


def epochs_table() -> str:
    """What choosing the epoch and the pool's weights on validation costs."""
    content = read_json(epochs.JSON)
    return f"{epochs.table(content['runs'])}\n{_processor(content)}."


def trials_table() -> str:
    """What was tried on PgM, on rows that no test split holds."""
    content = read_json(trials.JSON)
    return f"{trials.table(content['runs'])}\n{_processor(content)}."


def shares() -> str:
    """How PgM's shares go with a known truth."""
    return synthetic_shares.table().split("\n\n", 1)[1].rstrip()


def shares_on_real_sets() -> str:
    """PgM's shares beside LSMI's estimates."""
    return shares_real.table().split("\n\n", 1)[1].rstrip()


def competition_table() -> str:
    """Modality competition: test accuracies on the set made for it."""
    return competition.table(read_json(competition.JSON)["runs"]).split("\n", 2)[2].rstrip()


def published(method: str) -> Callable[[], str]:
    """What a method's presets reach, beside the released recipes."""
    return lambda: presets.table([name for name in presets.CASES if name.startswith(method)])


def _processor(content: dict[str, Any]) -> str:
    return f"{content['processor']}, torch {content['versions']['torch']}, {content['date']}"
