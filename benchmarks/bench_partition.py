"""partition and partition_dual: eager PyTorch, torch.compile of it, the reference and every kernel here, in one run.

    python benchmarks/bench_partition.py [--device cpu|cuda] [--threads 2] [--quick]

Correctness comes first: a backend whose numbers are not those of the formula in fp64 gets no row. The floor is the time
that the fastest stream takes to move the bytes that the op must move (partition 4 N d forward and 6 N d backward, dual
6 and 9, times the element size), measured beside it over as much memory as its operands and results take. Memory is
the most that a call holds above what was there before it; extra is what of it is no result.

At a small and a large size the dual op is also measured with its shares, trained by them; ``apart`` is then the op
without them and partition_share beside it.

What limits the compiled kernels on the CPU, beside the floor:

- The call. On one row of 16, the first size, nothing is left but that: 30 us forward and backward through
  ``torch.autograd.grad``, of which 1.3 are this package's checks in Python, 2 the dispatcher's, and 28 are what a
  ``torch::autograd::Function`` of the same inputs and outputs takes that computes nothing (26 as a node written by
  hand, whose interface changes from one torch to the next). At 64 x 256 that is more than the arithmetic, and five
  times faster than eager would be less than the call alone.
- The ports that take 512-bit vectors, while operands are in cache: 40 instructions for 16 elements forward (two
  scans of 8 and their sums 8, the exponential 11), 57 backward (a third scan), two a cycle. One row's exponentials
  are computed beside the outputs of the row before, so that no latency shows.
- Fresh outputs. Where the allocator has given memory back to the system, its first use costs a page fault for every
  4 KiB, up to as much as the kernel; eager pays the same for each of its temporaries.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import floor
import harness
import torch
import torch._functorch.config

import pgm_fast
from pgm_fast import backends, ops

CASES = {  # rows, d, dtype
    "cpu": (
        (1, 16, torch.float32),  # what a call costs
        (64, 256, torch.float32),
        (16, 768, torch.float32),
        (128, 768, torch.float32),
        (1024, 768, torch.float32),
        (8192, 768, torch.float32),
    ),
    "cuda": (
        (65536, 1024, torch.bfloat16),
        (1024, 1024, torch.bfloat16),
        (8192, 1024, torch.bfloat16),
        (64, 256, torch.bfloat16),
        (8192, 768, torch.float32),
        (16384, 4096, torch.bfloat16),
    ),
}
QUICK = (16, 64)
SHARE_SIZES = {"cpu": ((64, 256), (8192, 768)), "cuda": ((64, 256), (65536, 1024))}  # rows, d
# matrices that a pass reads or writes, for each that it is given: h and logits, outputs, and gradients of both
HELD = {"forward": 2, "backward": 3, "forward+backward": 4}
PASSES = {"cpu": ("forward", "forward+backward"), "cuda": ("forward", "backward", "forward+backward")}
CHECKED_ROWS = 512
# rtol, atol against fp64: fp32 scans of thousands of terms; a bf16 result rounded once, gates times h of order 1
KERNEL_BOUND = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (2**-7, 2**-8)}
# plain bf16 rounds the gate too, then its product with h, then a difference
PLAIN_BOUND = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (2**-5, 2**-4)}


class Op:
    """One op with what it must move; ``apart``: two calls that give the same."""

    def __init__(
        self, name: str, run: Callable, gates: int, forward: int, backward: int, apart: Callable | None = None
    ):
        self.name, self.run, self.gates, self.apart = name, run, gates, apart
        self.moves = {"forward": forward, "backward": backward, "forward+backward": forward + backward}


OPS = (
    Op("partition", ops.partition, 1, 4, 6),
    Op("partition_dual", ops.partition_dual, 2, 6, 9),
)
# what it must move for the shares is four numbers a row, not counted
WITH_SHARE = Op(
    "partition_dual_with_share",
    partial(ops.partition_dual, return_share=True),
    2,
    6,
    9,
    lambda h, z_uni, z_paired: (*ops.partition_dual(h, z_uni, z_paired), ops.partition_share(z_uni, z_paired)),
)


def eager(op: Op) -> Callable:
    """The same maths as a user would write it in plain PyTorch, which torch.compile may fuse as it likes."""

    def gate(z):
        return torch.softmax(z, -1).cumsum(-1)

    def single(h, z):
        g = gate(z)
        return (1 - g) * h, g * h

    def dual(h, z_uni, z_paired):
        e, r = 1 - gate(z_uni), gate(z_paired)
        shared = e * r * h
        return e * h - shared, r * h - shared, shared

    def dual_with_share(h, z_uni, z_paired):
        e, r = 1 - gate(z_uni), gate(z_paired)
        shared = e * r * h
        share = torch.stack([mass.mean(-1) for mass in (e - e * r, r - e * r, e * r, (1 - e) * (1 - r))], -1)
        return e * h - shared, r * h - shared, shared, share

    if op is WITH_SHARE:
        return dual_with_share
    return single if op.gates == 1 else dual


def variants(op: Op, device: torch.device, dtype: torch.dtype) -> dict[str, Callable]:
    """name -> function of the tensors; the kernels under the names of their backends."""
    found = {"eager": eager(op), "torch.compile": torch.compile(eager(op)), "torch": op.run}
    reasons = backends.implementations(device.type, dtype)[op.name]
    found |= {name: op.run for name in ("native", "triton") if reasons[name] is None}
    return found | ({"apart": op.apart} if op.apart else {})


def backend_of(variant: str) -> str | None:
    """None is the automatic choice: partition_share has no kernel of its own."""
    if variant == "apart":
        return None
    return variant if variant in ("native", "triton") else "torch"


def timed_call(
    run: Callable, tensors: list[torch.Tensor], gradients: list[torch.Tensor], variant: str, kind: str
) -> Callable[[], object]:
    """One forward, backward (of a graph that is kept) or both of a variant."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    backend = backend_of(variant)
    if kind == "backward":
        with pgm_fast.backend(backend):
            results = run(*leaves)

    def call():
        if kind == "forward":
            with torch.no_grad():
                return run(*tensors)
        if kind == "backward":
            return torch.autograd.grad(results, leaves, gradients, retain_graph=True)
        return torch.autograd.grad(run(*leaves), leaves, gradients)

    return harness.on_backend(backend, call)


