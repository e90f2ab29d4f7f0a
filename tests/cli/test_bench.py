"""``pgm-fast bench`` runs what is asked for, says what fails, and where the benchmarks are when they are not here."""

from __future__ import annotations

import pytest

from pgm_fast.cli.bench import run_benchmarks
from pgm_fast.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bench_good.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    (tmp_path / "bench_bad.py").write_text(
        "import sys  # takes --device\nsys.exit(0 if '--device' in sys.argv else 3)\n"
    )
    return tmp_path


def test_all_run_and_failures_are_counted(folder, capfd):
    assert run_benchmarks([], None, folder) == 1
    assert (folder / "bench_good.ran").exists() and "failed: bad" in capfd.readouterr().out


def test_a_device_goes_to_those_that_measure_it(folder, capfd):
    assert run_benchmarks([], "cuda", folder) == 0
    assert not (folder / "bench_good.ran").exists() and "good: measures the CPU only" in capfd.readouterr().out


def test_plots_are_drawn_last_and_their_failure_counts(folder, capfd):
    (folder / "plots.py").write_text("import sys\nprint('drawing')\nsys.exit(1)\n")
    assert run_benchmarks(["good"], None, folder) == 1
    out = capfd.readouterr().out
    assert out.index("good:") < out.index("drawing") < out.index("failed: plots")


def test_a_wrong_name_and_an_installation_without_benchmarks_are_named(folder, tmp_path_factory):
    with pytest.raises(ConfigError, match="unknown benchmark 'best'; the benchmarks are bad, good"):
        run_benchmarks(["best"], None, folder)
    with pytest.raises(ConfigError, match="clone the repository"):
        run_benchmarks([], None, tmp_path_factory.mktemp("empty"))
