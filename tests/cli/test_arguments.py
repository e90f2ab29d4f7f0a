"""Options, settings and places: what they mean, and what is said of wrong ones."""

from __future__ import annotations

import pytest
from cli_calls import invoke, refusal, succeed

from pgm_fast.train.configure import make_config


def test_options_are_shortcuts_of_keys_and_win(calls):
    succeed(
        "train",
        "--method",
        "joint",
        "--data",
        "a=b.npz",
        "--out",
        "o",
        "--epochs",
        "3",
        "--seed",
        "4",
        "--device",
        "cpu",
        "train.seed=9",
    )
    keys = ["method=joint", "data.source=a=b.npz", "out=o", "train.epochs=3", "train.seed=4", "train.device=cpu"]
    config, seeds, more = calls[0]
    assert config == make_config(None, keys) and seeds is None
    assert more == {"progress": True, "overwrite": False}
    succeed("train", "--quiet", "--overwrite")
    assert calls[1][2] == {"progress": False, "overwrite": True}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "0", "1", "2", "train.epochs=3"],
        ["train.epochs=3", "--seeds", "0", "1", "2"],
        ["--seeds", "0,1,2", "train.epochs=3"],
        ["--seeds=0,1,2", "train.epochs=3"],
        ["--seeds", "0", "1,2", "--epochs", "3"],
        ["--seeds", "0", "1", "2", "--epochs", "3", "--quiet"],
    ],
)
def test_seeds_in_every_way_of_writing(calls, arguments):
    succeed("train", *arguments)
    config, seeds, _ = calls[0]
    assert seeds == [0, 1, 2] and config.train.epochs == 3


def test_seed_and_seeds_exclude_each_other(calls):
    assert invoke("train", "--seed", "1", "--seeds", "1", "2").exit_code == 2
    assert not calls


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_path_in_place_of_a_setting_is_told_the_option_that_takes_it(command, calls, source, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("train: {epochs: 1}")
    assert refusal(command, source).endswith(f"what to train on is given as --data {source}")
    found = refusal(command, config)
    assert found.endswith(f"a file of settings is given as --config {config}" if command == "train" else "SOURCE")
    assert "'nowhere' is not of the form key=value, such as" in refusal(command, "nowhere")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--train.epochs=3"], "train.epochs=3"),
        (["--train.epochs", "3"], "train.epochs=3"),
        (["--pgm.rates.a.uni", "--quiet"], "pgm.rates.a.uni=VALUE"),
    ],
)
def test_a_setting_written_as_an_option_is_told_how_it_is_written(given, meant, calls):
    assert (
        refusal("train", *given) == f"{given[0]} is no option; a configuration value is given without dashes: {meant}"
    )
    assert not calls


def test_a_place_that_cannot_be_written_to_is_named_as_what_it_is(trained, source, tmp_path):
    run, file = trained[0], tmp_path / "taken"
    file.write_text("mine")
    assert f"--out {tmp_path} is a folder; it takes a file, such as" in refusal("predict", run, "--out", tmp_path)
    assert f"has no ending; it takes .npz or .csv, such as {run}" in refusal("predict", run, "--out", f"{run}x")
    assert f"{file} is a file; name a folder" in refusal("predict", run, "--out", file / "p.csv")
    for command in (
        ["compare", run, run, "--out"],
        ["interactions", source, "--out"],
        ["train", "--data", source, "--out"],
        ["sweep", "--data", source, "--search", "train.lr=0.1,0.2", "--out"],
    ):
        assert f"{file} is a file; name a folder" in refusal(*command, file)
        assert f"{file / 'x'} cannot be made: {file} is a file; name a folder" in refusal(*command, file / "x")
    assert file.read_text() == "mine"
