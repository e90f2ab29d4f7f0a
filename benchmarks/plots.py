"""Draws whole jobs beside what a user would write, and the ops that are measured at several numbers of rows: time,
percent of the floor, and memory.

    python benchmarks/plots.py [FOLDER ...]

Reads jobs.json, partition.json, partitioned_linear.json and reconstruction.json of each folder, all of ``results/``
where none is named, and writes ``jobs.png`` and ``<op>.png`` beside them. Jobs are bars of samples per second of
processor time, with the slowest and the fastest epoch. A plot of an op shows forward and backward at the width that was
measured at most numbers of rows; the floor is the fastest stream of what must move, or the bare matrix products.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness import RESULTS
from matplotlib.axes import Axes

from pgm_fast.train.report.plots.canvas import GREY, INK, colours, finish, legend_beside, new_figure, save
from pgm_fast.train.run.json_files import read_json

JOBS = "jobs"
FILES = ("partition", "partitioned_linear", "reconstruction")
KIND = "forward+backward"
DRAWN = {"ms", "percent_of_floor", "peak_bytes"}
VARIANTS = ("eager", "torch.compile", "torch", "native", "triton")
COLOURS = {**dict(zip(VARIANTS, colours(len(VARIANTS)), strict=True)), "bare": GREY}
LABELS = {"torch": "reference", "bare": "bare products"}


def draw(folder: Path) -> list[Path]:
    """Plots of one folder of results, those of files that are there."""
    written = []
    jobs = folder / f"{JOBS}.json"
    if jobs.exists():
        content = read_json(jobs)
        rates = [row for row in content["rows"] if _is_drawn(row)]
        if rates:
            written.append(jobs.with_suffix(".png"))
            draw_jobs(rates, content["device"]["name"], written[-1])
    for name in FILES:
        source = folder / f"{name}.json"
        if not source.exists():
            continue
        content = read_json(source)
        rows = [row for row in content["rows"] if row["kind"] == KIND and row.keys() >= DRAWN]
        for op in dict.fromkeys(row["op"] for row in rows):
            series = longest_series([row for row in rows if row["op"] == op])
            if series:
                written.append(folder / f"{op}.png")
                draw_op(op, series, content["device"]["name"], written[-1])
    return written


def _is_drawn(row: dict) -> bool:
    """Jobs of one size are drawn beside each other."""
    return row["kind"] == "rate" and row["shape"]["batch"] == 64


def draw_jobs(rows: Sequence[dict], device: str, path: Path) -> None:
    """A group of bars per method, a bar per form, labelled with how many times the first form it is."""
    methods, forms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("method", "form"))
    figure, axes = new_figure(8.5, 1.0 + 0.3 * len(rows), 1, 1)
    panel, height = axes[0, 0], 0.8 / len(forms)
    ink = dict(zip(forms, (GREY, *colours(len(forms) - 1)), strict=True))
    for number, form in enumerate(forms):
        own = {row["method"]: row for row in rows if row["form"] == form}
        places = [methods.index(method) + (number - (len(forms) - 1) / 2) * height for method in own]
        rates = [row["samples_per_processor_second"] for row in own.values()]
        ends = [row["slowest_and_fastest"] for row in own.values()]
        spread = [[rate - low for rate, (low, _) in zip(rates, ends, strict=True)]]
        spread.append([high - rate for rate, (_, high) in zip(rates, ends, strict=True)])
        panel.barh(places, rates, 0.9 * height, color=ink[form], label=form, xerr=spread, error_kw={"ecolor": INK})
        for method, place, rate, (_, high) in zip(own, places, rates, ends, strict=True):
            first = next(r for r in rows if r["method"] == method and r["form"] == forms[0])
            times = rate / first["samples_per_processor_second"]
            panel.annotate(
                f"{times:.2f}×", (high, place), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
            )
    panel.set_yticks(range(len(methods)), methods)
    panel.invert_yaxis()
    panel.set_xmargin(0.12)
    shape = ", ".join(f"{key} {size}" for key, size in rows[0]["shape"].items())
    finish(panel, f"Whole jobs: {shape}, {device}", "samples per second of processor time", grid="x")
    legend_beside(panel)
    save(figure, path)


def longest_series(rows: Sequence[dict]) -> list[dict]:
    """Rows of the width and dtype that were measured at most numbers of rows, in ascending order; none where there is
    no second number of rows."""
    sizes: dict[tuple, set[int]] = {}
    for row in rows:
        sizes.setdefault(_width(row), set()).add(row["shape"]["rows"])
    counts = Counter({width: len(found) for width, found in sizes.items()})
    ((width, count),) = counts.most_common(1)
    if count < 2:
        return []
    return sorted((row for row in rows if _width(row) == width), key=lambda row: row["shape"]["rows"])


def draw_op(op: str, rows: Sequence[dict], device: str, path: Path) -> None:
    """Three panels over the number of rows, a line per variant."""
    figure, axes = new_figure(12.5, 3.6, 1, 3)
    time, floor, memory = axes[0]
    for name in [name for name in COLOURS if any(row["variant"] == name for row in rows)]:
        own = [row for row in rows if row["variant"] == name]
        sizes = [row["shape"]["rows"] for row in own]
        style = {"label": LABELS.get(name, name), "color": COLOURS[name], "linewidth": 1.6, "markersize": 4}
        style |= {"marker": "o", "linestyle": "--" if name == "bare" else "-"}
        time.plot(sizes, [row["ms"]["median"] for row in own], **style)
        time.fill_between(
            sizes, [row["ms"]["p20"] for row in own], [row["ms"]["p80"] for row in own], color=COLOURS[name], alpha=0.15
        )
        floor.plot(sizes, [row["percent_of_floor"] for row in own], **style)
        memory.plot(sizes, [row["peak_bytes"] / 2**20 for row in own], **style)
    sizes = sorted({row["shape"]["rows"] for row in rows})
    shape = ", ".join(f"{key} {size}" for key, size in rows[0]["shape"].items() if key != "rows")
    for panel, title in ((time, "milliseconds"), (floor, "percent of the floor"), (memory, "peak memory, MiB")):
        finish(panel, title, "rows")
        _rows_axis(panel, sizes)
    time.set_yscale("log")
    memory.set_yscale("log")
    floor.axhline(100, color=INK, linewidth=0.8, linestyle=":")
    legend_beside(memory)
    figure.suptitle(f"{op}, forward and backward, {shape}, {rows[0]['dtype']}, {device}", fontsize=10, color=INK)
    save(figure, path)


def _width(row: dict) -> tuple:
    return row["dtype"], *(size for key, size in row["shape"].items() if key != "rows")


def _rows_axis(panel: Axes, sizes: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    folders = parser.parse_args(arguments).folders or sorted(path for path in RESULTS.glob("*") if path.is_dir())
    written = [path for folder in folders for path in draw(folder)]
    print("\n".join(map(str, written)) or f"nothing to draw in {', '.join(map(str, folders)) or RESULTS}")


if __name__ == "__main__":
    main()
