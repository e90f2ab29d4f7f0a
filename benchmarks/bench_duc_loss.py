"""duc_loss: a loop over samples, eager PyTorch, torch.compile of it, the reference and every kernel here, in one run.

    python benchmarks/bench_duc_loss.py [--device cpu|cuda] [--threads 2] [--quick]

One direction and both; each hands over half of the dimensions. Correctness comes first: every variant has the gradients
of the formula in fp64. Peak memory is counted beyond the features and their gradients, and given in percent of a matrix
of products in fp32. The floor is the arithmetic, 4 B² |D| flop forward and backward, at the rate of torch's own product
of two matrices of 4096 rows. On a CUDA device bfloat16 is measured too, and launches are counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

from pgm_fast import backends, ops

CASES = ((64, 512), (512, 512), (4096, 512))  # rows, d
QUICK = ((16, 32), (300, 64))
# of a gradient against that in fp64, relative to its largest entry: rounded operands, and what cancels in them
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
LOOP_ROWS = 64  # the loop over samples is timed up to here
TEMPERATURE = 50.0


def loop(student: Tensor, teacher: Tensor, dims: Tensor) -> Tensor:
    """As the released code, sample by sample, with the maximum subtracted."""
    x, y = student.index_select(1, dims), teacher.detach().index_select(1, dims)
    total = x.new_zeros(())
    for i in range(len(x)):
        logits = y @ x[i] / TEMPERATURE
        e = (logits - logits.max()).exp()
        total = total - (e[i] / e.sum()).log()
    return total / len(x)


def eager(student: Tensor, teacher: Tensor, dims: Tensor) -> Tensor:
    logits = student.index_select(1, dims) @ teacher.detach().index_select(1, dims).t() / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


compiled = torch.compile(eager, dynamic=False)  # once per size and dtype, for one way and both


def variants(rows: int, device: torch.device) -> dict[str, tuple[Callable, str | None]]:
    """name -> (function of features, dimensions and those of the way back or None; backend)."""

    def both(one: Callable) -> Callable:
        def run(a, b, forth, back):
            return one(a, b, forth) if back is None else one(a, b, forth) + one(b, a, back)

        return run

    def ours(a, b, forth, back):
        return ops.duc_loss(a, b, forth, TEMPERATURE, reverse_dims=back)

    found = {
        "eager": (both(eager), None),
        "torch.compile": (both(compiled), None),
        "torch": (ours, "torch"),
    }
    if rows <= LOOP_ROWS:
        found["loop"] = (both(loop), None)
    for name, reason in backends.implementations(device.type)["duc_loss"].items():
        if reason is None and name != "torch":
            found[name] = (ours, name)
    return found


def training(run: Callable, leaves: list[Tensor], forth: Tensor, back: Tensor | None) -> Callable:
    wanted = leaves[:1] if back is None else leaves
    incoming = torch.ones((), device=forth.device)  # made before: it is no part of the loss

    def step():
        loss = run(*leaves, forth, back)
        return torch.autograd.grad(loss, wanted, incoming.to(loss.dtype))

    return step


def measure(n: int, d: int, dtype: torch.dtype, device: torch.device, flop_rate: float) -> list[dict]:
    """Every variant at one size, one way and both ways."""
    torch.manual_seed(0)
    leaves = [torch.randn(n, d).to(device, dtype).requires_grad_() for _ in range(2)]
    order, rows = torch.randperm(d), []
    halves = [order[: d // 2].sort().values.to(device), order[d // 2 :].sort().values.to(device)]
    for kind, forth, back in (("one way", halves[0], None), ("both ways", *halves)):
        wanted = leaves[:1] if back is None else leaves
        exact = [x.detach().double().requires_grad_() for x in leaves]
        loss = eager(*exact, forth) if back is None else eager(*exact, forth) + eager(*exact[::-1], back)
        expected = torch.autograd.grad(loss, exact[: len(wanted)])
        calls = {}
        for name, (run, backend) in variants(n, device).items():
            calls[name] = harness.on_backend(backend, training(run, leaves, forth, back))
            for got, want in zip(calls[name](), expected, strict=True):
                largest = want.abs().max().item()
                torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[dtype] * largest)
        flop = sum(4 * n * n * len(dims) for dims in (forth, back) if dims is not None)
        gradients = sum(x.nbytes for x in wanted)
        timings = harness.interleaved(calls, device)
        for name, timing in timings.items():
            counts = harness.count(calls[name], device)
            extra = counts.peak_bytes - gradients
            rows.append(
                harness.as_row(
                    timing,
                    counts,
                    op="duc_loss",
                    variant=name,
                    dtype=str(dtype)[6:],
                    shape={"rows": n, "d": d, "dims": len(forth)},
                    kind=f"forward+backward, {kind}",
                    extra_bytes=extra,
                    percent_of_products=round(100 * extra / (4 * n * n), 1),
                    percent_of_floor=round(100 * flop / flop_rate / timing.median, 1),
                    times_eager=round(timings["eager"].median / timing.median, 2),
                    times_compile=round(timings["torch.compile"].median / timing.median, 2),
                    times_loop=round(timings["loop"].median / timing.median, 1) if "loop" in timings else None,
                )
            )
            row = rows[-1]
            print(
                f"B={n:<5} {row['dtype']:8} {kind:9} {name:14} {timing.median:9.3f} ms  "
                f"{row['percent_of_floor']:5.1f} % of floor  {row['times_eager']:.2f}x eager  "
                f"{extra / 1e6:7.2f} MB, {row['percent_of_products']} % of B²  {row.get('launches', '-')} launches",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), []
    for dtype in (torch.float32,) if device.type == "cpu" else (torch.float32, torch.bfloat16):
        square = torch.randn(4096, 512, device=device, dtype=dtype)
        product = harness.interleaved({"product": lambda x=square: x @ x.t()}, device)["product"].median
        flop_rate = 2 * 4096 * 4096 * 512 / product
        for n, d in QUICK if arguments.quick else CASES:
            rows += measure(n, d, dtype, device, flop_rate)
    if not arguments.quick:
        print(harness.write("duc_loss", device, rows))


if __name__ == "__main__":
    main()
