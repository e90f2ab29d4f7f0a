"""Writes the result tables of README.md and docs/ from the result files, so that no number there is without one.

    python benchmarks/pages.py [--check]

Each table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import findings_page
import kernel_goals
import kernel_model
import media_input
import scaling_page
import speed_page

from pgm_fast.errors import CheckpointError
from pgm_fast.train.run.files import atomic_write

REPOSITORY = Path(__file__).resolve().parent.parent

PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": findings_page.results, "summary": speed_page.summary},
    "docs/baselines.md": {"every method": findings_page.every_method},
    "docs/data.md": {"media": media_input.sentence},
    "docs/dimml.md": {"presets": findings_page.published("dimml"), "competition": findings_page.competition_table},
    "docs/dmil.md": {"presets": findings_page.published("dmil")},
    "docs/gpu.md": {"model": kernel_model.table, "goals": kernel_goals.table},
    "docs/interactions.md": {"presets": findings_page.published("lsmi")},
    "docs/findings.md": {
        "against": findings_page.against,
        "studies": findings_page.studies,
        "epochs": findings_page.epochs_table,
        "trials": findings_page.trials_table,
        "attached": findings_page.attached_table,
        "shares": findings_page.shares,
        "shares on real sets": findings_page.shares_on_real_sets,
    },
    "docs/scaling.md": {
        "shares": scaling_page.job_shares,
        "media": media_input.sentence,
        "weak scaling": scaling_page.weak_scaling,
        "plan": scaling_page.scaling_plan,
    },
    "docs/speed.md": {
        "jobs": scaling_page.jobs,
        "step": speed_page.step,
        "profile": speed_page.profile,
        "targets": speed_page.targets,
        "compiled": speed_page.compiled,
        "partition": speed_page.partition,
        "products": speed_page.products,
        "plots": speed_page.plots,
        "dimml": speed_page.dimml,
        "optimizers": speed_page.optimizers,
        "components": speed_page.components,
        "densities": speed_page.densities,
    },
}


def filled(page: str, text: str) -> str:
    """The page's text with every table made anew."""
    for name, make in PAGES[page].items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"error: {page} has no {begin} ... {end}")
        table = f"{begin}\n{_table(make)}\n{end}"
        text = pattern.sub(lambda _, table=table: table, text)
    return text


def _table(make: Callable[[], str]) -> str:
    try:
        return make()
    except CheckpointError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return "Not measured yet."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the pages with the result files")
    check = parser.parse_args(arguments).check
    stale = []
    for page in PAGES:
        path = REPOSITORY / page
        text = path.read_text(encoding="utf-8")
        wanted = filled(page, text)
        if text != wanted:
            stale.append(page)
            if not check:
                with atomic_write(path, "w") as file:
                    file.write(wanted)
    if check and stale:
        print(f"{', '.join(stale)}: not what the result files say; run python benchmarks/pages.py", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
