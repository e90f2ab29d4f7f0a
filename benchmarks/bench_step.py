"""A whole training step: forward, losses, backward, clipping, optimizer, schedule.

The rows are the eager baseline (plain PyTorch ops, torch's fused AdamW) that faster ops are held against.

    python benchmarks/bench_step.py [--device cpu] [--threads 2]
"""

from __future__ import annotations

import argparse

import harness
import torch

import pgm_fast
from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import METHODS, ModelConfig, build
from pgm_fast.train.distributed import Ranks
from pgm_fast.train.guard import UpdateGuard
from pgm_fast.train.optimizers import Schedule, build_optimizer

MODALITIES = ("text", "audio", "vision")
SIZES = ((64, 128), (1024, 512))  # rows of a batch, width d of inputs and representations
VARIANTS = {
    "pgm single": ("pgm", {"gate": "single"}),
    "pgm dual": ("pgm", {"gate": "dual"}),
    "joint": ("joint", {}),
}
RATES = {"*": {"encoder": 0.5, "partitioner": 2.0, "uni": 1.5, "paired": 0.75, "decoder": 1.25, "head": 1.0}}


def training_step(
    method: str, options: dict, rows: int, d: int, device: torch.device, torch_optimizer: dict | None = None
):
    """``(step, clear)``: runs one step on a fixed batch; drops the gradients that a step leaves.

    With ``torch_optimizer``, options of ``torch.optim.AdamW``: as a loop in plain PyTorch would clip and step; else as
    the trainer does.
    """
    spec = DataSpec({m: ModalitySpec(d) for m in MODALITIES}, "classification", 10)
    config = METHODS[method].config_class(**options)
    if method == "pgm":
        config.rates = RATES
    torch.manual_seed(0)
    model = build(method, spec, ModelConfig(dim=d, hidden=d), config).to(device)
    (stage,) = model.stages(1e-3)
    if torch_optimizer is None:
        optimizer = build_optimizer("adamw", stage.groups, 1e-2)
        guard = UpdateGuard(optimizer, 1.0, Ranks(device=device))
    else:
        optimizer = torch.optim.AdamW(stage.groups, weight_decay=1e-2, **torch_optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = Schedule("cosine", optimizer, 1_000_000, 100)
    batch = Batch(
        inputs={m: torch.randn(rows, d) for m in MODALITIES},
        weight=torch.full((rows,), 1.0 / rows),
        index=torch.arange(rows),
        labels=torch.randint(10, (rows,)),
    ).to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        total = model(batch).losses["total"]
        total.backward()
        if torch_optimizer is None:
            guard.update(total)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        schedule.step()

    return step, optimizer.zero_grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), []
    with pgm_fast.backend("torch"):
        for batch, d in SIZES:
            steps = {
                name: training_step(*variant, batch, d, device, {"fused": True}) for name, variant in VARIANTS.items()
            }
            runs = {name: step for name, (step, _) in steps.items()}
            for name, timing in harness.interleaved(runs, device).items():
                counts = harness.count(runs[name], device, clear=steps[name][1])
                shape = {"batch": batch, "modalities": len(MODALITIES), "d": d}
                row = harness.as_row(
                    timing,
                    counts,
                    step=name,
                    backend="torch",
                    optimizer="torch AdamW, fused",
                    dtype="float32",
                    shape=shape,
                )
                rows.append(row)
                print(
                    f"{name:12} B={batch:<5} d={d:<4} {timing.median:8.2f} ms ({timing.p20:.2f} to {timing.p80:.2f})  "
                    f"{counts.ops} ops  {counts.host_reads} host reads  {counts.peak_bytes / 2**20:.1f} MiB"
                )
    print(harness.write("step", device, rows))


if __name__ == "__main__":
    main()
