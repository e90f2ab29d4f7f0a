"""The compiled kernels as backends of the ops.

Those of ``pgm_fast._native`` (CPU tensors) and ``pgm_fast._cuda`` (CUDA ones) take addresses, so outputs are allocated
here; those that call torch's own products are functions of tensors, in the host path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from ..errors import LaunchError
from . import host
from .selection import register

__all__ = ["NATIVE_DTYPES", "cuda_function", "refuse_mixed_precision", "register_host", "register_native"]

NATIVE_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# Gates of a row that the CUDA kernels take (kMaxGates of csrc/cuda/partition_tiles.cuh) and neighbours of one gate.
CUDA_MAX_GATES = {torch.float64: 16384}
CUDA_MAX_GATES_ELSE = 32768
CUDA_MAX_CHUNK = 2**31 // 32 - 2


def register_native(op: str, outputs: Callable[..., tuple[Tensor, ...]], gates: int = -1) -> None:
    """Registers the compiled kernels of ``op`` as its ``native`` backend on the CPU and on CUDA devices.

    Args:
        op: its arguments are tensors, which may be None, and then numbers.
        outputs: memory for its outputs, given its arguments; the op's fake.
        gates: position among its tensors of one as wide as a row has gates.
    """

    def loader(make_call: Callable[[str], Callable]) -> Callable:
        def load():
            call = make_call(op)

            def run(*arguments):
                tensors = [x for x in arguments if x is None or isinstance(x, Tensor)]
                made = outputs(*arguments)
                call([None if x is None else x.contiguous() for x in tensors], arguments[len(tensors) :], made)
                return made

            return run

        return load

    _register(op, loader(_cpu_kernel), "cpu", refuse_mixed_precision)
    _register(op, loader(_cuda_kernel), "cuda", partial(_refuse_on_cuda, gates))


def register_host(op: str, dtypes: tuple[torch.dtype, ...] = tuple(NATIVE_DTYPES)) -> None:
    """Registers ``<host path>.<op>``, which takes and returns tensors, as the ``native`` backend of ``op`` on the
    CPU."""
    _register(op, lambda: _host_function(op), "cpu", refuse_mixed_precision, dtypes)


def _host_function(op: str) -> Callable:
    return _function(host.load(), op)


def _function(extension: ModuleType, op: str) -> Callable:
    try:
        return getattr(extension, op)
    except AttributeError as error:
        # one left over from older sources
        raise ImportError(f"needs {extension.__name__} with {op}, built from these sources; install again") from error


def _register(
    op: str,
    load: Callable[[], Callable],
    device: str,
    refuse: Callable[..., str | None],
    dtypes: tuple[torch.dtype, ...] = tuple(NATIVE_DTYPES),
) -> None:
    register(op, "native", load, devices=(device,), dtypes=dtypes, refuse=refuse)


def cuda_function(op: str) -> Callable:
    """``pgm_fast._cuda.<op>``, raising :class:`~pgm_fast.errors.LaunchError` where the device cannot start it."""
    import pgm_fast._cuda as native

    kernel = _function(native, op)

    def run(*arguments) -> None:
        try:
            kernel(*arguments)
        except native.CannotStart as error:
            raise LaunchError(str(error)) from error

    return run


def _cpu_kernel(op: str) -> Callable:
    """``call(tensors, numbers, outputs)`` on contiguous tensors of :data:`NATIVE_DTYPES`; outputs are written."""
    import pgm_fast._native as native

    kernel, threads = _function(native, op), torch.get_num_threads

    def call(tensors, numbers, outputs) -> None:
        kernel(_rows(tensors[0]), *map(_matrix, tensors), *numbers, *map(_matrix, outputs), threads())

    return call


def _cuda_kernel(op: str) -> Callable:
    """As :func:`_cpu_kernel`, on the current stream of the tensors' device."""
    kernel, current_stream = cuda_function(op), torch.cuda.current_stream

    def call(tensors, numbers, outputs) -> None:
        stream = current_stream(tensors[0].device)
        place = stream.device_index, stream.cuda_stream
        kernel(_rows(tensors[0]), *map(_matrix, tensors), *numbers, *map(_matrix, outputs), *place)

    return call


def _matrix(x: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if x is None else (x.data_ptr(), NATIVE_DTYPES[x.dtype], x.shape[-1])


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def refuse_mixed_precision(*arguments) -> str | None:
    """The kernels convert between 16-bit types and float, but not to or from double."""
    first = arguments[0].dtype
    for x in arguments[1:]:
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype is not first:
            if first is torch.float64 or x.dtype is torch.float64 or x.dtype not in NATIVE_DTYPES:
                return f"does not mix {first} with {x.dtype}"
    return None


def _refuse_on_cuda(position: int, *arguments) -> str | None:
    """Sums of a row of gates wait in the shared memory of a block."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    width, gates = tensors[0].shape[-1], tensors[position].shape[-1]
    largest = CUDA_MAX_GATES.get(tensors[0].dtype, CUDA_MAX_GATES_ELSE)
    if gates > largest:
        return f"takes at most {largest} gates of {tensors[0].dtype}, not {gates}"
    if width > gates * CUDA_MAX_CHUNK:
        return f"takes at most {CUDA_MAX_CHUNK} neighbours of one gate, not {width // gates}"
    return refuse_mixed_precision(*arguments)
