"""train.strategy=fsdp: from shards what one process trains; any number of processes goes on; what is refused."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from forked_ranks import SETTINGS, run_script, write_tiny
from same_run import assert_equal, timeless
from tolerances import AUTOCAST_BF16, TWO_RANKS

from pgm_fast.errors import CheckpointError, ConfigError
from pgm_fast.methods import METHODS
from pgm_fast.train import evaluate, fit, predict, resume
from pgm_fast.train.configure import from_yaml, make_config
from pgm_fast.train.run import checkpoints
from pgm_fast.train.run.folder import RunFolder
from pgm_fast.train.run.interrupted import state_of
from pgm_fast.train.run.shards import with_shards
from pgm_fast.train.sharding import _units

SYSTEMS = ("pgm", "dimml", "dmil")

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import torch.distributed.fsdp, torch.distributed.tensor  # once, rather than in every rank
from torch import nn
import forked_ranks
from torch.distributed.checkpoint import FileSystemWriter
from pgm_fast.train import fit, resume
from pgm_fast.train.step.guard import UpdateGuard
root = Path(sys.argv[1])
SETTINGS = {
    **forked_ranks.SETTINGS, "data.source": str(root / "tiny.npz"), "train.strategy": "fsdp", "train.ema": 0.9,
    "train.validate_every": 2, "train.accumulate": 2, "train.epochs": 2,
}
SYSTEMS = {"pgm": {}, "dimml": {"dimml.warmup": 1, "dimml.fusion_epochs": 2}, "dmil": {"dmil.stage_epochs": [1, 1, 1]}}
DROPOUT = {"model.dropout": 0.3, "train.checkpoint_every_steps": 1}

def launch(name, world, action):
    return forked_ranks.launch(root, name, world, action)

def train(out, **more):
    return lambda rank: fit({**SETTINGS, **more}, out=str(root / out))

def means(rank=None):
    # samples are drawn on every rank for itself: of Gaussians the means
    from pgm_fast import ops
    from pgm_fast.nn import variational
    whole = ops.gaussian_sample_kl
    for module in (ops, variational):
        setattr(module, "gaussian_sample_kl", lambda *args, **more: whole(*args, **{**more, "sample": False}))

def stopped(out, at, **more):
    def action(rank):
        update, count = UpdateGuard.update, [0]
        def counted(self, *args, **kwargs):
            count[0] += 1
            if rank == 1 and count[0] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            update(self, *args, **kwargs)
        UpdateGuard.update = counted
        fit({**SETTINGS, **more}, out=str(root / out))
    return action

def killed_while_writing(rank):
    # rank 1 goes with its shards of the fourth checkpoint half written
    write, count = FileSystemWriter.write_data, [0]
    def counted(self, *args, **kwargs):
        count[0] += 1
        written = write(self, *args, **kwargs)
        if rank == 1 and count[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return written
    FileSystemWriter.write_data = counted
    fit({**SETTINGS, **DROPOUT}, out=str(root / "killed"))

class Breaks(nn.Module):
    def __init__(self, rank, kind):
        super().__init__()
        self.linear, self.norm, self.rank, self.kind, self.calls = nn.Linear(5, 8), nn.BatchNorm1d(8), rank, kind, 0
    def forward(self, x):
        self.calls += self.training
        if self.kind == "out of memory" and self.rank == 1 and self.calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        bad = self.kind == "nan" and self.rank == 1 and self.calls == 4
        return self.norm(self.linear(x)) * (float("nan") if bad else 1.0)

def with_encoder(kind, **more):
    return lambda rank: fit({**SETTINGS, **more}, encoders={"a": Breaks(rank, kind)}, out=str(root / kind))

means()
results = {}
def one_and_two(name):
    fit({**SETTINGS, "method": name, **SYSTEMS[name]}, out=str(root / f"{name} one"))
    results[name] = launch(name, 2, train(f"{name} two", method=name, **SYSTEMS[name]))

if sys.argv[2] == "few":
    one_and_two("pgm")
    results["begun"] = launch("begun", 2, stopped("moved", 2))
    results["on three"] = launch("on three", 3, lambda rank: resume(root / "moved"))
else:
    one_and_two("dimml")
    one_and_two("dmil")
    results["whole"] = launch("whole", 2, train("whole", **DROPOUT))
    results["cut"] = launch("cut", 2, stopped("cut", 4, **DROPOUT))
    results["resumed"] = launch("resumed", 2, lambda rank: resume(root / "cut"))
    results["killed"] = launch("killed", 2, killed_while_writing)
    (root / "killed.txt").write_text("\\n".join(str(path) for path in sorted((root / "killed").rglob("*"))))
    results["taken up"] = launch("taken up", 2, lambda rank: resume(root / "killed"))
    for kind in ("nan", "out of memory", "fp32"):
        results[kind] = launch(kind, 2, with_encoder(kind))
    results["bf16"] = launch("bf16", 2, with_encoder("bf16", **{"train.precision": "bf16"}))
print(json.dumps(results))
"""


