"""What a sweep writes for people: a table, the way of the best value, and the values by setting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..train.run.files import atomic_write
from ..train.run.json_files import write_json

__all__ = ["COLUMNS", "table_rows", "write_page"]

COLUMNS = ["trial", "validation", "settings"]


def write_page(folder: Path, content: Mapping[str, Any]) -> None:
    """``sweep.json``, ``sweep.md``, ``history.png`` and ``settings.png``, each replaced whole."""
    write_json(folder / "sweep.json", content)
    lines = [
        f"# {content['method']} on {content['data']}",
        "",
        f"{content['metric']} on validation, mean over seeds {', '.join(map(str, content['seeds']))}; "
        f"{len(content['trials'])} trials. Nothing here was chosen or measured on test data.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in table_rows(content)),
    ]
    with atomic_write(folder / "sweep.md", "wb") as file:
        file.write(("\n".join(lines) + "\n").encode())
    if any(trial["valid"] is not None for trial in content["trials"]):
        _draw(folder, content)


def table_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """A row per trial, the best first, those without a value last, with their reason."""
    sign = -1 if content["direction"] == "max" else 1
    trials = sorted(content["trials"], key=lambda t: (t["valid"] is None, sign * (t["valid"] or 0.0)))
    rows = []
    for trial in trials:
        settings = ", ".join(f"{key}={_short(value)}" for key, value in trial["settings"].items())
        value = "–" if trial["valid"] is None else f"{trial['valid']:.4f}"
        reason = "" if trial["error"] is None else f" ({trial['error']})"
        rows.append([str(trial["trial"]), value, settings + reason])
    return rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(folder: Path, content: Mapping[str, Any]) -> None:
    from ..train.report.plots.canvas import FUSED, colours, finish, label_text, new_figure, save

    done = [trial for trial in content["trials"] if trial["valid"] is not None]
    numbers, values = [t["trial"] for t in done], [t["valid"] for t in done]
    better = max if content["direction"] == "max" else min
    best = [better(values[: count + 1]) for count in range(len(values))]
    figure, grid = new_figure(7.0, 3.2)
    grid[0, 0].plot(numbers, values, "o", color=colours(1)[0], label="trial")
    grid[0, 0].step(numbers, best, where="post", color=FUSED, label="best so far")
    grid[0, 0].legend(frameon=False, fontsize=8.5)
    finish(grid[0, 0], "Validation by trial", x="trial", y=label_text(content["metric"]))
    save(figure, folder / "history.png")
    keys = list(content["search"])
    figure, grid = new_figure(max(3.4 * len(keys), 5.0), 3.0, columns=len(keys))
    for axes, key in zip(grid[0], keys, strict=True):
        axes.plot([t["settings"][key] for t in done], values, "o", color=colours(1)[0])
        if content["search"][key].startswith("log:"):
            axes.set_xscale("log")
        finish(axes, key, y=label_text(content["metric"]))
    save(figure, folder / "settings.png")
