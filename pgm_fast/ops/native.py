"""The compiled CPU kernels as functions of tensors: outputs are allocated here, addresses go to ``pgm_fast._native``."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends

__all__ = ["register_native"]

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def register_native(op: str, outputs: tuple[int, ...]) -> None:
    """Registers the kernel ``_native.<op>`` as the ``native`` backend of ``op`` on the CPU.

    The kernel takes the op's tensors in their order, then its temperature, then its outputs.

    Args:
        op: its arguments are tensors, then a temperature.
        outputs: positions of the arguments whose shapes and dtypes the outputs have.
    """

    def load():
        import pgm_fast._native as native

        kernel, threads = getattr(native, op), torch.get_num_threads

        def run(*arguments):
            *tensors, temperature = arguments
            tensors = [x.contiguous() for x in tensors]
            made = tuple(torch.empty_like(tensors[position]) for position in outputs)
            rows = tensors[0].numel() // tensors[0].shape[-1]
            kernel(rows, *map(_matrix, tensors), temperature, *map(_matrix, made), threads())
            return made

        return run

    backends.register(op, "native", load, devices=("cpu",), dtypes=tuple(_DTYPES), refuse=_refuse)


def _matrix(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), _DTYPES[x.dtype], x.shape[-1]


def _refuse(*arguments) -> str | None:
    first = arguments[0].dtype
    for x in arguments[1:-1]:
        if x.dtype is not first and (first is torch.float64 or x.dtype not in _DTYPES or x.dtype is torch.float64):
            return f"does not mix {first} with {x.dtype}"
    return None
