"""Two processes train what one trains, score every row once, write once, and stop together."""

from __future__ import annotations

import json

import pytest
import torch
from forked_ranks import run_script, write_tiny
from same_run import assert_same_run
from tolerances import TWO_RANKS

from pgm_fast.errors import ConfigError, TrainingStopped
from pgm_fast.train.distributed import Ranks, _meeting, connect, current_ranks

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from torch import nn
import forked_ranks
from forked_ranks import SETTINGS
from pgm_fast.train import fit, resume
from pgm_fast.train.step.guard import UpdateGuard
root = Path(sys.argv[1])
SETTINGS = {**SETTINGS, "data.source": str(root / "tiny.npz")}
launch = lambda name, world, action: forked_ranks.launch(root, name, world, action)

def train(out, **more):
    return lambda rank: fit({**SETTINGS, **more}, out=str(root / out))

def signalled(at, **more):
    def action(rank):
        original, count = UpdateGuard.update, [0]
        def update(self, *args, **kwargs):
            count[0] += 1
            if rank == 1 and count[0] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, *args, **kwargs)
        UpdateGuard.update = update
        fit({**SETTINGS, **more}, out=str(root / "cut"))
    return action

class Breaks(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.linear, self.rank, self.calls = nn.Linear(5, 8), rank, 0
    def forward(self, x):
        self.calls += 1
        if self.rank == 1 and self.calls == 4:
            raise ValueError("broken on rank 1")
        return self.linear(x)

def not_finite(rank):
    class Inf(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(5, 8), 0
        def forward(self, x):
            self.calls += 1
            return self.linear(x) * (float("nan") if rank == 1 and self.calls == 4 else 1.0)
    fit(SETTINGS, encoders={"a": Inf()}, out=str(root / "nan"))

def other_data(rank):
    fit({**SETTINGS, **({"data.source": str(root / "none.npz")} if rank == 1 else {})}, out=str(root / "other"))

if "large" in sys.argv:
    more = json.loads(sys.argv[3])
    print(json.dumps({
        "whole": launch("whole", 2, train("whole", **more)),
        "cut": launch("cut", 2, signalled(int(sys.argv[4]), **more)),
        "resumed": launch("resumed", 2, lambda rank: resume(root / "cut")),
    }))
    sys.exit()
fit(SETTINGS, out=str(root / "one"))
fit({**SETTINGS, "method": "joint"}, out=str(root / "at once"))
results = {
    "two": launch("two", 2, train("two")),
    "again": launch("again", 2, train("two")),
    "whole": launch("whole", 2, train("whole", **{"model.dropout": 0.3})),
    "cut": launch("cut", 2, signalled(8, **{"model.dropout": 0.3})),
    "resumed": launch("resumed", 2, lambda rank: resume(root / "cut")),
    "breaks": launch("breaks", 2, lambda rank: fit(SETTINGS, encoders={"a": Breaks(rank)}, out=str(root / "breaks"))),
    "nan": launch("nan", 2, not_finite),
    "other": launch("other", 2, other_data),
    "added": launch("added", 2, train("added", **{"method": "joint", "train.batch_size": 8, "train.accumulate": 2})),
}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    write_tiny(root / "tiny.npz")
    return root, *run_script(SCRIPT, root)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def state(out, name="last.pt"):
    return torch.load(out / "checkpoints" / name, weights_only=True)


def test_two_processes_train_what_one_trains(campaign):
    root, results, stderr = campaign
    assert results["two"]["statuses"] == [0, 0], stderr
    one, two = records(root / "one"), records(root / "two")
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=TWO_RANKS, abs=0)
        assert a["valid"]["losses"] == pytest.approx(b["valid"]["losses"], rel=TWO_RANKS, abs=0)
    for key, value in state(root / "one")["model"].items():
        torch.testing.assert_close(state(root / "two")["model"][key], value, rtol=TWO_RANKS, atol=TWO_RANKS)


def test_gradients_of_several_batches_add_up_over_ranks(campaign):
    root, results, stderr = campaign
    assert results["added"]["statuses"] == [0, 0], stderr
    for a, b in zip(records(root / "at once"), records(root / "added"), strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=TWO_RANKS, abs=0)
    for key, value in state(root / "at once")["model"].items():
        torch.testing.assert_close(state(root / "added")["model"][key], value, rtol=TWO_RANKS, atol=TWO_RANKS)


def test_every_row_is_scored_once_and_the_report_written_once(campaign):
    root, _, _ = campaign
    reports = [json.loads((root / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[1]["processes"] == 2
    for split in ("valid", "test"):
        one, two = (report[split] for report in reports)
        assert one["fused"]["accuracy"] == two["fused"]["accuracy"]  # a multiple of 1/29 or 1/31
        assert one["fused"]["nll"] == pytest.approx(two["fused"]["nll"], rel=TWO_RANKS, abs=0)
        assert one["losses"] == pytest.approx(two["losses"], rel=TWO_RANKS, abs=0)
    assert sorted(p.name for p in (root / "two" / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    assert [line["epoch"] for line in records(root / "two")] == [1, 2, 3]


def test_what_only_rank_0_sees_every_rank_says(campaign):
    _, results, _ = campaign
    assert results["again"]["statuses"] == [2, 2]
    assert all("holds a finished run already" in text for text in results["again"]["texts"])


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_resume_is_exact(campaign):
    root, results, stderr = campaign
    assert results["cut"]["statuses"] == [10, 10], stderr  # SystemExit(0) on both
    assert results["whole"]["statuses"] == results["resumed"]["statuses"] == [0, 0], stderr
    for name in ("last.pt", "best.pt"):
        whole, cut = state(root / "whole", name), state(root / "cut", name)
        assert all(torch.equal(value, cut["model"][key]) for key, value in whole["model"].items())
    assert [line["train"] for line in records(root / "whole")] == [line["train"] for line in records(root / "cut")]
    assert [line["valid"] for line in records(root / "whole")] == [line["valid"] for line in records(root / "cut")]


@pytest.mark.slow
@pytest.mark.parametrize("update", [3, 4], ids=["after a validation", "between two"])
def test_settings_of_large_runs_go_on_as_they_began(tmp_path, update):
    write_tiny(tmp_path / "tiny.npz")
    large = {
        "model.dropout": 0.3,
        "model.recompute": True,
        "train.batch_size": 8,
        "train.accumulate": 2,
        "train.ema": 0.9,
        "train.precision": "fp16",
        "train.validate_every": 2,
    }
    results, stderr = run_script(SCRIPT, tmp_path, "large", json.dumps(large), str(update))
    assert results["cut"]["statuses"] == [10, 10], stderr
    assert results["whole"]["statuses"] == results["resumed"]["statuses"] == [0, 0], stderr
    assert state(tmp_path / "cut")["scale"]["factor"] < 2.0**16  # it was halved, and not from the start again
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_failure_on_one_rank_ends_all(campaign):
    _, results, stderr = campaign
    statuses, texts = results["breaks"]["statuses"], results["breaks"]["texts"]
    assert all(statuses) and "broken on rank 1" in texts[1], stderr
    assert texts[0].startswith("TrainingStopped: another process of this run ended")
    assert results["other"]["statuses"] == [2, 2]
    assert "rank 1" in results["other"]["texts"][0] and "none.npz" in results["other"]["texts"][1]


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(campaign):
    root, results, stderr = campaign
    assert results["nan"]["statuses"] == [0, 0], stderr
    assert [line["skipped_steps"] for line in records(root / "nan")] == [1, 0, 0]
    assert all(torch.isfinite(value).all() for value in state(root / "nan")["model"].values())


def test_a_run_of_two_is_not_resumed_by_one(campaign, tmp_path):
    from pgm_fast.errors import CheckpointError
    from pgm_fast.train import resume

    root, _, _ = campaign
    (root / "two" / "report.json").rename(root / "two" / "report.kept")
    with pytest.raises(CheckpointError, match="trained by 2 processes, now there are 1"):
        resume(root / "two")


def test_alone_everything_is_oneself():
    with connect("cpu") as ranks:
        assert ranks == Ranks() == current_ranks("cpu") and ranks.is_main
        assert ranks.gather(3) == ranks.collect(3) == [3] and ranks.on_main(lambda: 4) == 4
        module = torch.nn.Linear(2, 2)
        assert ranks.wrap(module) is module
        assert torch.equal(ranks.sum_(torch.ones(2)), torch.ones(2))
        with pytest.raises(TrainingStopped, match="mine"), ranks.all_or_none():
            raise TrainingStopped("mine")


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"train\.device is cuda:3, but torch sees no CUDA device"):
        current_ranks("cuda:3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="cuda:3 is wanted, but there are 2"):
        current_ranks("cuda:3")


def test_processes_that_are_started_anew_do_not_find_the_addresses_of_those_that_died(monkeypatch):
    torchruns = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchruns.set("0", "the address of a process that died")
    place = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": torchruns.port}
    for key, value in {**place, "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 1}.items():
        monkeypatch.setenv(key, str(value))
    meeting = _meeting()
    assert (meeting["rank"], meeting["world_size"]) == (0, 1)
    assert torchruns.check(["0"]) and not meeting["store"].check(["0"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert _meeting() == {}  # torch's own way
