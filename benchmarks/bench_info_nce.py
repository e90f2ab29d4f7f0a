"""info_nce: eager PyTorch, torch.compile of it, the reference and every kernel here, forward and backward, in one run.

    python benchmarks/bench_info_nce.py [--device cpu|cuda] [--threads 2] [--quick]

Correctness comes first: every variant has the loss and the gradients of the formula in fp64. The floor is the
arithmetic, three products of 2 B² d flop, at the rate of torch's own product of two matrices of 4096 rows. Peak memory
is counted beyond the features and their gradients.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

from pgm_fast import backends, ops

CASES = ((64, 128), (512, 512), (4096, 512))  # rows, d
QUICK = ((16, 32), (300, 64))
TEMPERATURE = 0.1


def eager(a: Tensor, b: Tensor) -> Tensor:
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / TEMPERATURE
    own = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own))


def ours(a: Tensor, b: Tensor) -> Tensor:
    return ops.info_nce(a, b, TEMPERATURE)


def variants(device: torch.device) -> dict[str, tuple[Callable, str | None]]:
    """name -> (function of two views, backend)."""
    usable = [name for name, reason in backends.implementations(device.type)["info_nce"].items() if reason is None]
    plain = {"eager": (eager, None), "torch.compile": (torch.compile(eager), None)}
    return {**plain, **{name: (ours, name) for name in usable}}


def training(run: Callable, leaves: list[Tensor]) -> Callable:
    return lambda: torch.autograd.grad(run(*leaves), leaves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), []
    square = torch.randn(4096, 512, device=device)
    product = harness.interleaved({"product": lambda: square @ square.t()}, device)["product"].median
    flop_rate = 2 * 4096 * 4096 * 512 / product
    for n, d in QUICK if arguments.quick else CASES:
        torch.manual_seed(0)
        leaves = [torch.randn(n, d, device=device).requires_grad_() for _ in range(2)]
        exact = [x.detach().double().requires_grad_() for x in leaves]
        expected = torch.autograd.grad(eager(*exact), exact)
        calls = {}
        for name, (run, backend) in variants(device).items():
            calls[name] = harness.on_backend(backend, training(run, leaves))
            for got, want in zip(calls[name](), expected, strict=True):
                torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4 * want.abs().max().item())
        timings = harness.interleaved(calls, device)
        for name, timing in timings.items():
            counts = harness.count(calls[name], device)
            row = harness.as_row(
                timing,
                counts,
                op="info_nce",
                variant=name,
                dtype="float32",
                shape={"rows": n, "d": d},
                kind="forward+backward",
                extra_bytes=counts.peak_bytes - 8 * n * d,
                percent_of_floor=round(100 * 6 * n * n * d / flop_rate / timing.median, 1),
                times_eager=round(timings["eager"].median / timing.median, 2),
                times_compile=round(timings["torch.compile"].median / timing.median, 2),
            )
            rows.append(row)
            print(
                f"B={n:<5} d={d:<4} {name:14} {timing.median:9.3f} ms  {row['percent_of_floor']:5.1f} % of floor  "
                f"{row['times_eager']:.2f}x eager  {row['times_compile']:.2f}x compile  "
                f"{row['extra_bytes'] / 1e6:7.2f} MB"
            )
    if not arguments.quick:
        print(harness.write("info_nce", device, rows))


if __name__ == "__main__":
    main()
