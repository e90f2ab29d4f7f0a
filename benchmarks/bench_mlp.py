"""mlp: two layers with GELU between them, eager, under torch.compile and as one op, beside the bare products.

    python benchmarks/bench_mlp.py [--threads 2] [--quick]

Bare is the two products with neither bias nor GELU. The shapes are those of encoders and heads; the largest is past
the rows up to which modules take the op (pgm_fast/nn/fused.py).
"""

from __future__ import annotations

import products
import torch.nn.functional as F

from pgm_fast import ops

SHAPES = {"cpu": ((64, 128, 128), (64, 384, 10), (256, 256, 256), (1024, 256, 256))}  # rows, d, width out
HIDDEN = 128


def eager(x, w_in, b_in, w_out, b_out):
    return (F.linear(F.gelu(F.linear(x, w_in, b_in)), w_out, b_out),)


def bare(x, w_in, b_in, w_out, b_out):
    return (F.linear(F.linear(x, w_in), w_out),)


def case(draw: products.Draw, rows: int, d: int, width: int) -> products.Case:
    return products.Case(
        op="mlp",
        shape={"rows": rows, "d": d, "hidden": HIDDEN, "out": width},
        arguments=[
            draw(rows, d),
            draw(HIDDEN, d) / d**0.5,
            draw(HIDDEN),
            draw(width, HIDDEN) / HIDDEN**0.5,
            draw(width),
        ],
        eager=eager,
        bare=bare,
        ours=lambda *x: (ops.mlp(*x),),
    )


if __name__ == "__main__":
    products.main("mlp", SHAPES, case, __doc__)
