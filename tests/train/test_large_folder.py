"""A folder of features far larger than the memory at hand trains: it is read through a map, in pieces."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from pgm_fast.train import fit

folder, out = Path(sys.argv[1]), sys.argv[2]
rows, width = 40_000, 1250
rng = np.random.default_rng(0)
labels = rng.integers(4, size=rows)
pattern = rng.standard_normal((4, width), dtype=np.float32)
np.save(folder / "label.npy", labels)
np.save(folder / "split.npy", rng.choice([0, 1, 2], p=[0.8, 0.1, 0.1], size=rows))
for name in ("left", "right"):
    array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, width))
    for begin in range(0, rows, 1000):
        block = rng.standard_normal((1000, width), dtype=np.float32)
        array[begin : begin + 1000] = block + pattern[labels[begin : begin + 1000]]
    del array
small = {"model.dim": 8, "model.hidden": 8, "model.heads": 2, "train.batch_size": 128}
quiet = {"train.eval_batch_size": 128, "train.epochs": 1, "train.plots": False, "train.logger": []}
# a first run on a small set loads every module that training needs
fit(method="joint", data="digits", out=out + "/warm", **small, **quiet)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
report = fit(method="joint", data=str(folder), out=out + "/large", **{"data.resident": sys.argv[3]}, **small, **quiet)
print(report["test"]["fused"]["accuracy"])
"""
# the files take 400 MB; this much more memory of its own is all that the process may take while it trains on them
ROOM = 160 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA as Linux has it")
@pytest.mark.parametrize("resident", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_training_needs_a_part_of_the_files_size_at_most(resident, tmp_path):
    """And does not where the files are to be held: the limit is a real one."""
    (tmp_path / "features").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "features"), str(tmp_path / "runs"), resident, str(ROOM)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if resident == "always":
        assert done.returncode != 0 and "alloc" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    # every row shows its class, so a model that has read them is nearly always right
    assert float(done.stdout.split()[-1]) > 0.9
