"""The compiled CPU kernels as functions of tensors: outputs are allocated here, addresses go to
``pgm_fast._native``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import backends

__all__ = ["NATIVE_DTYPES", "matrix", "native_kernel", "refuse_mixed_precision", "register_native"]

NATIVE_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def native_kernel(op: str) -> Callable[[Sequence[Tensor], float, Sequence[Tensor]], None]:
    """``_native.<op>`` as ``call(tensors, temperature, outputs)``: contiguous CPU tensors of :data:`NATIVE_DTYPES`,
    outputs are written.

    Raises:
        ImportError: the kernels are not built, or built for another CPU.
    """
    import pgm_fast._native as native

    kernel, threads = getattr(native, op), torch.get_num_threads

    def call(tensors: Sequence[Tensor], temperature: float, outputs: Sequence[Tensor]) -> None:
        rows = tensors[0].numel() // tensors[0].shape[-1]
        kernel(rows, *map(matrix, tensors), temperature, *map(matrix, outputs), threads())

    return call


def register_native(op: str, outputs: tuple[int, ...]) -> None:
    """Registers the kernel ``_native.<op>`` as the ``native`` backend of ``op`` on the CPU.

    Args:
        op: its arguments are tensors, then a temperature.
        outputs: positions of the arguments whose shapes and dtypes the outputs have.
    """

    def load():
        call = native_kernel(op)

        def run(*arguments):
            *tensors, temperature = arguments
            tensors = [x.contiguous() for x in tensors]
            made = tuple(torch.empty_like(tensors[position]) for position in outputs)
            call(tensors, temperature, made)
            return made

        return run

    backends.register(op, "native", load, devices=("cpu",), dtypes=tuple(NATIVE_DTYPES), refuse=refuse_mixed_precision)


def matrix(x: Tensor) -> tuple[int, int, int]:
    """A contiguous tensor as the kernels take it: address, dtype, width of its last dimension."""
    return x.data_ptr(), NATIVE_DTYPES[x.dtype], x.shape[-1]


def refuse_mixed_precision(*arguments) -> str | None:
    """The kernels convert between 16-bit types and float, but not to or from double."""
    first = arguments[0].dtype
    for x in arguments[1:]:
        if isinstance(x, Tensor) and x.dtype is not first:
            if first is torch.float64 or x.dtype is torch.float64 or x.dtype not in NATIVE_DTYPES:
                return f"does not mix {first} with {x.dtype}"
    return None
