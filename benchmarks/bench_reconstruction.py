"""reconstruction: eager PyTorch, torch.compile of it, and the compiled op, in one run, beside the bare products.

    python benchmarks/bench_reconstruction.py [--device cpu|cuda] [--threads 2] [--quick]

Bare is the decoder's products with neither target nor loss. Correctness comes first: a variant whose numbers are not
those of the fp64 formula gets no row. Memory is the most that a call holds above what was there before it, outputs and
gradients included; extra is what of it is neither.
"""

from __future__ import annotations

import products
import torch.nn.functional as F

from pgm_fast import ops

SHAPES = {  # rows, d, width of each part
    "cpu": (
        (64, 128, 128),
        (64, 512, 128),
        (512, 512, 128),
        (4096, 512, 128),
        (32768, 512, 128),
        (4096, 512, 512),
    ),
    "cuda": ((32768, 1024, 1024), (64, 128, 128), (64, 1024, 1024), (512, 1024, 1024), (4096, 1024, 1024)),
}


def case(draw: products.Draw, rows: int, d: int, width: int) -> products.Case:
    target = draw(rows, d)
    weights = [draw(d, width) / width**0.5, draw(d, width) / width**0.5, draw(d)]

    def eager(u, p, w_uni, w_paired, bias):
        """As a user would write it in plain PyTorch, which torch.compile may fuse as it likes."""
        decoded = F.linear(u, w_uni, bias) + F.linear(p, w_paired)
        return decoded, F.mse_loss(decoded, target.to(decoded.dtype))

    def bare(u, p, w_uni, w_paired, bias):
        return (F.linear(u, w_uni, bias) + F.linear(p, w_paired),)

    return products.Case(
        op="reconstruction",
        shape={"rows": rows, "d": d, "n_uni": width, "n_paired": width},
        arguments=[draw(rows, width), draw(rows, width), *weights],
        eager=eager,
        bare=bare,
        ours=lambda *x: ops.reconstruction(*x, target),
    )


if __name__ == "__main__":
    products.main("reconstruction", SHAPES, case, __doc__)
