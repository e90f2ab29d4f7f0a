"""``train``, ``resume`` and ``evaluate``: what a run has come to, as tables, sentences and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .terminal import say, show_table

__all__ = ["show_result", "show_scores"]


def show_scores(scores: dict[str, Any], run: Path) -> None:
    """A split's scores, and the mean shares of the partitions where there are any."""
    from ..train.report.contents import summary_table

    title = f"{run}, {scores['checkpoint']} (epoch {scores['epoch']}), {scores['rows']} rows"
    columns, rows = summary_table({"task": scores["task"], scores["split"]: scores}, scores["split"])
    show_table(columns, rows, title=title)
    if scores["shares"]:
        partitions = list(next(iter(scores["shares"].values())))
        rows = [[name, *(f"{shares[p]:.4f}" for p in partitions)] for name, shares in scores["shares"].items()]
        say()
        show_table(["share", *partitions], rows)


def show_result(result: dict[str, Any], folder: Path) -> None:
    """The end of train and resume: scores, and where everything is."""
    from ..train.report.card import sentences
    from ..train.report.contents import summary_table

    summary = "seeds" in result
    head = f"{result['method']} on {result['data']}"
    if summary:
        head += f", seeds {', '.join(map(str, result['seeds']))}: mean ± sample standard deviation"
    else:
        head += f", best epoch {result['best_epoch']} of {result['epochs']} by validation score"
    for split in ("valid", "test"):
        columns, rows = summary_table(result, split)
        if rows:
            say()
            show_table(columns, rows, title=head)
            head = None
    for sentence in sentences(result)[:-1]:
        say(sentence)
    say()
    names = (
        [("summary", "summary.json")]
        if summary
        else [("report", "report.html"), ("numbers", "report.json"), ("plots", "plots")]
    )
    for name, file in names:
        if (folder / file).exists():
            say(f"{name.ljust(8)} {folder / file}")
