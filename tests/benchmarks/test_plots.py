"""Plots show every variant at every number of rows that the result files hold, and only where there are several."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread


@pytest.fixture
def plots(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import plots

    return plots


def row(rows: int, d: int, variant: str = "eager", op: str = "partition", **changes) -> dict:
    ms = {"median": rows / 100, "p20": rows / 120, "p80": rows / 80, "calls": 3}
    what = {"op": op, "variant": variant, "dtype": "float32", "kind": "forward+backward"}
    return {**what, "shape": {"rows": rows, "d": d}, "ms": ms, "peak_bytes": 64, "percent_of_floor": 50.0, **changes}


def write(folder, name, rows):
    (folder / f"{name}.json").write_text(json.dumps({"device": {"name": "some device"}, "rows": rows}))


def test_the_width_with_most_sizes_is_drawn_in_order(plots):
    rows = [row(64, 128), row(512, 64), row(8, 64), row(64, 64), row(512, 128)]
    assert [(r["shape"]["d"], r["shape"]["rows"]) for r in plots.longest_series(rows)] == [(64, 8), (64, 64), (64, 512)]
    assert plots.longest_series([row(8, 64), row(64, 128)]) == []


def test_every_variant_has_a_line(plots, tmp_path):
    def drawn(variant):
        plots.draw_op("partition", [row(n, 64, variant) for n in (8, 64)], "some device", tmp_path / "one.png")
        return imread(tmp_path / "one.png")[..., :3].reshape(-1, 3)

    for variant in plots.COLOURS:
        alone = drawn(variant)
        assert [name for name, colour in plots.COLOURS.items() if _has(alone, to_rgb(colour))] == [variant]


def test_every_form_of_a_job_has_a_bar_and_its_times(plots, tmp_path):
    def drawn(rates):
        rows = [
            {
                "method": "pgm",
                "form": f"form {number}",
                "shape": {"batch": 64},
                "samples_per_processor_second": rate,
                "slowest_and_fastest": [rate - 1, rate + 1],
            }
            for number, rate in enumerate(rates)
        ]
        plots.draw_jobs(rows, "some device", tmp_path / "jobs.png")
        return imread(tmp_path / "jobs.png")[..., :3].reshape(-1, 3)

    first, second = to_rgb(plots.GREY), to_rgb(plots.colours(1)[0])
    both, alone = drawn([100.0, 200.0]), drawn([100.0])
    assert _has(both, first) and _has(both, second) and not _has(alone, second)
    # twice as fast is twice as long
    lengths = [(abs(both - colour).max(1) < 1 / 255).sum() for colour in (first, second)]
    assert 1.5 < lengths[1] / lengths[0] < 2.5


def _has(pixels, colour) -> bool:
    return bool((abs(pixels - colour).max(1) < 1 / 255).any())


def test_one_command_draws_what_is_there(repository, tmp_path):
    dual = [row(n, 64, op="partition_dual") for n in (8, 64)]
    write(tmp_path, "partition", [*dual, row(8, 64), row(64, 64, kind="forward")])
    write(tmp_path, "step", [])
    write(tmp_path, "fit", [])
    command = [sys.executable, str(repository / "benchmarks" / "plots.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [str(tmp_path / "partition_dual.png")], done.stderr
