"""The folder of an estimate: numbers for programs, tables and a plot for people."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..env import versions
from ..train.report.plots.canvas import save
from ..train.run.files import atomic_write, write_csv
from ..train.run.json_files import write_json
from .estimates import COMPONENTS
from .plot import bars

if TYPE_CHECKING:
    from .result import Interactions, Pair

__all__ = ["EXTREMES", "summary", "write"]

EXTREMES = 20  # rows on each list of the page


def write(found: Interactions, folder: str | PathLike) -> list[Path]:
    """Write an estimate, each file all or nothing, interactions.json last.

    ``interactions.npz`` and ``interactions.csv``: per row ``index``, ``id``, ``split``, ``label``,
    ``information.<view>``, ``entropy.<modality>``, ``<pair>.<quantity>`` (the shift included; NaN, in the csv nothing,
    where a modality is absent). ``interactions.json``: :func:`summary`. ``interactions.png``: mean of every quantity
    with its interval. ``interactions.md``: the means, the rows with most synergy and with most redundancy by id, and
    how a run's shares go with what was measured.

    Returns:
        The files.

    Raises:
        CheckpointError: the file system refused.
    """
    folder = Path(folder)
    paths = [folder / f"interactions.{kind}" for kind in ("npz", "csv", "png", "md", "json")]
    columns = _columns(found)
    with atomic_write(paths[0], "wb") as file:
        np.savez(file, **columns)
    with atomic_write(paths[1], "w") as file:
        write_csv(file, columns, zip(*map(_cells, columns.values()), strict=True))
    save(bars(found), paths[2])
    with atomic_write(paths[3], "w") as file:
        file.write(page(found))
    write_json(paths[4], summary(found))
    return paths


def summary(found: Interactions) -> dict[str, Any]:
    """The content of interactions.json.

    Per pair the means and intervals of the quantities, the shift and the means of each class; the mean information of
    every view, the mean entropy of every modality, the association with a run's shares, settings and versions.
    """
    return {
        "data": found.data,
        "run": found.run,
        "split": found.split or "all",
        "rows": len(found.index),
        "classes": found.classes,
        "unit": "nat",
        "pairs": {name: _pair_summary(pair, found) for name, pair in found.pairs.items()},
        "information": {name: _mean(values) for name, values in found.information.items()},
        "entropy": {name: _mean(values) for name, values in found.entropy.items()},
        "principal_components": found.projected,
        "association": found.association,
        "models_per_view": found.members,
        "settings": found.settings.to_dict(),
        "seconds": round(found.seconds, 2),
        "versions": versions(),
    }


def page(found: Interactions) -> str:
    """The content of interactions.md."""
    subject = f"{found.data}, {found.split or 'all'} rows" + (f", run {found.run}" if found.run else "")
    level = f"{100 * found.settings.level:g} %"
    lines = [
        f"# Interactions of {_text(subject)}",
        "",
        f"Nats; {level} bootstrap intervals over {len(found.index)} rows.",
    ]
    for name, pair in found.pairs.items():
        lines += ["", f"## {_text(name)}", "", f"| quantity | mean | {level} interval |", "|---|---|---|"]
        for label, mean, (low, high) in zip(quantity_labels(pair), pair.means, pair.intervals, strict=True):
            lines.append(f"| {_text(label)} | {mean:.4f} | {low:.4f} to {high:.4f} |")
        for kind, values in (("synergistic", pair.values.synergy), ("redundant", pair.values.redundancy)):
            lines += [
                "",
                f"### Most {kind}",
                "",
                "| id | split | label | r | u 1 | u 2 | s |",
                "|---|---|---|---|---|---|---|",
            ]
            whole = np.flatnonzero(np.isfinite(values))
            for row in whole[np.argsort(-values[whole], kind="stable")][:EXTREMES]:
                numbers = " | ".join(f"{quantity[row]:.3f}" for quantity in pair.values)
                lines.append(f"| {_text(found.ids[row])} | {found.splits[row]} | {found.labels[row]} | {numbers} |")
    if found.association:
        lines += ["", "## What the model's shares say", "", "Rank correlation (Spearman) over rows."]
        lines += ["", "| share | pair | " + " | ".join(COMPONENTS) + " |", "|---|---|---|---|---|---|"]
        for share, pairs in found.association.items():
            for pair, quantities in pairs.items():
                cells = [_correlation(quantities[name]["spearman"]) for name in COMPONENTS]
                lines.append(f"| {_text(share)} | {_text(pair)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def quantity_labels(pair: Pair) -> list[str]:
    """``redundancy``, ``uniqueness of a``, ``uniqueness of b``, ``synergy``."""
    first, second = pair.modalities
    return ["redundancy", f"uniqueness of {first}", f"uniqueness of {second}", "synergy"]


def _columns(found: Interactions) -> dict[str, np.ndarray]:
    columns = {"index": found.index, "id": found.ids, "split": found.splits, "label": found.labels}
    columns |= {f"information.{view}": values for view, values in found.information.items()}
    columns |= {f"entropy.{modality}": values for modality, values in found.entropy.items()}
    for name, pair in found.pairs.items():
        columns |= {f"{name}.{quantity}": v for quantity, v in zip(COMPONENTS, pair.values, strict=True)}
    return columns


def _cells(column: np.ndarray) -> np.ndarray:
    text = column.astype(str)
    return np.where(np.isnan(column), "", text) if column.dtype.kind == "f" else text


def _pair_summary(pair: Pair, found: Interactions) -> dict[str, Any]:
    return {
        "modalities": list(pair.modalities),
        "rows": pair.rows,
        "shift": pair.shift,
        "mean": pair.means._asdict(),
        "interval": dict(zip(COMPONENTS, pair.intervals, strict=True)),
        "mean_by_class": {
            str(label): {name: _mean(v[found.labels == label]) for name, v in pair.values._asdict().items()}
            for label in np.unique(found.labels)
        },
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _correlation(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _text(value: object) -> str:
    """A name from the data in a Markdown table: one line, and no cell of its own."""
    return " ".join(str(value).split()).replace("|", "\\|")
