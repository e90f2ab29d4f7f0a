"""Two torchruns as of two nodes, two processes each, that meet on a port of this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked_ranks import SETTINGS, write_tiny
from same_run import assert_equal, timeless
from tolerances import TWO_RANKS

from pgm_fast.train import fit
from pgm_fast.train.run import checkpoints
from pgm_fast.train.run.shards import with_shards

# The command, in which a process that is told to kills itself in its second epoch.
NODE = """
import os, signal
from pgm_fast.cli import main
from pgm_fast.train.step.guard import UpdateGuard
update, count = UpdateGuard.update, [0]
def counted(self, *args, **kwargs):
    count[0] += 1
    fatal = os.environ.get("FATAL") == os.environ["RANK"] and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if fatal and count[0] == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, *args, **kwargs)
UpdateGuard.update = counted
main()
"""


def train_on_two_nodes(tmp_path: Path, out: str, **environment: str) -> list[str]:
    """What the nodes said, after both have ended well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "node.py"
    script.write_text(NODE)
    settings = {**SETTINGS, "data.source": tmp_path / "tiny.npz", "train.strategy": "fsdp"}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"),
        *("--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", out, "--rdzv-endpoint", f"127.0.0.1:{port}"),
        *("--local-addr", "127.0.0.1", str(script), "train", "--out", str(tmp_path / out)),
        *(f"{key}={json.dumps(value) if value == [] else value}" for key, value in settings.items()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    logs = [open(tmp_path / f"{out}-{node}.txt", "w+") for node in range(2)]
    nodes = [subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) for log in logs]
    try:
        statuses = [node.wait(timeout=400) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    said = []
    for log in logs:
        with log:
            log.seek(0)
            said.append(log.read())
    assert statuses == [0, 0], "\n".join(said)
    return said


@pytest.mark.slow
def test_two_nodes_train_what_one_process_trains_also_when_a_process_is_killed(tmp_path):
    write_tiny(tmp_path / "tiny.npz")
    fit({**SETTINGS, "data.source": str(tmp_path / "tiny.npz")}, out=str(tmp_path / "one"))
    train_on_two_nodes(tmp_path, "four")
    said = train_on_two_nodes(tmp_path, "killed", FATAL="3")
    assert any("another process of this run ended" in text for text in said)
    assert json.loads((tmp_path / "four" / "report.json").read_text())["processes"] == 4
    states = {}
    for name in ("one", "four", "killed"):
        path = tmp_path / name / "checkpoints" / "last.pt"
        states[name] = with_shards(path, checkpoints.load_run(path))
    for key, value in states["one"]["model"].items():
        torch.testing.assert_close(states["four"]["model"][key], value, rtol=TWO_RANKS, atol=TWO_RANKS)
    assert_equal(timeless(states["four"]), timeless(states["killed"]))
