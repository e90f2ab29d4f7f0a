"""reconstruction: eager PyTorch, torch.compile of it, and the compiled op, in one run, beside the bare products.

    python benchmarks/bench_reconstruction.py [--threads 2]

Bare is the decoder's products with neither target nor loss. Correctness comes first: a variant whose numbers are not
those of the fp64 formula gets no row. Memory is the most that a call holds above what was there before it, outputs and
gradients included; extra is what of it is neither.
"""

from __future__ import annotations

from collections.abc import Callable

import products
import torch
import torch.nn.functional as F

from pgm_fast import ops

SHAPES = ((64, 128, 128), (4096, 512, 512), (32768, 512, 128))  # rows, d, width of each part


def case(rows: int, d: int, width: int) -> products.Case:
    target = torch.randn(rows, d)
    weights = [torch.randn(d, width) / width**0.5, torch.randn(d, width) / width**0.5, torch.randn(d)]

    def eager(u, p, w_uni, w_paired, bias):
        """As a user would write it in plain PyTorch, which torch.compile may fuse as it likes."""
        decoded = F.linear(u, w_uni, bias) + F.linear(p, w_paired)
        return decoded, F.mse_loss(decoded, target.to(decoded.dtype))

    def bare(u, p, w_uni, w_paired, bias):
        return (F.linear(u, w_uni, bias) + F.linear(p, w_paired),)

    return products.Case(
        op="reconstruction",
        shape={"rows": rows, "d": d, "n_uni": width, "n_paired": width},
        arguments=[torch.randn(rows, width), torch.randn(rows, width), *weights],
        eager=eager,
        bare=bare,
        ours=lambda *x: ops.reconstruction(*x, target),
    )


def cases() -> list[Callable[[], products.Case]]:
    return [lambda shape=shape: case(*shape) for shape in SHAPES]


if __name__ == "__main__":
    products.main("reconstruction", cases(), __doc__)
