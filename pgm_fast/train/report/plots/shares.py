"""What the partitions of each modality hold: a column per partition, which is also where its way there is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .canvas import GREY, INK, colours, finish, label_text, legend_beside, new_figure
from .curves import epoch_axis, series

__all__ = ["EXPECTED", "Shares", "class_map", "compared_shares", "share_bars"]

# Mean gate mass of a partitioner whose logits are all equal, as at random initialisation, for a wide representation:
# the integrals over t in [0, 1] of 1-t and t, and of (1-t)(1-t), t*t, (1-t)t twice for 1-cumsoftmax and cumsoftmax.
EXPECTED = {
    ("uni", "paired"): (1 / 2, 1 / 2),
    ("uni_only", "paired_only", "shared", "unused"): (1 / 3, 1 / 3, 1 / 6, 1 / 6),
}
_COLOURS = {
    "uni": "#0072b2",
    "paired": "#d55e00",
    "uni_only": "#0072b2",
    "paired_only": "#d55e00",
    "shared": "#9b6fb0",
    "unused": "#8a94a3",
}
# What a partition stands for where its mass follows measured information.
_MEANS = {"uni_only": "unique", "paired_only": "synergistic", "shared": "redundant", "unused": "unused"}
_WIDTH = 9.6
_CLASSES = 24  # more rows than this do not fit on a page
_NUMBERED = 6  # modalities beside which a map still has room for numbers
_DARK = 0.8  # a field of a map with more is too dark for dark numbers
_INSIDE = 0.7  # a bar longer than this has its number inside


@dataclass(frozen=True)
class Shares:
    """Mean shares of a run or of the seeds of one.

    Attributes:
        means: modality -> partition -> mean share.
        half: the same, half widths of their intervals; what is missing has none.
        measured: whether they follow measured information, and so mean unique, synergistic, redundant, unused.
    """

    means: Mapping[str, Mapping[str, float]]
    half: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    measured: bool = False


def share_bars(records: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Figure | None:
    """Share of every partition per modality at the end, with its interval, and the way there epoch by epoch. None for a
    method without a partitioner."""
    if not report.get("shares"):
        return None
    shares = Shares(report["shares"], report.get("share_intervals", {}), bool(report.get("calibration")))
    history = [record for record in records if record.get("shares")]
    names, rows = _partitions([shares]), [(m, shares, m) for m in shares.means]
    height = 1.0 + 0.36 * len(rows)
    past = len(history) > 1
    figure, grid = new_figure(_WIDTH, height + (2.6 if past else 0.2), rows=1 + past, columns=len(names))
    if past:
        grid[0, 0].get_gridspec().set_height_ratios([height, 2.6])
        _draw_history(grid[1], history, list(shares.means), names, report.get("best_epoch"))
    _draw_rows(grid[0], rows, names)
    if not shares.measured:
        _draw_expected(grid[0], shares, names)
    return figure


def compared_shares(runs: Mapping[str, Shares]) -> Figure | None:
    """The bars of several runs below each other, of whatever data and task. None where no run has a partitioner."""
    runs = {name: shares for name, shares in runs.items() if shares.means}
    if not runs:
        return None
    rows = [row for name, shares in runs.items() for row in ((name, None, ""), *((m, shares, m) for m in shares.means))]
    names = _partitions(list(runs.values()))
    figure, grid = new_figure(_WIDTH, 1.0 + 0.32 * len(rows), columns=len(names))
    _draw_rows(grid[0], rows, names)
    return figure


def class_map(report: Mapping[str, Any]) -> Figure | None:
    """Share of every partition by class and modality, a map per partition. None where there are no classes."""
    by_class = report.get("shares_by_class")
    if not by_class:
        return None
    classes, modalities = list(by_class)[:_CLASSES], list(report["shares"])
    shares = Shares(report["shares"], measured=bool(report.get("calibration")))
    names = _partitions([shares])
    figure, grid = new_figure(_WIDTH, 1.5 + 0.3 * len(classes), columns=len(names))
    for axes, name in zip(grid[0], names, strict=True):
        values = np.array([[by_class[k]["shares"].get(m, {}).get(name, np.nan) for m in modalities] for k in classes])
        shade = LinearSegmentedColormap.from_list(name, ["white", _COLOURS.get(name, GREY)])
        axes.imshow(values, aspect="auto", cmap=shade, vmin=0, vmax=1, interpolation="nearest")
        for (row, column), value in np.ndenumerate(values):
            if len(modalities) <= _NUMBERED and np.isfinite(value):
                colour = "white" if value > _DARK else INK
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(len(modalities)), map(label_text, modalities), rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), map(label_text, classes) if axes is grid[0, 0] else [""] * len(classes))
        finish(axes, _title(name, shares.measured), grid="none")
    if len(by_class) > len(classes):
        figure.suptitle(f"{len(by_class) - len(classes)} more classes are in report.json", fontsize=9, color=GREY)
    return figure


def _partitions(runs: Sequence[Shares]) -> list[str]:
    """Every partition's name, in order of appearance."""
    return list(dict.fromkeys(name for run in runs for shares in run.means.values() for name in shares))


