"""A learning rate for every part of PgM, all of them updated in one kernel launch: trains it with six, counts the
launches of a step and times it beside torch's optimizers with the same groups.

    python examples/rates.py

Reads nothing, writes nothing, takes seconds on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from pgm_fast.data.batch import Batch
from pgm_fast.data.feature_set import DataSpec, ModalitySpec
from pgm_fast.methods import ModelConfig, PgMConfig, build
from pgm_fast.optim import MultiRateAdamW, multi_rate_groups

MODALITIES = ("text", "audio", "vision")
RATES = {"*": {"encoder": 0.5, "partitioner": 2.0, "uni": 1.5, "paired": 0.75, "decoder": 1.25, "head": 1.0}}
OPTIMIZERS: dict[str, Callable[[list[dict]], torch.optim.Optimizer]] = {
    "MultiRateAdamW": MultiRateAdamW,
    "torch AdamW, fused": lambda groups: torch.optim.AdamW(groups, fused=True),
    "torch AdamW": torch.optim.AdamW,
}


def launches(optimizer: torch.optim.Optimizer) -> int:
    """Kernels that one step runs: torch's innermost calls, or what the multi-rate optimizers say of themselves."""
    if hasattr(optimizer, "launches_per_step"):
        return optimizer.launches_per_step
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        optimizer.step()
    return sum(event.name.startswith("aten::") and not event.cpu_children for event in recorded.events())


def main(steps: int) -> dict[str, tuple[int, float]]:
    """Launches and median milliseconds of a step, by optimizer; trains with each of them."""
    spec = DataSpec({m: ModalitySpec(128) for m in MODALITIES}, "classification", 10)
    batch = Batch(
        inputs={m: torch.randn(64, 128) for m in MODALITIES},
        weight=torch.full((64,), 1 / 64),
        index=torch.arange(64),
        labels=torch.arange(64) % 10,
    )
    found = {}
    for name, make in OPTIMIZERS.items():
        torch.manual_seed(0)
        model = build("pgm", spec, ModelConfig(dim=128, hidden=128), PgMConfig())
        optimizer = make(multi_rate_groups(model, 1e-3, RATES))
        times = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(batch).losses["total"]
            loss.backward()
            start = time.perf_counter()
            optimizer.step()
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = launches(optimizer), statistics.median(times)
        print(
            f"{name:18}  {len(optimizer.param_groups)} groups  {found[name][0]:4} launches  {found[name][1]:6.2f} ms  "
            f"loss {loss.item():.3f}"
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    main(parser.parse_args().steps)
