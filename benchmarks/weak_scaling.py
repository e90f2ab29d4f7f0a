"""What more processes cost: the engine's loop by DDP over gloo, the same batch and rows for each process.

    python benchmarks/weak_scaling.py [--methods pgm dimml dmil] [--processes 1 2 4] [--rounds 5]

Data and model as in ``whole_jobs.py``, one thread per process. The measure is what a sample takes of the processor, all
processes together: it is the same on a machine that has fewer cores than processes or other work, whose wall clock says
nothing of DDP. Waiting for the others is not in it. Writes ``results/cpu/weak_scaling.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import torch
import whole_jobs
from bench_jobs import configuration
from whole_jobs import MODALITIES, STAGE, D

from pgm_fast.train.assembly import Run, machine

BATCH = 64  # of each process


def work(method: str, rows: int, rounds: int, out: Path) -> None:
    """What each process does. The first writes ``out``."""
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    config = configuration(method, BATCH * world)
    with machine(config) as ranks:
        parts = Run.new(config, whole_jobs.features(rows * world), None, ranks)
        training = whole_jobs.training_of(config, parts, out.parent / "run")
        whole_jobs.epoch_of(training)
        spent = []
        for _ in range(rounds):
            begin, processor = time.perf_counter(), time.process_time()
            whole_jobs.epoch_of(training)
            spent.append((time.perf_counter() - begin, time.process_time() - processor))
        together = ranks.gather(spent)
        trained = [p for group in training.optimizer.param_groups for p in group["params"]]
        gradients = sum(p.numel() * p.element_size() for p in trained)
        training.wrapped = None  # it must not outlive the process group
    if ranks.is_main:
        rounds_of_all = list(zip(*together, strict=True))
        wall = [max(seconds for seconds, _ in each) for each in rounds_of_all]
        processor = [sum(seconds for _, seconds in each) for each in rounds_of_all]
        samples = rows * world
        row = {
            "method": method,
            "processes": world,
            "shape": {"batch of each": BATCH, "modalities": len(MODALITIES), "d": D},
            "gradient_bytes": gradients,
            "processor_us_per_sample": round(1e6 * statistics.median(processor) / samples, 2),
            "least_and_most": [round(1e6 * pick(processor) / samples, 2) for pick in (min, max)],
            "samples_per_s": round(samples / statistics.median(wall), 1),
        }
        out.write_text(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=sorted(STAGE), default=list(STAGE))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=2048, help="of each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out:
        work(options.methods[0], options.rows, options.rounds, options.out)
        return
    torch.set_num_threads(1)
    rows = []
    for method in options.methods:
        for count in options.processes:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "row.json"
                own = [__file__, "--methods", method, "--rows", str(options.rows), "--rounds", str(options.rounds)]
                launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
                subprocess.run([sys.executable, *launch, *own, "--out", str(out)], check=True)
                rows.append(json.loads(out.read_text()))
            print(harness.write("weak_scaling", torch.device("cpu"), rows, rounds=options.rounds), flush=True)


if __name__ == "__main__":
    main()
