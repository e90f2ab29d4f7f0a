"""Trackers hold what metrics.jsonl holds, of the same run after a resume, change no number and stop no run."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import struct
import sys

import pytest

from pgm_fast.errors import CheckpointError, ConfigError
from pgm_fast.train import fit, loop, resume
from pgm_fast.train.configure import flat, from_yaml, make_config, to_yaml
from pgm_fast.train.report import trackers
from pgm_fast.train.run.folder import RunFolder

SETTINGS = {
    "data.source": "synthetic",
    "data.options": {"n": 60},
    "model.dim": 4,
    "model.hidden": 4,
    "train.epochs": 2,
    "train.device": "cpu",
    "train.plots": False,
}
ENVIRONMENT = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


def scores(report):
    return {key: report[key] for key in ("valid", "test", "epochs", "best_epoch")}


def numbers(values, prefix=""):
    """Slashed name -> number, of a line of metrics.jsonl."""
    inner = {name: value for name, value in values.items() if isinstance(value, dict)}
    flat = {f"{prefix}{k}": v for k, v in values.items() if isinstance(v, (int, float)) and k != "epoch"}
    return {**flat, **{k: v for name, value in inner.items() for k, v in numbers(value, f"{prefix}{name}/").items()}}


def wandb_records(file):
    """The records of an offline run: behind 7 bytes checksum, length and kind of each, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, part = file.read_bytes(), 7, b""
    while position < len(data):
        if (1 << 15) - position % (1 << 15) < 7:
            position += (1 << 15) - position % (1 << 15)
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def of_wandb(out):
    """Ids, name, settings, epoch -> numbers and final numbers that the folders of ``out/wandb`` hold."""
    ids, names, config, epochs, final = set(), set(), {}, {}, {}
    for file in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(file):
            ids |= {record.run.run_id} - {""}
            names |= {record.run.display_name} - {""}
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            line = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if line:
                epochs[line["_step"]] = {name: value for name, value in line.items() if not name.startswith("_")}
            final |= {item.key: json.loads(item.value_json) for item in record.summary.update if "test/" in item.key}
    return ids, names, config, epochs, final


def of_mlflow(out):
    """The same, of the runs that ``out/mlruns`` holds."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("pgm-fast").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    epochs = {}
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            epochs.setdefault(point.step, {})[name] = point.value
    final = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    return {run.info.run_id}, {run.info.run_name}, run.data.params, epochs, final


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_stopped_and_resumed_run_is_one_run_of_the_tracker_and_gives_the_same_result(tmp_path, monkeypatch, name):
    for module in trackers._NEEDS[name][1]:
        pytest.importorskip(module)
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    out, settings = tmp_path / "a run", {**SETTINGS, "train.logger": [name]}
    plain = fit(out=str(tmp_path / "plain"), **{**SETTINGS, "train.logger": []})
    original = loop.Training._end_epoch

    def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_end_epoch", stop)
        with pytest.raises(SystemExit):
            fit(out=str(out), **settings)
    report = resume(out)
    assert scores(report) == scores(plain)

    ids, names, config, epochs, final = {"wandb": of_wandb, "mlflow": of_mlflow}[name](out)
    assert ids == {RunFolder(out).tracker_ids()[name]} and names == {"a run"}
    wanted = flat(from_yaml((out / "config.yaml").read_text()))
    if name == "mlflow":
        assert config == {key: str(value) for key, value in wanted.items()}
    else:
        assert config["train"]["lr"] == wanted["train.lr"] and config["method"] == wanted["method"]
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        for key, value in numbers(line).items():
            found = epochs[line["epoch"]][trackers._plain(key) if name == "mlflow" else key]
            assert found == value or (math.isnan(value) and math.isnan(found)), key
    assert sorted(epochs) == [1, 2]
    assert final == {f"test/{key}": value for key, value in numbers(report["test"]).items()}

    mine = out / name / "notes.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    RunFolder(out).claim(overwrite=True)
    assert [path for path in out.rglob("*") if path != mine and path not in mine.parents] == []


class Broken:
    id = None

    def __init__(self, *arguments, at=""):
        self._at = at
        self._raise("start")

    def _raise(self, at):
        if self._at == at:
            raise RuntimeError("no route to host\n  in the depth of a library")

    def log(self, scalars, epoch):
        self._raise("log")

    def summary(self, scalars, epoch):
        self._raise("summary")

    def close(self, status):
        self._raise("close")


@pytest.mark.parametrize("at", ["start", "log", "summary", "close"])
def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(tmp_path, monkeypatch, caplog, at):
    told = []
    good = type("Good", (Broken,), {"log": lambda self, scalars, epoch: told.append((epoch, scalars))})
    monkeypatch.setitem(trackers._KINDS, "wandb", lambda *arguments: Broken(*arguments, at=at))
    monkeypatch.setitem(trackers._KINDS, "mlflow", good)
    with caplog.at_level(logging.WARNING):
        with trackers.Trackers(["wandb", "mlflow"], RunFolder(tmp_path), make_config()) as both:
            for epoch in (1, 2):
                both.epoch({"epoch": epoch, "stage": "joint", "valid": {"fused": {"f1": 0.5}}})
            both.summary({"epochs": 2, "best_epoch": 1, "test": {}})
    assert [record.message for record in caplog.records] == [
        "wandb fails (no route to host); training goes on without it, metrics.jsonl holds the same"
    ]
    assert told == [(1, {"valid/fused/f1": 0.5}), (2, {"valid/fused/f1": 0.5})]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tensorboard", "tensorboard", "train"), ("wandb", "wandb", "trackers"), ("mlflow", "alembic", "trackers")],
)
def test_a_missing_library_is_said_before_anything_is_written(tmp_path, monkeypatch, name, module, extra):
    monkeypatch.setattr(trackers.util, "find_spec", lambda asked: None if asked == module else sys)
    with pytest.raises(ConfigError, match=rf'{name}, which needs {module}, .*pip install "pgm-fast\[{extra}\]"'):
        fit(out=str(tmp_path / "run"), **SETTINGS, **{"train.logger": [name]})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("was", "now"), [("true", ["tensorboard"]), ("false", [])])
def test_the_switch_of_older_runs_is_read_as_what_it_meant(was, now):
    settings = make_config(overrides={"train.logger": now})
    older = to_yaml(make_config(overrides={"train.logger": []})).replace("  logger: []\n", f"  tensorboard: {was}\n")
    assert "logger" not in older and from_yaml(older) == settings
    assert make_config(overrides=["train.logger=[wandb]", f"train.tensorboard={was}"]) == settings
    for value in (was, was == "true", int(was == "true")):
        assert make_config(overrides={"train": {"tensorboard": value}}) == settings


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("train.logger=wanbd", r"did you mean wandb\?.*tensorboard, wandb, mlflow"),
        ("train.logger=[wandb,wandb]", "each once"),
        ("train.tensorboard=wandb", r"true or false, and is train\.logger=\[tensorboard\] or train\.logger=\[\] now"),
    ],
)
def test_what_no_tracker_is_called_is_refused_with_the_names(override, answer):
    with pytest.raises(ConfigError, match=answer):
        make_config(overrides=[override])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"wandb": "../../elsewhere"}', '{"wandb": 5}'])
def test_a_strangers_ids_are_not_taken(tmp_path, text):
    (tmp_path / "trackers.json").write_text(text)
    assert RunFolder(tmp_path).tracker_ids() == {}


@pytest.mark.parametrize("name", ["wandb", "mlruns", "trackers.json"])
def test_trackers_write_through_no_link(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"{name} is a symbolic link"):
        RunFolder(tmp_path).require_no_links()
