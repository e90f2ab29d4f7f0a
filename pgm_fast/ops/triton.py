"""The Triton kernels of ``kernels/`` as a backend of ops on CUDA devices."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from .. import backends
from .native import refuse_mixed_precision

__all__ = ["TRITON_DTYPES", "register_triton"]

TRITON_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def register_triton(op: str) -> None:
    """Registers ``forward`` and ``backward`` of ``kernels/<op>.py`` as the ``triton`` backend of ``op`` and
    ``<op>_backward`` on CUDA devices.

    Both take the op's arguments, tensors made contiguous here, and return its outputs.
    """
    for name, function in ((op, "forward"), (f"{op}_backward", "backward")):
        backends.register(
            name,
            "triton",
            lambda function=function: _load(op, function),
            devices=("cuda",),
            dtypes=TRITON_DTYPES,
            refuse=refuse_mixed_precision,
        )


def _load(op: str, function: str):
    kernel = getattr(importlib.import_module(f"pgm_fast.kernels.{op}"), function)

    def run(*arguments):
        # triton launches on the current device, whichever the tensors are on
        with torch.cuda.device_of(arguments[0]):
            return kernel(*(x.contiguous() if isinstance(x, Tensor) else x for x in arguments))

    return run
