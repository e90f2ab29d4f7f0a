"""Kills runs with SIGKILL, takes them up again, and holds what comes out against runs that were left alone.

``python tests/train/kill_runs.py --kills 200`` spreads them over the methods and over four moments: any time; an
operation on a file while checkpoints are written; one while the report is; one while a resumed run begins. After every
kill each checkpoint must be readable, at the end of each run all must be bitwise equal, clocks aside, and nothing left
over. Prints a summary as JSON; ends with status 1 at the first run that is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from same_run import assert_same_run

from pgm_fast.train import fit, jobs, resume
from pgm_fast.train.run import checkpoints

SETTINGS = {
    "model.dim": 8,
    "model.hidden": 8,
    "model.dropout": 0.3,
    "data.modality_dropout": 0.3,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.lr": 0.01,
    "train.device": "cpu",
    "train.threads": 1,
    "train.checkpoint_every_steps": 1,
    "train.plots": False,
    "train.logger": [],
}
METHODS = {
    "pgm": {},
    "dimml": {"dimml.warmup": 1, "dimml.fusion_epochs": 1},
    "dmil": {"dmil.stage_epochs": [1, 1, 1]},
}
# Operations on files into which a kill falls: a checkpoint has about ten, each with a moment before and one after.
MOMENTS = {"any": 0, "checkpoint": 120, "report": 16, "resume": 24}
_OPERATIONS = ("open", "write", "fsync", "replace", "link", "unlink")


def write_data(path: Path) -> str:
    rng = np.random.default_rng(0)
    label = np.arange(150) % 3
    values = {m: (rng.normal(size=(150, d)) + label[:, None]).astype(np.float32) for m, d in (("a", 5), ("b", 7))}
    np.savez(path, **values, label=label, split=np.repeat(["train", "valid", "test"], [90, 30, 30]))
    return str(path)


def begin_or_go_on(out: Path, method: str, source: str) -> None:
    if (out / "config.yaml").exists():
        resume(out)
    else:
        fit(data=source, out=str(out), method=method, **SETTINGS, **METHODS[method])


def die_at(moment: int) -> None:
    """End this process by SIGKILL at one of the moments, counted from now, before and after operations on files."""
    left = [moment]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(operation: Callable) -> Callable:
        def call(*args, **kwargs):
            count()
            result = operation(*args, **kwargs)
            count()
            return result

        return call

    for name in _OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def start(out: Path, method: str, source: str, kind: str | None, moment: int) -> int:
    """The process id of a child that trains, and dies where the kind of moment is one that it can see itself."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if kind in ("checkpoint", "resume"):
            die_at(moment)
        elif kind == "report":
            finish = jobs.finish
            jobs.finish = lambda *args: (die_at(moment), finish(*args))[1]
        begin_or_go_on(out, method, source)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def was_killed(pid: int) -> bool:
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a run failed that should have gone on")
    return os.WIFSIGNALED(status)


def check(out: Path, whole: Path) -> None:
    assert_same_run(out, whole)
    # The file of a lock may stay, which holds nothing any more.
    found, wanted = (sorted(str(p.relative_to(run)) for p in run.rglob("[!.]*")) for run in (out, whole))
    found += [str(p) for p in out.rglob(".*.tmp")]
    assert found == wanted, f"{out} holds {found}, a run that was left alone {wanted}"


def kill(root: Path, kills: int, seed: int) -> dict:
    draw, source = random.Random(seed), write_data(root / "data.npz")
    length = {}
    for method in METHODS:
        # Twice: whatever is imported at first use is there before the first fork, and is not in the time.
        for name in ("warm", "whole"):
            began = time.perf_counter()
            begin_or_go_on(root / f"{name}-{method}", method, source)
            length[method] = time.perf_counter() - began
    done, unborn, runs = Counter(), 0, 0
    methods, kinds = cycle(METHODS), cycle(MOMENTS)
    while done.total() < kills:
        method = next(methods)
        out = root / f"run{runs}"
        runs += 1
        while not (out / "report.json").exists():
            kind = next(kinds) if done.total() < kills else None
            pid = start(out, method, source, kind, draw.randint(1, max(1, MOMENTS.get(kind, 1))))
            if kind == "any":
                time.sleep(draw.uniform(0.02, 0.7) * length[method])
                os.kill(pid, signal.SIGKILL)
            if was_killed(pid):
                done[f"{method} {kind}"] += 1
                unborn += not (out / "checkpoints").exists()
            for file in (out / "checkpoints").glob("*.pt"):
                checkpoints.load_run(file)
        begin_or_go_on(out, method, source)  # one that was killed after its report is over: this changes nothing
        check(out, root / f"whole-{method}")
        shutil.rmtree(out)
    return {"kills": done.total(), "unborn": unborn, "runs": runs, **dict(sorted(done.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process that forks must have started no threads of its own
    with tempfile.TemporaryDirectory() as root:
        try:
            summary = kill(Path(root), options.kills, options.seed)
        except AssertionError as difference:
            sys.exit(f"a run that was killed differs from one that was not: {difference}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
