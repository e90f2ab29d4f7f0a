"""Files of a run are whole or as they were; summaries are sample statistics; the page shows what the report says."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import statistics
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FP64, ROUNDED_7

from pgm_fast.errors import CheckpointError, ConfigError
from pgm_fast.train.report.contents import build_report, summarise, summary_table
from pgm_fast.train.report.page import write_page
from pgm_fast.train.run import files
from pgm_fast.train.run.files import atomic_write
from pgm_fast.train.run.json_files import append_line, json_line, read_json, read_jsonl, write_json
from pgm_fast.train.scores.predictions import Predictions
from pgm_fast.train.scores.shares import mean_shares


def report(seed: int = 0, accuracy: float = 0.5, **changes) -> dict:
    scores = {"fused": {"accuracy": accuracy, "nll": 1.0}, "unimodal": {"left": {"accuracy": accuracy / 2}}}
    run = {"method": "pgm", "data": "digits", "task": "classification", "seed": seed, "epochs": 5, "best_epoch": 3}
    computed = {"backend": {"partition": "torch", "info_nce": "torch"}, "timing": {"seconds": 1.5}}
    found = {"valid": scores, "test": scores, "shares": {"left": {"uni": 0.25, "paired": 0.75}}}
    return build_report(**{**run, **computed, **found, **changes})


@pytest.mark.parametrize("fail_at", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, fail_at):
    path = tmp_path / "report.json"
    write_json(path, {"version": 1})

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fail_at != "write":
        monkeypatch.setattr(files.os, fail_at, refuse)
    with pytest.raises(CheckpointError, match=r"report\.json: No space left on device"), atomic_write(path) as file:
        file.write(b"half of it")
        if fail_at == "write":
            refuse()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["report.json"]
    assert read_json(path) == {"version": 1}


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_failure_of_the_writer_itself_passes_through_and_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), atomic_write(tmp_path / "x") as file:
        file.write(b"half")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_refused_write_hidden_by_the_serializer_is_still_named(tmp_path):
    with pytest.raises(CheckpointError, match="x: No space left"), atomic_write(tmp_path / "x"):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")


def test_a_real_limit_on_file_size_is_named_and_the_old_checkpoint_kept(tmp_path):
    code = """if True:
        import resource, sys, torch
        from pgm_fast.errors import CheckpointError
        from pgm_fast.train.run.files import atomic_write
        def save(size):
            with atomic_write(sys.argv[1]) as file:
                torch.save({"weight": torch.ones(size)}, file)
        save(3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save(100_000)
        except CheckpointError as error:
            print(error)
        assert len(torch.load(sys.argv[1])["weight"]) == 3
    """
    path = tmp_path / "last.pt"
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert f"cannot write {path}: File too large" in ended.stdout
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "report.json"
    code = """if True:
        import json, sys
        from pgm_fast.train.run.files import atomic_write
        print("ready", flush=True)
        version = 0
        while True:
            version += 1
            with atomic_write(sys.argv[1], "w") as file:
                json.dump({"version": version, "filling": [version] * 20_000}, file)
    """
    for attempt in range(2):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(0.05 + 0.037 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        value = read_json(path)
        assert value["filling"] == [value["version"]] * 20_000
    write_json(path, {})
    assert os.listdir(tmp_path) == ["report.json"], "what killed writers left is gone after the next write"


def test_new_files_follow_the_umask_and_links_stay_links(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "made" / "real.txt", "w") as file:
            file.write("ä\n")
    finally:
        os.umask(before)
    real = tmp_path / "made" / "real.txt"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    with atomic_write(link, "w") as file:
        file.write("new")
    assert link.is_symlink() and real.read_text() == "new"
    with pytest.raises(ValueError, match="'wb' or 'w', got 'a'"), atomic_write(link, "a"):
        pass


def test_json_holds_numpy_values_and_no_nan(tmp_path):
    path = tmp_path / "x.json"
    write_json(
        path, {"a": np.float32(0.5), "b": np.arange(3), "c": [float("nan"), np.float64("inf"), 1], 4: (True, None, "ö")}
    )
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": 0.5,
        "b": [0, 1, 2],
        "c": [None, None, 1],
        "4": [True, None, "ö"],
    }


def test_lines_survive_a_torn_end_and_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path) == []
    append_line(path, json_line({"epoch": 1}))
    with open(path, "ab") as file:
        file.write(b'{"epoch": 2, "tr')
    assert read_jsonl(path) == [{"epoch": 1}]
    append_line(path, json_line({"epoch": 2, "loss": float("nan")}))
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2, "loss": null}\n'

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: No space left on device"):
        append_line(path, json_line({"epoch": 3}))
    monkeypatch.undo()
    assert [value["epoch"] for value in read_jsonl(path)] == [1, 2]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*report\.json: No such file"):
        read_json(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"a": ')
    with pytest.raises(CheckpointError, match=r"report\.json is not valid JSON"):
        read_json(tmp_path / "report.json")
    (tmp_path / "m.jsonl").write_text("{}\n{]\n{}\n")
    with pytest.raises(CheckpointError, match=r"m\.jsonl, line 2 is not valid JSON"):
        read_jsonl(tmp_path / "m.jsonl")


@settings(max_examples=30, derandomize=True)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_summary_is_mean_and_sample_deviation_over_seeds(values):
    summary = summarise([report(seed, value) for seed, value in enumerate(values)])
    assert summary["runs"] == len(values)
    assert summary["seeds"] == list(range(len(values)))
    for split in ("valid", "test"):
        found = summary[split]["fused"]["accuracy"]
        assert found["mean"] == pytest.approx(statistics.mean(values), abs=FP64)
        assert found["std"] == pytest.approx(statistics.stdev(values), abs=FP64)
        assert summary[split]["unimodal"]["left"]["accuracy"]["mean"] == pytest.approx(
            statistics.mean(values) / 2, abs=FP64
        )
    assert summary["shares"]["left"]["paired"] == {"mean": 0.75, "std": 0.0}


def test_one_run_has_no_deviation_and_a_metric_that_some_lack_is_left_out():
    assert summarise([report()])["test"]["fused"]["accuracy"] == {"mean": 0.5, "std": None}
    lacking = report(1, test={"fused": {"accuracy": 0.7}, "unimodal": {}})
    summary = summarise([report(0), lacking])["test"]
    assert set(summary["fused"]) == {"accuracy"} and summary["unimodal"] == {}


def test_runs_that_do_not_belong_together_are_not_summarised():
    with pytest.raises(ConfigError, match="differ in method: joint, pgm"):
        summarise([report(), report(method="joint")])
    with pytest.raises(ConfigError, match="at least one seed"):
        summarise([])


def test_table_has_a_row_per_output_and_a_dash_where_nothing_is_defined():
    columns, rows = summary_table(report(accuracy=0.5))
    assert columns == ["test", "accuracy", "nll"]
    assert rows == [["fused", "0.5000", "1.0000"], ["left", "0.2500", "-"]]
    _, rows = summary_table(summarise([report(0, 0.4), report(1, 0.6)]), "valid")
    assert rows[0] == ["fused", "0.5000 ± 0.1414", "1.0000 ± 0.0000"]
    _, rows = summary_table(
        report(
            task="retrieval",
            test={"fused": {"recall_at_1": 1.0}, "unimodal": {}, "pairs": {"a->b": {"recall_at_1": 1.0}}},
        )
    )
    assert rows == [["fused", "1.0000"], ["a->b", "1.0000"]]


def test_shares_are_means_over_the_rows_where_the_modality_is():
    shares = np.array([[0.2, 0.8], [0.4, 0.6], [1.0, 0.0]])
    by_modality = {"a": shares, "b": shares, "c": shares, "d": np.full((3, 4), 0.25)}
    presence = {"b": np.array([True, True, False]), "c": np.zeros(3, dtype=bool)}
    means = mean_shares(Predictions(np.arange(3), shares=by_modality, presence=presence))
    assert means["a"] == pytest.approx({"uni": 1.6 / 3, "paired": 1.4 / 3}, abs=ROUNDED_7)
    assert means["b"] == pytest.approx({"uni": 0.3, "paired": 0.7}, abs=ROUNDED_7)
    assert "c" not in means
    assert list(means["d"]) == ["uni_only", "paired_only", "shared", "unused"]


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.images, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("seeds", [1, 2])
def test_page_shows_numbers_and_plots_and_takes_names_as_text(tmp_path, seeds):
    reports = [report(seed, 0.4321, data="<script>alert(1)</script>") for seed in range(seeds)]
    path = write_page(tmp_path, reports[0] if seeds == 1 else summarise(reports), ["plots/confusion.png"])
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.images == ["plots/confusion.png"]
    assert "<script>alert" not in text
    assert any(cell.startswith("0.4321") for cell in page.text) and any(cell.startswith("0.7500") for cell in page.text)
    assert "http" not in text, "the page loads nothing from elsewhere"
