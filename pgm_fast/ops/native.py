"""The compiled CPU kernels as backends of the ops.

Those of ``pgm_fast._native`` take addresses, so outputs are allocated here; those that call torch's own products are
functions of tensors, in the host path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import backends, host

__all__ = ["NATIVE_DTYPES", "refuse_mixed_precision", "register_host", "register_native"]

NATIVE_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def register_native(op: str, outputs: tuple[int, ...]) -> None:
    """Registers the kernel ``_native.<op>`` as the ``native`` backend of ``op`` on the CPU.

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

    _register(op, load)


def register_host(op: str) -> None:
    """Registers ``<host path>.<op>``, which takes and returns tensors, as the ``native`` backend of ``op`` on the
    CPU."""
    _register(op, lambda: getattr(host.load(), op))


def _register(op: str, load: Callable[[], Callable]) -> None:
    backends.register(op, "native", load, devices=("cpu",), dtypes=tuple(NATIVE_DTYPES), refuse=refuse_mixed_precision)


def _matrix(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), NATIVE_DTYPES[x.dtype], x.shape[-1]


def refuse_mixed_precision(*arguments) -> str | None:
    """The kernels convert between 16-bit types and float, but not to or from double."""
    first = arguments[0].dtype
    for x in arguments[1:]:
        if isinstance(x, Tensor) and x.dtype is not first:
            if first is torch.float64 or x.dtype is torch.float64 or x.dtype not in NATIVE_DTYPES:
                return f"does not mix {first} with {x.dtype}"
    return None