def check(op: Op, runs: dict[str, Callable], tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Outputs and gradients of every variant against fp64.

    Raises:
        AssertionError: one is wrong.
    """
    few = [x[:CHECKED_ROWS] for x in tensors]
    by = [x[:CHECKED_ROWS] for x in gradients]
    expected = _all_results(eager(op), [x.double() for x in few], [x.double() for x in by])
    for name, run in runs.items():
        bound = KERNEL_BOUND if run in (op.run, op.apart) else PLAIN_BOUND
        rtol, atol = bound[few[0].dtype]
        with pgm_fast.backend(backend_of(name)):
            got = _all_results(run, few, by)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol * max(1.0, b.abs().max().item()))


def _all_results(run: Callable, tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    results = run(*leaves)
    return [*results, *torch.autograd.grad(results, leaves, gradients)]


def measure(op: Op, n: int, d: int, dtype: torch.dtype, device: torch.device) -> list[dict]:
    """Rows of one op and shape: every pass and variant."""
    torch.manual_seed(0)
    torch.compiler.reset()  # each size compiled for itself, not for any
    tensors = [torch.randn(n, d, device=device).to(dtype) for _ in range(op.gates + 1)]
    gradients = [torch.randn(n, d, device=device).to(dtype) for _ in range(op.gates + 1)]
    if op is WITH_SHARE:
        gradients.append(torch.randn(n, 4, device=device))
    runs = variants(op, device, dtype)
    check(op, runs, tensors, gradients)
    rows = []
    for kind in PASSES[device.type]:
        calls = {name: timed_call(run, tensors, gradients, name, kind) for name, run in runs.items()}
        moved = op.moves[kind] * n * d * tensors[0].element_size()
        footprint = HELD[kind] * (op.gates + 1) * n * d * tensors[0].element_size()
        timings, least = floor.interleaved(calls, device, moved, footprint)
        for name, timing in timings.items():
            counts = harness.count(calls[name], device)
            results = calls[name]()
            extra = max(0, counts.peak_bytes - sum(x.numel() * x.element_size() for x in results))
            row = harness.as_row(
                timing,
                counts,
                op=op.name,
                variant=name,
                dtype=str(dtype).removeprefix("torch."),
                shape={"rows": n, "d": d},
                kind=kind,
                bytes=moved,
                extra_bytes=extra,
                **least.of(timing),
                times_eager=round(timings["eager"].median / timing.median, 2),
                times_compile=round(timings["torch.compile"].median / timing.median, 2),
            )
            rows.append(row)
            print(
                f"{op.name:14} {n}x{d} {row['dtype']:8} {kind:17} {name:14} {timing.median:9.4f} ms  "
                f"{row['percent_of_floor']:5.1f} % of floor  {row['times_eager']:.2f}x eager  "
                f"{row['times_compile']:.2f}x compile  {extra / 2**20:.1f} MiB beyond its results",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(CASES), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a small size, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # the graph of a compiled forward is kept while its backward is timed
    torch._functorch.config.donated_buffer = False
    device, rows = torch.device(arguments.device), []
    cases = CASES[device.type]
    for n, d, dtype in [(*QUICK, cases[0][2])] if arguments.quick else cases:
        share = arguments.quick or (n, d) in SHARE_SIZES[device.type]
        for op in (*OPS, WITH_SHARE) if share else OPS:
            rows += measure(op, n, d, dtype, device)
        if not arguments.quick:
            # at every size, so that a run that is stopped leaves what it measured
            print(harness.write("partition", device, rows))


if __name__ == "__main__":
    main()