def ran(root, which):
    write_tiny(root / "tiny.npz")
    return root, *run_script(SCRIPT, root, which)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("few"), "few")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("more"), "more")


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def state(out, name="last.pt"):
    path = out / "checkpoints" / name
    return with_shards(path, checkpoints.load_run(path))


def assert_close_runs(one, two):
    for a, b in zip(records(one), records(two), strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=TWO_RANKS, abs=0)
        assert a["valid"]["losses"] == pytest.approx(b["valid"]["losses"], rel=TWO_RANKS, abs=0)
        assert [x["loss"] for x in a["validations"]] == pytest.approx(
            [x["loss"] for x in b["validations"]], rel=TWO_RANKS, abs=0
        )
    for name in ("last.pt", "best.pt"):
        alone, together = state(one, name), state(two, name)
        assert alone["best"]["epoch"] == together["best"]["epoch"]
        assert alone["model"].keys() == together["model"].keys()
        for key, value in alone["model"].items():
            torch.testing.assert_close(together["model"][key], value, rtol=TWO_RANKS, atol=TWO_RANKS)


def assert_two_trained_what_one_trains(campaign, name):
    root, results, stderr = campaign
    assert results[name]["statuses"] == [0, 0], stderr
    assert_close_runs(root / f"{name} one", root / f"{name} two")


def test_two_processes_train_from_shards_what_one_trains(campaign):
    """With clipping, accumulated gradients, averaged weights, and validations inside of epochs."""
    assert_two_trained_what_one_trains(campaign, "pgm")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dimml", "dmil"])
def test_so_do_they_in_stages(more, name):
    assert_two_trained_what_one_trains(more, name)


def test_what_is_handed_over_is_a_whole_model_that_one_process_reads(campaign):
    root, _, _ = campaign
    report = json.loads((root / "pgm two" / "report.json").read_text())
    assert report["processes"] == 2
    scores = evaluate(root / "pgm two")
    assert scores["fused"]["accuracy"] == report["test"]["fused"]["accuracy"]
    assert scores["fused"]["nll"] == pytest.approx(report["test"]["fused"]["nll"], rel=TWO_RANKS, abs=0)
    assert len(predict(root / "pgm two").index) == 151


def assert_same(one, other):
    for name in ("last.pt", "best.pt"):
        assert_equal(*(timeless(dict(state(run, name))) for run in (one, other)), name)
    assert_equal(*(timeless(records(run)) for run in (one, other)), "metrics")
    assert_equal(*(timeless(json.loads((run / "report.json").read_text())) for run in (one, other)), "report")


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_writes_ends_the_others_and_loses_nothing(more):
    root, results, stderr = more
    assert results["killed"]["statuses"] == [2, -9], stderr
    assert (
        results["killed"]["texts"][0] == "TrainingStopped: another process of this run ended; its own message says why"
    )
    left = (root / "killed.txt").read_text()
    assert "last.pt" in left and "previous.pt" in left and "report.json" not in left
    assert results["taken up"]["statuses"] == [0, 0], stderr
    assert_same(root / "whole", root / "killed")


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_bit(more):
    root, results, stderr = more
    assert results["cut"]["statuses"] == [10, 10], stderr
    assert results["whole"]["statuses"] == results["resumed"]["statuses"] == [0, 0], stderr
    assert_same(root / "whole", root / "cut")


def test_shards_lie_beside_last_pt_and_are_read_without_other_processes(campaign):
    """Damaged ones are found out; a run that takes the place of this one removes all of them."""
    root, _, _ = campaign
    run = root / "a copy"
    shutil.copytree(root / "pgm two", run)
    folder, last = RunFolder(run), torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert not any("encoders" in name for name in last["model"])
    assert sum(path.is_dir() for path in folder.shards) <= 3
    whole = state(run)
    assert all(type(x) is torch.Tensor for x in whole["model"].values()) and len(whole["optimizer"]["state"]) > 9
    assert [evaluate(run, checkpoint=name)["epoch"] for name in ("last", "previous")] == [2, 1]
    file = next((run / "checkpoints" / last["shards"]["folder"]).glob("*.distcp"))
    file.write_bytes(file.read_bytes().replace(b"data", b"date", 1))
    with pytest.raises(
        CheckpointError, match=r"distcp is damaged: its checksum does not match.*best.pt beside it is whole"
    ) as error:
        evaluate(run, checkpoint="last")
    assert "\n" not in str(error.value)
    (run / "report.json").unlink()
    assert state_of(folder, from_yaml(folder.read_config()), 2)["shards"]["folder"] != last["shards"]["folder"]
    folder.claim(overwrite=True)
    assert not run.exists() or not list(run.rglob("*"))


