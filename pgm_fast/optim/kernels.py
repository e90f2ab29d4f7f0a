"""Who computes a launch: registered like the ops, so that ``pgm_fast.backend`` and ``doctor`` know them."""

from __future__ import annotations

import importlib

import torch

from .. import backends
from ..backends.native import cuda_function
from ..backends.triton import startable
from .launch import DTYPES, Launch
from .reference import run_squares, run_step

__all__ = ["SQUARES", "STEP", "run"]

SQUARES, STEP = "multi_rate_squares", "multi_rate_step"
TRITON_FUNCTIONS = {SQUARES: "squares", STEP: "step"}


def run(op: str, launch: Launch) -> None:
    """Compute ``op`` on a launch with the backend of the moment."""
    backends.run(op, (launch.sample, launch))


def _load_native(op: str):
    def load():
        import pgm_fast._native as native

        kernel, threads = getattr(native, op), torch.get_num_threads
        if op == STEP:
            return lambda sample, launch: kernel(launch.address, threads())
        return lambda sample, launch: kernel(
            launch.address, launch.partials.data_ptr(), launch.sums.data_ptr(), threads()
        )

    return load


def _load_cuda(op: str):
    def load():
        kernel, current_stream = cuda_function(op), torch.cuda.current_stream
        if op == STEP:
            return lambda sample, launch: kernel(
                launch.address, launch.finished.data_ptr(), *_place(current_stream(sample.device))
            )
        return lambda sample, launch: kernel(
            launch.address,
            launch.partials.data_ptr(),
            launch.sums.data_ptr(),
            *_place(current_stream(sample.device)),
        )

    return load


def _place(stream: torch.cuda.Stream) -> tuple[int, int]:
    return stream.device_index, stream.cuda_stream


def _load_triton(op: str):
    def load():
        kernel = startable(getattr(importlib.import_module("pgm_fast.kernels.multi_rate"), TRITON_FUNCTIONS[op]))

        def run(sample, launch):
            # triton launches on the current device, whichever the tables are on
            with torch.cuda.device_of(sample):
                kernel(launch)

        return run

    return load


for _op, _reference in ((SQUARES, run_squares), (STEP, run_step)):
    backends.register(_op, "torch", lambda reference=_reference: lambda sample, launch: reference(launch))
    backends.register(_op, "native", _load_native(_op), devices=("cpu",), dtypes=tuple(DTYPES))
    backends.register(_op, "native", _load_cuda(_op), devices=("cuda",), dtypes=tuple(DTYPES))
    backends.register(_op, "triton", _load_triton(_op), devices=("cuda",), dtypes=tuple(DTYPES))
