"""partitioned_linear: eager PyTorch, torch.compile of it, and the compiled op, in one run, beside the bare products.

    python benchmarks/bench_partitioned_linear.py [--device cpu|cuda] [--threads 2] [--quick]

Bare is the same matrix products on operands that are not masked: what is left when the partition costs nothing.
Correctness comes first: a variant whose numbers are not those of the fp64 formula gets no row. Memory is the most that
a call holds above what was there before it, outputs and gradients included; extra is what of it is neither.

What is left above bare, on the CPU:

- The partition, three times: forward, again in backward, and its derivative, at about half a nanosecond an element
  and core each where operands are in cache.
- Blocks of rows. The vendor's product packs its weights anew for every block, which ATen has no call to avoid. With
  weights of 1 MiB each (d = 512 to 512) blocks of 256 rows take 9 % longer than one product, of 52 rows 20 %: blocks of
  about 100, whose second operand waits in the rows of the output, keep scratch within 5 % of h. Narrow weights stay in
  cache, where a product in blocks is faster than bare, which reads its operand from memory.
- Backward with wide weights. One product over all rows, so the partitioned operands and then their gradients go
  through main memory, in the gradients' own: blocks win nothing there (within 2 %) and would need a sum per thread.
"""

from __future__ import annotations

import products
import torch
import torch.nn.functional as F

from pgm_fast import ops

SHAPES = {  # rows, d, width of each projection
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


def eager(h, z, w_uni, b_uni, w_paired, b_paired):
    """As a user would write it in plain PyTorch, which torch.compile may fuse as it likes."""
    paired = torch.softmax(z, -1).cumsum(-1) * h
    return F.linear(h - paired, w_uni, b_uni), F.linear(paired, w_paired, b_paired)


def bare(h, z, w_uni, b_uni, w_paired, b_paired):
    return F.linear(h, w_uni, b_uni), F.linear(z, w_paired, b_paired)


def case(draw: products.Draw, rows: int, d: int, width: int) -> products.Case:
    weights = [draw(width, d) / d**0.5, draw(width), draw(width, d) / d**0.5, draw(width)]
    return products.Case(
        op="partitioned_linear",
        shape={"rows": rows, "d": d, "n_uni": width, "n_paired": width},
        arguments=[draw(rows, d), draw(rows, d), *weights],
        eager=eager,
        bare=bare,
        ours=ops.partitioned_linear,
    )


if __name__ == "__main__":
    products.main("partitioned_linear", SHAPES, case, __doc__)
