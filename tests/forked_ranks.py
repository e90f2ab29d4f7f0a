"""Runs of several processes on a small data set, for the tests of how they train together.

One process warms up and forks the ranks, which spares importing torch for each of them; so it may have no CUDA and no
threads. A test writes a script that calls :func:`launch`, and runs it by :func:`run_script`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {
    "method": "pgm",
    "model.dim": 8,
    "model.hidden": 8,
    "model.dropout": 0.0,
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.eval_batch_size": 16,
    "train.lr": 0.05,
    "train.optimizer": "sgd",
    "train.device": "cpu",
    "train.threads": 1,
    "train.plots": False,
    "train.logger": [],
}


def write_tiny(path: Path) -> None:
    """Two modalities and three classes; an odd number of rows, so that the last batches need padding."""
    rng = np.random.default_rng(0)
    label = np.arange(151) % 3
    arrays = {m: (rng.normal(size=(151, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    np.savez(path, **arrays, label=label, split=np.array(["train"] * 91 + ["valid"] * 29 + ["test"] * 31))


def launch(root: Path, name: str, world: int, action: Callable[[int], Any]) -> dict[str, list]:
    """``action(rank)`` in ``world`` forked ranks: their statuses (10 and more: SystemExit) and what they raised."""
    from pgm_fast.errors import PgmFastError

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
            status, text = 0, ""
            try:
                action(rank)
            except SystemExit as stop:
                status, text = 10 + stop.code, "exit"
            except PgmFastError as error:
                status, text = 2, f"{type(error).__name__}: {error}"
            except BaseException as error:
                status, text = 1, f"{type(error).__name__}: {error}"
                if not isinstance(error, ValueError):
                    traceback.print_exc()
            (root / f"{name}-{rank}.txt").write_text(text)
            os._exit(status)
        pids.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    texts = [root / f"{name}-{rank}.txt" for rank in range(world)]
    return {"statuses": statuses, "texts": [path.read_text() if path.exists() else "" for path in texts]}


def run_script(script: str, root: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What the script prints last, read as JSON, and all that it and its ranks say on the standard error stream."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    command = [sys.executable, "-c", script, str(root), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr
