"""The Triton kernels of ``kernels/`` as a backend of ops on CUDA devices."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..errors import LaunchError
from .native import refuse_mixed_precision
from .selection import register

__all__ = ["TRITON_DTYPES", "TRITON_PRODUCT_DTYPES", "contiguous", "contiguous_rows", "register_triton", "startable"]

TRITON_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# double precision has no place on the matrix units that these kernels are for: the reference serves it
TRITON_PRODUCT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def register_triton(
    op: str,
    file: str | None = None,
    function: str | None = None,
    *,
    dtypes: tuple[torch.dtype, ...] = TRITON_DTYPES,
    refuse: Callable[..., str | None] = refuse_mixed_precision,
    prepare: Callable[[object], object] | None = None,
) -> None:
    """Registers a function of ``kernels/`` as the ``triton`` backend of ``op`` on CUDA devices.

    It takes the op's arguments and returns its outputs.

    Args:
        op: with ``function`` None, ``forward`` and ``backward`` of ``kernels/<op>.py`` are registered for ``op`` and
            ``<op>_backward``.
        file, function: ``kernels/<file>.py``, of which None is ``op``, and the function in it.
        dtypes, refuse: see :class:`pgm_fast.backends.selection.Implementation`.
        prepare: what is done to each argument first; None for :func:`contiguous`.
    """
    if function is None:
        register_triton(op, op, "forward", dtypes=dtypes, refuse=refuse, prepare=prepare)
        register_triton(f"{op}_backward", op, "backward", dtypes=dtypes, refuse=refuse, prepare=prepare)
    else:
        load = partial(_load, file or op, function, prepare or contiguous)
        register(op, "triton", load, devices=("cuda",), dtypes=dtypes, refuse=refuse)


def _load(file: str, function: str, prepare: Callable[[object], object]):
    kernel = startable(getattr(importlib.import_module(f"pgm_fast.kernels.{file}"), function))

    def run(*arguments):
        first = arguments[0]
        # triton launches on the current device, whichever the tensors are on
        with torch.cuda.device_of(first if isinstance(first, Tensor) else first[0]):
            return kernel(*map(prepare, arguments))

    return run


def startable(launch: Callable) -> Callable:
    """``launch``, a function of ``kernels/``, raising :class:`~pgm_fast.errors.LaunchError` where triton cannot compile
    a kernel for the device, or where that takes more registers or shared memory than the device has."""
    from triton.compiler import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    def run(*arguments):
        try:
            return launch(*arguments)
        except (CompilationError, OutOfResources, PTXASError, RuntimeError) as error:
            # the compiler's passes raise nothing of their own
            if type(error) is RuntimeError and str(error) != "PassManager::run failed":
                raise
            raise LaunchError(str(error).strip().splitlines()[-1]) from error

    return run


def contiguous(argument):
    """Tensors and lists of tensors made contiguous; anything else as it is."""
    if isinstance(argument, Tensor):
        return argument.contiguous()
    return [contiguous(x) for x in argument] if isinstance(argument, list) else argument


def contiguous_rows(argument):
    """As :func:`contiguous`, but matrices only so far that each row is: rows may lie apart, or be one row again and
    again."""
    if isinstance(argument, Tensor) and argument.ndim == 2 and argument.stride(1) == 1:
        return argument
    return contiguous(argument)
