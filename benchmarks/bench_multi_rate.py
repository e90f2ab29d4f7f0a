"""MultiRateAdamW against torch's AdamW, fused and foreach, with the same groups, in one run.

    python benchmarks/bench_multi_rate.py [--device cpu] [--threads 2] [--cases text]

On a CUDA device ours is measured by the compiled kernels and by Triton's, where both are there.

Correctness comes first: a case whose optimizers disagree after two steps gets no row. ``percent of the floor``:
28 bytes per float32 parameter must move, 16 of them read and 12 written in place, at the bandwidth of the fastest
stream, measured beside the steps over as much memory as they hold. The host's part is the step with its kernels
replaced by nothing, in a loop of nothing else. What the optimizers make of a whole training step is measured in
bench_step.py.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Callable, Iterator
from unittest import mock

import floor
import harness
import torch
from torch import nn

import pgm_fast
from pgm_fast import backends
from pgm_fast.optim import MultiRateAdamW, kernels

BYTES_PER_PARAMETER = 28  # p, m and v read and written, g read
HELD_PER_PARAMETER = 16
RATE = 1e-3
AGREEMENT = 1e-2 * RATE  # after two steps, of numbers that move by the rate: a fault in the bookkeeping is far larger

Shapes = list[list[tuple[int, ...]]]  # of each group


def many_small() -> Shapes:
    """480 tensors of 64 to 4096 elements, evenly in the logarithm, in 48 groups."""
    draw = random.Random(0)
    return [[(round(2 ** draw.uniform(6, 12)),) for _ in range(10)] for _ in range(48)]


def middle() -> Shapes:
    """63 layers of weight, bias and scale in 4 groups, 5 M parameters."""
    layers = [[(282, 282), (282,), (282,)] for _ in range(63)]
    return [[shape for layer in layers[i::4] for shape in layer] for i in range(4)]


def one_group() -> Shapes:
    """One group, 50 M parameters."""
    return [[(1024, 4096)] * 12]


def vit_b(layers: int = 12, d: int = 768) -> Shapes:
    """ViT-B/16 with a rate per layer and without decay of vectors: 152 tensors in 28 groups, 86 M parameters."""
    block = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)]
    vectors = [(d,), (d,), (3 * d,), (d,), (d,), (d,), (4 * d,), (d,)]
    embedding = [[(d, 3, 16, 16)], [(1, 1, d), (1, 197, d), (d,)]]
    return [*embedding, *([block, vectors] * layers), [(1000, d)], [(d,), (d,), (1000,)]]


def detector(d: int = 384, queries: int = 256) -> Shapes:
    """A group per parameter, 465 of them, 30 M: a ViT-S backbone with layer scale, a convolutional neck, six layers of
    deformable decoder, heads of seven query groups."""
    backbone = [(d, 3, 14, 14), (d,), (1, 1370, d)]
    backbone += [
        s
        for _ in range(12)
        for s in [(d,)] * 2 + [(d, d), (d,)] * 4 + [(d,)] * 3 + [(4 * d, d), (4 * d,), (d, 4 * d), (d,), (d,)]
    ]
    neck = [s for _ in range(10) for s in [(128, 128, 3, 3), (128,), (128,)]]
    q = queries
    attention = [(3 * q, q), (3 * q,), (q, q), (q,)]
    deformable = [(128, q), (128,), (64, q), (64,), (q, q), (q,), (q, q), (q,)]
    feed_forward = [(1024, q), (1024,), (q, 1024), (q,)]
    decoder = [s for _ in range(6) for s in attention + deformable + feed_forward + [(q,)] * 6]
    heads = [
        s
        for _ in range(7)
        for s in [(q, q), (q,), (q,), (q,), (91, q), (91,), (q, q), (q,), (q, q), (q,), (4, q), (4,)]
    ]
    return [[shape] for shape in [*backbone, *neck, *decoder, *heads]]


CASES: dict[str, Callable[[], Shapes]] = {
    "480 tensors, 48 groups": many_small,
    "189 tensors, 4 groups": middle,
    "12 tensors, one group": one_group,
    "ViT-B, rate per layer": vit_b,
    "detector, group per parameter": detector,
}
OPTIMIZERS: dict[str, Callable[[list[dict]], torch.optim.Optimizer]] = {
    "ours": lambda groups: MultiRateAdamW(groups, lr=RATE),
    "torch fused": lambda groups: torch.optim.AdamW(groups, lr=RATE, fused=True),
    "torch foreach": lambda groups: torch.optim.AdamW(groups, lr=RATE, foreach=True),
}


def variants(device: torch.device) -> dict[str, tuple[str | None, Callable]]:
    """Backend (None for the automatic choice) and maker of each optimizer; on CUDA ours also by the Triton kernels,
    where those are not the automatic choice."""
    made = {kind: (None, build) for kind, build in OPTIMIZERS.items()}
    served = backends.implementations(device.type)[kernels.STEP]
    if served["triton"] is None and backends.chosen(kernels.STEP, device.type) != "triton":
        made["ours, Triton"] = ("triton", OPTIMIZERS["ours"])
    return made


def prepared(build: Callable, shapes: Shapes, device: torch.device) -> torch.optim.Optimizer:
    """An optimizer with gradients at hand, two steps done."""
    torch.manual_seed(0)
    groups = [
        {"params": [nn.Parameter(torch.randn(shape, device=device)) for shape in group], "lr": RATE * (1 + i % 6) / 6}
        for i, group in enumerate(shapes)
    ]
    optimizer = build(groups)
    for p in parameters(optimizer):
        p.grad = torch.randn_like(p)
    for _ in range(2):
        optimizer.step()
    return optimizer


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@contextlib.contextmanager
def kernels_stubbed() -> Iterator[None]:
    """What a step costs the host: every kernel returns at once."""
    nothing = mock.patch.object(kernels, "run", lambda op, launch: None)
    with (
        nothing,
        mock.patch("torch._fused_adamw_", lambda *a, **k: None),
        mock.patch("torch._foreach_add_", lambda *a, **k: None),
    ):
        yield


def host_time(timing: harness.Timing) -> float:
    """Microseconds."""
    return 1e3 * (timing.median if timing.host is None else timing.host)


def optimizer_rows(name: str, shapes: Shapes, device: torch.device) -> list[dict]:
    chosen = variants(device)
    optimizers = {}
    for kind, (backend, build) in chosen.items():
        with pgm_fast.backend(backend):
            optimizers[kind] = prepared(build, shapes, device)
    ours, *others = (parameters(optimizer) for optimizer in optimizers.values())
    for theirs in others:
        worst = max((a.detach() - b.detach()).abs().max().item() for a, b in zip(ours, theirs, strict=True))
        if not worst <= AGREEMENT:
            print(f"{name}: differs from torch by {worst:.2e}, no row")
            return []
    count = sum(p.numel() for p in ours)
    steps = {kind: harness.on_backend(chosen[kind][0], optimizer.step) for kind, optimizer in optimizers.items()}
    timings, least = floor.interleaved(steps, device, BYTES_PER_PARAMETER * count, HELD_PER_PARAMETER * count)
    with kernels_stubbed():
        on_host = harness.interleaved({kind: optimizers[kind].step for kind in ("ours", "torch fused")}, device)
    rows = []
    for kind, timing in timings.items():
        host_us = host_time(on_host[kind]) if kind in on_host else None
        row = harness.as_row(
            timing,
            case=name,
            optimizer=kind,
            tensors=len(ours),
            groups=len(shapes),
            parameters=count,
            dtype="float32",
            **least.of(timing),
        )
        if host_us is not None:
            row["host_us"] = round(host_us, 2)
        if kind.startswith("ours"):
            row["launches"] = optimizers[kind].launches_per_step
            row["backend"] = chosen[kind][0] or backends.chosen(kernels.STEP, device.type)
        rows.append(row)
        host = "" if host_us is None else f"  host {host_us:6.1f} us"
        print(
            f"{name:30} {kind:14} {timing.median:9.3f} ms ({timing.p20:.3f} to {timing.p80:.3f})  "
            f"{timing.median / timings['ours'].median:6.2f} x ours  {row['percent_of_floor']:5.1f} % of floor"
            f"{host}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default="", help="only those whose name has this in it; nothing is written then")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows = []
    for name, shapes in CASES.items():
        if arguments.cases in name:
            rows += optimizer_rows(name, shapes(), device)
    if not arguments.cases:
        print(harness.write("multi_rate", device, rows))


if __name__ == "__main__":
    main()
