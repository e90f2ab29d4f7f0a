"""One case per way in which a Triton kernel is launched: a call on tensors of the meta device, and what its machine
code must show."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A call to compile.

    Attributes:
        name: kernel file, shape and dtype.
        call: calls wrappers of ``kernels/`` on meta tensors.
        wide: loads and stores 16 bytes per thread.
        matrix: multiplies on the matrix units (wgmma on sm_90).
        double: computes in fp64.
    """

    name: str
    call: Callable[[], object]
    wide: bool = False
    matrix: bool = False
    double: bool = False


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _split(op: str, gates: int, d: int, dtype: torch.dtype, z_dtype: torch.dtype) -> None:
    kernels = importlib.import_module(f"pgm_fast.kernels.{op}")
    count = 1 if op == "partition" else 2
    h, logits = _meta(4096, d, dtype=dtype), [_meta(4096, gates, dtype=z_dtype) for _ in range(count)]
    kernels.forward(h, *logits, 0.5)
    kernels.backward(*[h] * (count + 1), h, *logits, 0.5)


def _split_cases(op: str) -> list[Case]:
    """A row kept whole, several rows per program, the longest row kept whole, blocks, chunks, an odd width, mixed and
    double precision."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    shapes = [
        (1024, 1024, half, half, True),
        (256, 256, single, single, True),
        (768, 768, torch.float16, single, True),
        (4096, 4096, half, half, True),
        (8192, 8192, single, single, True),
        (20000, 20000, half, half, True),
        (64, 256, half, half, False),
        (3, 4098, single, single, False),
        (77, 77, single, half, False),
        (96, 96, double, double, False),
    ]
    return [
        Case(
            f"{op}-{gates}x{d // gates}-{str(dtype)[6:]}-{str(z_dtype)[6:]}",
            partial(_split, op, gates, d, dtype, z_dtype),
            wide=wide,
            double=dtype == double,
        )
        for gates, d, dtype, z_dtype, wide in shapes
    ]


CASES: list[Case] = [*_split_cases("partition"), *_split_cases("partition_dual")]
