"""partitioned_linear: eager PyTorch, torch.compile of it, and the compiled op, in one run, beside the bare products.

    python benchmarks/bench_partitioned_linear.py [--threads 2]

Bare is the same matrix products on operands that are not masked: what is left when the partition costs nothing.
Correctness comes first: a variant whose numbers are not those of the fp64 formula gets no row. Memory is the most that
a call holds above what was there before it, outputs and gradients included; extra is what of it is neither.
"""

from __future__ import annotations

from collections.abc import Callable

import products
import torch
import torch.nn.functional as F

from pgm_fast import ops

SHAPES = ((64, 128, 128), (4096, 512, 128), (4096, 512, 512), (32768, 512, 128))  # rows, d, width of each projection


def arguments(rows: int, d: int, width: int) -> list[torch.Tensor]:
    weights = [torch.randn(width, d) / d**0.5, torch.randn(width), torch.randn(width, d) / d**0.5, torch.randn(width)]
    return [torch.randn(rows, d), torch.randn(rows, d), *weights]


def eager(h, z, w_uni, b_uni, w_paired, b_paired):
    """As a user would write it in plain PyTorch, which torch.compile may fuse as it likes."""
    paired = torch.softmax(z, -1).cumsum(-1) * h
    return F.linear(h - paired, w_uni, b_uni), F.linear(paired, w_paired, b_paired)


def bare(h, z, w_uni, b_uni, w_paired, b_paired):
    return F.linear(h, w_uni, b_uni), F.linear(z, w_paired, b_paired)


def case(rows: int, d: int, width: int) -> products.Case:
    return products.Case(
        op="partitioned_linear",
        shape={"rows": rows, "d": d, "n_uni": width, "n_paired": width},
        arguments=arguments(rows, d, width),
        eager=eager,
        bare=bare,
        ours=ops.partitioned_linear,
    )


def cases() -> list[Callable[[], products.Case]]:
    return [lambda shape=shape: case(*shape) for shape in SHAPES]


if __name__ == "__main__":
    products.main("partitioned_linear", cases(), __doc__)
