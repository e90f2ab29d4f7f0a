"""What may be relied on: the examples run as they are and do what they say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from tolerances import FP64, PRINTED_4
from typer.testing import CliRunner

from pgm_fast.cli.app import app


@pytest.fixture
def example(script):
    return lambda name: script(f"examples/{name}.py")


def test_drop_in(example, capsys):
    assert example("drop_in").main(steps=60) > 0.9  # text alone tells one of two bits: 0.5
    assert "paired share" in capsys.readouterr().out


def test_own_encoder(example, tmp_path, capsys):
    assert example("own_encoder").main(str(tmp_path / "run"), epochs=4) > 0.6  # tags alone reach 0.59
    assert (tmp_path / "run" / "report.html").exists()
    assert "audio alone" in capsys.readouterr().out


def test_rates(example, capsys):
    found = example("rates").main(steps=3)
    launches = {name: count for name, (count, _) in found.items()}
    assert launches["MultiRateAdamW"] == 1 < launches["torch AdamW, fused"] < launches["torch AdamW"]
    losses = {line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()}
    assert len(losses) == 1  # all three train alike


@pytest.fixture
def accuracy(example, tmp_path, monkeypatch):
    """Of an example whose packages are there."""

    def run(name, *packages, **arguments):
        for package in packages:
            pytest.importorskip(package, reason="pip install 'pgm-fast[integrations]'")
        if "accelerate" in packages:
            # it keeps its settings for the life of a process
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.chdir(tmp_path)
        return example(name).main(**arguments)

    return run


# one modality of two tells 0.5
@pytest.mark.works("transformers", "attach", "optimizers")
def test_trainer(accuracy):
    assert accuracy("hf_trainer", "transformers", "accelerate", steps=40) > 0.6


@pytest.mark.works("Lightning", "attach", "optimizers")
def test_lightning(accuracy):
    assert accuracy("lightning_module", "lightning", epochs=2) > 0.6


@pytest.mark.works("Accelerate", "attach", "optimizers")
def test_accelerate(accuracy):
    assert accuracy("accelerate_loop", "accelerate", epochs=2) > 0.6


def test_losses_alone(accuracy):
    assert accuracy("losses_alone", steps=60) > 0.6  # chance is 0.005


@pytest.mark.works("timm", "optimizers")
def test_timm(example):
    timm = pytest.importorskip("timm", reason="pip install 'pgm-fast[timm]'")
    module = example("timm_layer_decay")
    module.main(steps=2)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=2)
    names = {id(p): name for name, p in model.named_parameters()}
    settings = [
        {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
        for groups in (module.by_timm(model), module.by_patterns(model))
    ]
    assert set(settings[0]) == set(settings[1])
    for name, (lr, decay) in settings[0].items():
        if not name.startswith("norm."):
            assert settings[1][name] == (pytest.approx(lr, rel=FP64, abs=0), decay), name


@pytest.mark.works("FSDP2", "attach", "optimizers")
def test_fsdp2_gives_the_losses_of_one_process(example, repository, monkeypatch, capsys):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = str(repository / "examples" / "fsdp2.py")
    done = subprocess.run([sys.executable, *command, path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # the same in a group of this process alone
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, value)
    example("fsdp2").main()
    two, one = (
        [float(line.rpartition(" ")[2]) for line in told.splitlines() if line.startswith("step")]
        for told in (done.stdout, capsys.readouterr().out)
    )
    assert len(one) == 4
    assert two == pytest.approx(one, rel=0, abs=PRINTED_4)


def test_every_example_says_how_it_is_run_and_those_for_other_peoples_loops_are_short(repository):
    for path in (repository / "examples").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert f" examples/{path.name}" in source.split('"""')[1]
        assert path.stem in ("drop_in", "own_encoder", "rates") or len(source.splitlines()) < 60


def test_config(repository, tmp_path):
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    widths = {"text": 6, "audio": 5, "vision": 4}
    modalities = {name: (rng.normal(size=(60, d)) + label[:, None]).astype(np.float32) for name, d in widths.items()}
    modalities["audio"][3, 2] = -np.inf
    split = np.array(["train", "train", "train", "valid", "test"] * 12)
    np.savez(tmp_path / "features.npz", **modalities, label=label, split=split)
    config = repository / "examples" / "config.yaml"
    out = tmp_path / "run"
    arguments = [
        "train",
        "--config",
        config,
        "--data",
        tmp_path / "features.npz",
        "--out",
        out,
        "--epochs",
        "2",
        "train.plots=false",
    ]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert set(json.loads((out / "report.json").read_text())["test"]["unimodal"]) == set(widths)
