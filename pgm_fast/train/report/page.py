"""HTML pages: of a run's report or a summary, and the parts of others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..run.files import atomic_write
from .card import sentences
from .contents import cell, summary_table

__all__ = ["html_table", "save_page", "write_page"]

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


def write_page(run_dir: str | os.PathLike, report: Mapping[str, Any], plots: Sequence[str] = ()) -> Path:
    """Write report.html into ``run_dir``: the numbers of a report or a summary, and the plots by their relative paths.

    Args:
        run_dir: the run folder.
        report: from :func:`~pgm_fast.train.report.contents.build_report` or
            :func:`~pgm_fast.train.report.contents.summarise`.
        plots: paths relative to ``run_dir``, as from :func:`~pgm_fast.train.report.plots.draw_run`.

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
