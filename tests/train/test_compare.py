"""Finished runs beside each other say what their reports say."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
from matplotlib.image import imread
from tolerances import FP64

from pgm_fast.cli.app import app
from pgm_fast.errors import CheckpointError, ConfigError
from pgm_fast.train import fit, fit_seeds, write_comparison
from pgm_fast.train.report.compare import _read, _shares, comparison_tables
from pgm_fast.train.run.json_files import read_json, write_json

SETTINGS = {
    "data": "synthetic",
    "data.options": {"n": 200},
    "model.dim": 8,
    "model.hidden": 8,
    "train.epochs": 2,
    "train.plots": False,
    "train.logger": [],
    "train.device": "cpu",
    "dmil.stage_epochs": [1, 1, 1],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for method in ("unimodal", "pgm", "dmil"):
        fit(method=method, out=str(folder / method), **SETTINGS)
    fit_seeds(seeds=[3, 4], method="joint", out=str(folder / "joint"), **SETTINGS)
    return folder


def test_tables_and_pictures_of_runs_and_of_seeds(runs, tmp_path):
    names = ("unimodal", "joint", "pgm", "dmil")
    content = write_comparison([runs / name for name in names], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "compare.json",
        "compare.html",
        "curves.png",
        "shares.png",
        "gates.png",
    }
    assert json.loads((tmp_path / "compare.json").read_text()) == content
    assert all(imread(tmp_path / name).ndim == 3 for name in ("curves.png", "shares.png", "gates.png"))
    reports = {name: read_json(runs / name / f"{'summary' if name == 'joint' else 'report'}.json") for name in names}
    page = (tmp_path / "compare.html").read_text()
    (_, columns, fused), (_, heads, alone) = comparison_tables(content)
    assert [row[0] for row in fused] == [row[1] for row in fused] == list(names)
    for name, row, own in zip(names, fused, alone, strict=True):
        test = reports[name]["test"]
        score = test["fused"]["accuracy"]
        text = f"{score['mean']:.4f} ± {score['std']:.4f}" if name == "joint" else f"{score:.4f}"
        assert row[columns.index("accuracy")] == text and f"<td>{text}</td>" in page
        for m in heads[2:]:
            of = test["unimodal"][m]["accuracy"]
            assert own[heads.index(m)].startswith(f"{of['mean'] if name == 'joint' else of:.4f}")
    assert re.findall('src="([^"]+)"', page) == ["curves.png", "shares.png", "gates.png"]


def test_a_picture_that_is_not_there_any_more_is_removed(runs, tmp_path):
    write_comparison([runs / "pgm", runs / "dmil"], tmp_path)
    write_comparison([runs / "unimodal", runs / "joint"], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"compare.json", "compare.html", "curves.png"}


def test_runs_of_one_name_are_told_apart_by_their_paths(runs, tmp_path):
    content = write_comparison([runs / "joint" / "seed-3", runs / "joint" / "seed-4", runs / "pgm"], tmp_path)
    assert [run["name"] for run in content["runs"]] == ["seed-3", "seed-4", "pgm"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pgm").symlink_to(runs / "pgm")
    content = write_comparison([runs / "pgm", runs / "pgm"], tmp_path)
    assert [run["name"] for run in content["runs"]] == [str(runs / "pgm")] * 2


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="two runs or more, got 1"):
        write_comparison([runs / "pgm"], tmp_path)
    with pytest.raises(CheckpointError, match="is this the folder of a finished run"):
        write_comparison([runs / "pgm", tmp_path / "none"], tmp_path)
    report = copy.deepcopy(read_json(runs / "pgm" / "report.json"))
    write_json(tmp_path / "elsewhere" / "report.json", {**report, "data": "other"})
    with pytest.raises(ConfigError, match="differ in data: other, synthetic"):
        write_comparison([runs / "pgm", tmp_path / "elsewhere"], tmp_path)


def test_runs_on_other_data_compare_by_their_shares(runs, tmp_path):
    """A summary's interval is the t-interval over its seeds, a report's that over rows."""
    other = {**SETTINGS, "data.options": {"n": 200, "kind": "xor"}}
    fit_seeds(seeds=[0, 1], method="pgm", out=str(tmp_path / "xor"), **other)
    with pytest.raises(ConfigError, match=r"differ in data.*--across"):
        write_comparison([runs / "pgm", tmp_path / "xor"], tmp_path / "out")
    content = write_comparison([runs / "pgm", tmp_path / "xor"], tmp_path / "out", across=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"compare.json", "compare.html", "shares.png"}
    assert [run["data"] for run in content["runs"]] == ["synthetic-mixture", "synthetic-xor"]
    (_, _, scores), (_, columns, shares) = comparison_tables(content)
    assert [row[:4] for row in scores] == [
        ["pgm", "pgm", "synthetic-mixture", "accuracy"],
        ["xor", "pgm", "synthetic-xor", "accuracy"],
    ]
    assert columns[2:] == ["uni only", "paired only", "shared", "unused"]
    assert [row[:2] for row in shares] == [["pgm", "a"], ["pgm", "b"], ["xor", "a"], ["xor", "b"]]
    both = [read_json(tmp_path / "xor" / f"seed-{s}" / "report.json")["shares"]["a"]["uni_only"] for s in (0, 1)]
    t = math.tan(0.475 * math.pi)  # the 0.975 quantile of t with one degree of freedom, Cauchy's
    drawn = _shares(_read(tmp_path / "xor", "xor"))
    assert drawn.measured
    assert drawn.half["a"]["uni_only"] == pytest.approx(t * abs(both[0] - both[1]) / 2, abs=FP64)
    of_a_run = _shares(_read(runs / "pgm", "pgm"))
    assert of_a_run.half == content["runs"][0]["share_intervals"]


def test_the_command_prints_the_tables(runs, tmp_path):
    from typer.testing import CliRunner

    arguments = ["compare", str(runs / "unimodal"), str(runs / "pgm"), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Fused scores, test" in result.stdout and f"page     {tmp_path / 'compare.html'}" in result.stdout
    printed = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(printed.stdout) == json.loads((tmp_path / "compare.json").read_text())
