"""A preset leaves nothing that a result depends on to this package's defaults, and says where each value is from."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from pgm_fast import presets
from pgm_fast.cli.app import app
from pgm_fast.data import MediaConfig
from pgm_fast.errors import ConfigError
from pgm_fast.interactions import Settings
from pgm_fast.methods import METHODS, ModelConfig
from pgm_fast.train import Config, TrainConfig, fit
from pgm_fast.train.configure import from_yaml, make_config, to_dict, to_yaml
from pgm_fast.train.run.position import Best

# where and how a run is computed, drawn and saved, not what is computed; the seed is the user's
OF_THE_MACHINE = {
    "compile",
    "capture",
    "strategy",
    "seed",
    "device",
    "backend",
    "threads",
    "workers",
    "eval_batch_size",
    "checkpoint_every_steps",
    "nonfinite_limit",
    "plots",
    "logger",
}
OF_SOUNDS_AND_PICTURES = {"dimml/crema-d", "dimml/ave", "dmil/crema-d"}
OF_RETRIEVAL = {"contrastive_temperature"}
OF_MEMORY = {"recompute"}  # the same numbers with less of it


@pytest.mark.parametrize("name", presets.names("train"))
def test_every_value_is_named_taken_and_has_a_source(name):
    content = presets.read(name, "train")
    config = make_config(overrides={"preset": name})
    method = content["method"]
    assert method == name.split("/")[0] and config.preset == name
    wanted = {
        "model": {f.name for f in fields(ModelConfig)} - OF_RETRIEVAL - OF_MEMORY,
        method: {f.name for f in fields(METHODS[method].config_class)},
        "train": {f.name for f in fields(TrainConfig)} - OF_THE_MACHINE,
        "data": {"standardize", "modality_dropout"},
        **({"media": {f.name for f in fields(MediaConfig)}} if name in OF_SOUNDS_AND_PICTURES else {}),
    }
    assert {section: set(content[section]) for section in wanted} == wanted
    found = to_dict(config)
    assert all(found[section][key] == content[section][key] for section in wanted for key in content[section])
    lines = [line for line in presets.text(name).splitlines() if re.match(r"  \w+:", line)]
    assert len(lines) == sum(map(len, wanted.values()))
    assert all(re.search(r"# (paper|code|ours|no published value)", line) for line in lines)


@pytest.mark.parametrize("name", presets.names("interactions"))
def test_of_an_estimate_every_setting_is_named_and_has_a_source(name):
    content = presets.read(name, "interactions")
    assert set(content) == {f.name for f in fields(Settings)} - {"seed"}
    assert Settings(**content).to_dict() == {**content, "seed": 0}
    lines = [line for line in presets.text(name).splitlines() if re.match(r"\w+:", line)]
    assert len(lines) == len(content) and all(re.search(r"# (paper|code|ours)", line) for line in lines)
    with pytest.raises(ConfigError, match=f"preset='{name}' is not allowed; it takes dimml/ave"):
        make_config(overrides={"preset": name})


def test_a_file_and_overrides_come_after_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("preset: dimml/ave\ntrain: {lr: 0.5}\n")
    assert (make_config(file).train.lr, make_config(file).dimml.temperature) == (0.5, 10.0)
    config = make_config(file, ["train.epochs=7", "preset=dimml/crema-d", "dimml.warmup=3"])
    assert (config.preset, config.dimml.temperature, config.dimml.warmup) == ("dimml/crema-d", 50.0, 3)
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (0.5, 7, 16)
    assert from_yaml(to_yaml(config)) == config == make_config(overrides=to_dict(config))


def test_what_would_change_nothing_and_what_is_unknown_is_refused():
    with pytest.raises(ConfigError, match=r"preset='dimml/crema_d' is not allowed \(did you mean dimml/crema-d\?\)"):
        make_config(overrides={"preset": "dimml/crema_d"})
    with pytest.raises(ConfigError, match="preset='dimml/ave' would change nothing: a Config says every value"):
        fit(Config(), preset="dimml/ave")


def test_the_command_lists_and_prints_them():
    listed = CliRunner().invoke(app, ["presets"]).stdout
    assert all(name in listed and presets.summary(name) in listed for name in presets.names())
    printed = CliRunner().invoke(app, ["presets", "dmil/crema-d"])
    assert printed.stdout.rstrip() == presets.text("dmil/crema-d").rstrip()
    shown = CliRunner().invoke(app, ["train", "--preset", "dmil/crema-d", "--show-config", "train.lr=1"])
    config = from_yaml(shown.stdout)
    assert (config.method, config.model.dim, config.train.lr) == ("dmil", 32, 1.0)


def test_the_last_epoch_is_kept_whatever_it_is_worth_and_patience_ends_nothing(tmp_path):
    settings = {
        "data.options": {"n": 200},
        "train.lr": 1.0,  # so that scores go up and down
        "train.epochs": 8,
        "train.patience": 1,
        "train.keep": "last",
        "train.plots": False,
        "train.logger": [],
    }
    report = fit(method="joint", data="synthetic", out=str(tmp_path / "run"), **settings)
    assert report["best_epoch"] == report["epochs"] == 8
    best = Best()
    assert [best.offer(e, s, 1.0, always=True) for e, s in ((1, 0.9), (2, 0.1), (3, 0.5))] == [True] * 3
    assert (best.epoch, best.score, best.since) == (3, 0.5, 0)
