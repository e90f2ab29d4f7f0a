"""partition and partition_dual: eager reference, torch.compile of the reference, and the compiled kernels, in one run.

    python benchmarks/bench_partition.py [--threads 2]

Correctness comes first: a backend whose numbers are not those of the reference gets no row. The floor is the time that
a plain copy would take to move the bytes that the op must move (partition 4 N d forward and 6 N d backward, dual 6 and
9, times the element size).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import harness
import torch

import pgm_fast
from pgm_fast import backends, ops

SHAPES = ((64, 256), (512, 512), (8192, 768))
COPY_ELEMENTS = 2**26  # 256 MiB each way in fp32, far larger than a cache's share of one core


class Op:
    """One op with what it must move."""

    def __init__(self, name: str, run: Callable, gates: int, forward: int, backward: int):
        self.name, self.run, self.gates, self.forward, self.backward = name, run, gates, forward, backward


OPS = (
    Op("partition", ops.partition, 1, 4, 6),
    Op("partition_dual", ops.partition_dual, 2, 6, 9),
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

    return single if op.gates == 1 else dual


def variants(op: Op) -> dict[str, Callable]:
    """name -> function of the tensors, each in the backend it names."""
    found = {"eager": eager(op), "torch.compile": torch.compile(eager(op)), "torch": op.run}
    if backends.implementations()[op.name]["native"] is None:
        found["native"] = op.run
    return found


def forward(run: Callable, tensors: list[torch.Tensor], backend: str) -> Callable[[], object]:
    def call():
        with torch.no_grad():
            return run(*tensors)

    return harness.on_backend(backend, call)


def forward_backward(
    run: Callable, tensors: list[torch.Tensor], gradients: list[torch.Tensor], backend: str
) -> Callable[[], object]:
    leaves = [x.detach().requires_grad_() for x in tensors]

    def call():
        return torch.autograd.grad(run(*leaves), leaves, gradients)

    return harness.on_backend(backend, call)


def copy_bandwidth() -> float:
    """Bytes per millisecond, read and written, of a copy far larger than the cache."""
    source, target = torch.randn(COPY_ELEMENTS), torch.empty(COPY_ELEMENTS)
    timing = harness.interleaved({"copy": lambda: target.copy_(source)}, torch.device("cpu"))["copy"]
    return 2 * 4 * COPY_ELEMENTS / timing.median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    device, rows = torch.device("cpu"), []
    bandwidth = copy_bandwidth()
    print(f"copy {bandwidth / 1e6:.1f} GB/s")
    for op in OPS:
        for n, d in SHAPES:
            torch.manual_seed(0)
            tensors = [torch.randn(n, d) for _ in range(op.gates + 1)]
            gradients = [torch.randn(n, d) for _ in range(op.gates + 1)]
            runs = variants(op)
            expected = eager(op)(*(x.double() for x in tensors))
            for name, run in runs.items():
                with pgm_fast.backend("native" if name == "native" else "torch"):
                    for got, want in zip(run(*tensors), expected, strict=True):
                        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
            for kind in ("forward", "forward+backward"):
                calls = {}
                for name, run in runs.items():
                    backend = "native" if name == "native" else "torch"
                    calls[name] = (
                        forward(run, tensors, backend)
                        if kind == "forward"
                        else forward_backward(run, tensors, gradients, backend)
                    )
                moved = (op.forward + (op.backward if kind != "forward" else 0)) * n * d * 4
                timings = harness.interleaved(calls, device)
                for name, timing in timings.items():
                    floor = 100 * moved / bandwidth / timing.median
                    rows.append(
                        harness.as_row(
                            timing,
                            op=op.name,
                            variant=name,
                            dtype="float32",
                            shape={"rows": n, "d": d},
                            kind=kind,
                            bytes=moved,
                            percent_of_floor=round(floor, 1),
                            times_eager=round(timings["eager"].median / timing.median, 2),
                            times_compile=round(timings["torch.compile"].median / timing.median, 2),
                        )
                    )
                    print(
                        f"{op.name:14} {n}x{d} {kind:17} {name:14} {timing.median:9.4f} ms  {floor:5.1f} % of floor  "
                        f"{rows[-1]['times_eager']:.2f}x eager  {rows[-1]['times_compile']:.2f}x compile"
                    )
    print(harness.write("partition", device, rows, bandwidth_gb_s=round(bandwidth / 1e6, 2)))


if __name__ == "__main__":
    main()