def _title(name: str, measured: bool) -> str:
    return _MEANS.get(name, name) if measured else name.replace("_", " ")


def _draw_rows(grid: Sequence[Axes], rows: Sequence[tuple[str, Shares | None, str]], names: Sequence[str]) -> None:
    """A bar per row and partition. Rows are (label, shares, modality); one without shares is a heading."""
    places = np.arange(len(rows))
    measured = all(shares.measured for _, shares, _ in rows if shares is not None)
    for axes, name in zip(grid, names, strict=True):
        for row, (_, shares, modality) in enumerate(rows):
            value = None if shares is None else shares.means[modality].get(name)
            if value is None:
                continue
            half = shares.half.get(modality, {}).get(name)
            axes.barh(row, value, height=0.66, color=_COLOURS.get(name, GREY))
            if half is not None:
                axes.errorbar(value, row, xerr=half, color=INK, linewidth=1.1, capsize=2.5)
            place = {"x": value + (half or 0) + 0.03, "ha": "left", "color": INK}
            if value > _INSIDE:
                place = {"x": value - (half or 0) - 0.03, "ha": "right", "color": "white"}
            axes.text(y=row, s=f"{value:.2f}", va="center", fontsize=8, **place)
        axes.set_xlim(0, 1.0)
        axes.set_xticks([0, 0.5, 1.0], ["0", "½", "1"])
        axes.set_yticks(places, [label_text(label) for label, _, _ in rows] if axes is grid[0] else [""] * len(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        finish(axes, _title(name, measured), x="mean gate mass", grid="x")
        for tick, (_, shares, _) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if shares is None else "normal")


def _draw_expected(grid: Sequence[Axes], shares: Shares, names: Sequence[str]) -> None:
    """Where random gates stand. Where partitions overlap (uni = paired = h) there is no such place."""
    whole = [sum(masses.values()) for masses in shares.means.values()]
    if tuple(names) not in EXPECTED or not np.allclose(whole, 1.0, atol=0.02):
        return
    for axes, value in zip(grid, EXPECTED[tuple(names)], strict=True):
        axes.axvline(value, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="random initialisation")
    legend_beside(grid[-1])


def _draw_history(
    grid: Sequence[Axes],
    history: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    names: Sequence[str],
    best: int | None,
) -> None:
    """The validation rows' mean of every partition, epoch by epoch; the epoch that was chosen is marked."""
    epochs = [record["epoch"] for record in history]
    for axes, name in zip(grid, names, strict=True):
        for modality, colour in zip(modalities, colours(len(modalities)), strict=True):
            values = series(history, "shares", modality, name)
            axes.plot(epochs, values, color=colour, label=label_text(modality), linewidth=1.5)
            if best in epochs:
                axes.plot(best, values[epochs.index(best)], "o", color=colour, markersize=5, markerfacecolor="white")
        axes.set_ylim(0, 1)
        finish(axes, x="epoch", y="validation, by epoch" if axes is grid[0] else "")
        if axes is not grid[0]:
            axes.tick_params(labelleft=False)
        epoch_axis(axes, history)
    legend_beside(grid[-1])
