"""The compiled host path: ops that reach the CPU kernels, and autograd, without a Python frame on the way.

It is an extension of its own, because it includes torch's headers and so fits one version of torch, which its name
carries. Where it was not built, or for another torch, Python's dispatch does the same work with the same numbers.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import torch

__all__ = ["load", "load_or_none", "module_name"]


def module_name() -> str:
    """Name of the extension for this version of torch; setup.py builds it under this name."""
    return "_host_" + re.sub(r"\W", "_", str(torch.__version__))


def load() -> ModuleType:
    """The extension.

    Raises:
        ImportError: it is not built for this torch, or for another CPU.
    """
    return importlib.import_module(f"pgm_fast.{module_name()}")


def load_or_none() -> ModuleType | None:
    """The extension, or None where :func:`load` raises."""
    try:
        return load()
    except (ImportError, OSError):
        return None