def test_a_run_goes_on_with_another_number_of_processes(campaign):
    root, results, stderr = campaign
    assert results["begun"]["statuses"] == [10, 10] and results["on three"]["statuses"] == [0, 0, 0], stderr
    assert_close_runs(root / "pgm one", root / "moved")
    assert state(root / "moved")["world"] == 3 and len(state(root / "moved")["generators"]) == 3


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(more):
    root, results, stderr = more
    assert results["nan"]["statuses"] == [0, 0], stderr
    assert [line["skipped_steps"] for line in records(root / "nan")] == [1, 0]
    for name in ("last.pt", "best.pt"):
        assert all(torch.isfinite(value).all() for value in state(root / "nan", name)["model"].values())


@pytest.mark.slow
def test_memory_that_runs_out_is_said_with_the_setting_to_change(more):
    _, results, _ = more
    assert results["out of memory"]["statuses"] == [2, 2]
    other, text = results["out of memory"]["texts"]
    assert "\n" not in text and "memory ran out" in text and "smaller train.batch_size (now 16)" in text
    assert "model.recompute=true" in text
    assert other == "TrainingStopped: another process of this run ended; its own message says why"


@pytest.mark.slow
def test_parameters_are_gathered_in_the_precision_of_the_run(more):
    """And batch normalisation, with statistics that are those of rank 0 on all ranks, in float32."""
    root, results, stderr = more
    assert results["bf16"]["statuses"] == results["fp32"]["statuses"] == [0, 0], stderr
    lower, whole = (records(root / name)[0]["train"]["total"] for name in ("bf16", "fp32"))
    assert lower != whole and lower == pytest.approx(whole, rel=AUTOCAST_BF16, abs=0)


def test_units_are_of_one_modality_and_part():
    from pgm_fast.data.feature_set import DataSpec, ModalitySpec
    from pgm_fast.methods import ModelConfig, build
    from pgm_fast.nn.parts import parameter_parts

    spec = DataSpec({"a": ModalitySpec(3, sequence=True), "b": ModalitySpec(4)}, "classification", 2)
    model = ModelConfig(dim=8, hidden=8, layers=2, encoder="transformer")
    for name in SYSTEMS:
        method = build(name, spec, model, METHODS[name].config_class())
        units, parts = list(_units(method)), parameter_parts(method)
        names = {module: key for key, module in method.named_modules()}
        assert [names[u] for u in units[:2]] == ["encoders.a.layers.1", "encoders.a.layers.0"]
        assert all(len({part for key, part in parts.items() if key.startswith(names[u] + ".")}) == 1 for u in units)
        cut = {id(p) for unit in units for p in unit.parameters()}
        assert cut == {id(p) for p in method.parameters()}  # nothing is left to the whole


def test_one_process_has_nothing_to_cut_and_says_so(tmp_path, caplog):
    write_tiny(tmp_path / "tiny.npz")
    settings = {**SETTINGS, "data.source": str(tmp_path / "tiny.npz"), "train.epochs": 1}
    told = {}
    for strategy in ("ddp", "fsdp"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="pgm_fast"):
            fit({**settings, "train.strategy": strategy}, out=str(tmp_path / strategy))
        told[strategy] = [record.message for record in caplog.records if "train.strategy" in record.message]
    assert told["ddp"] == [] and len(told["fsdp"]) == 1
    assert "one process" in told["fsdp"][0] and "torchrun" in told["fsdp"][0] and "\n" not in told["fsdp"][0]
    assert timeless(records(tmp_path / "ddp")) == timeless(records(tmp_path / "fsdp"))


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"train.compile": True}, "set train.compile=false"),
        ({"method": "ogm"}, "use one of pgm, dimml, dmil"),
        ({"method": "mmpareto"}, "set train.strategy=ddp"),
        ({"method": "mla"}, "method mla works on whole gradients"),
        ({"train.strategy": "zero"}, "auto, ddp, fsdp"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(settings, says):
    with pytest.raises(ConfigError, match=says) as error:
        make_config(None, {"train.strategy": "fsdp", **settings})
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_strategy_is_refused_in_a_line(campaign):
    root, _, _ = campaign
    run = root / "pgm two"
    (run / "report.json").rename(run / "report.kept")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("strategy: fsdp", "strategy: ddp"))
    try:
        with pytest.raises(CheckpointError, match="train.strategy is 'ddp' and was 'fsdp'") as error:
            resume(run)
        assert "\n" not in str(error.value)
    finally:
        (run / "config.yaml").write_text(text)
        (run / "report.kept").rename(run / "report.json")
