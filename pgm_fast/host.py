"""The compiled host path: ops that reach the CPU kernels, and autograd, without a Python frame on the way.

It is an extension of its own, because it includes torch's headers and so fits one version of torch, which its name
carries. Where it was not built, or for another torch, Python's dispatch selects as ever: the partitions run on the same
kernels with the same numbers, and ops whose only compiled form is in it fall back to their references.
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
    name = f"pgm_fast.{module_name()}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"needs the compiled host path, which was not built for torch {torch.__version__}") from error


def load_or_none() -> ModuleType | None:
    """The extension, or None where :func:`load` raises."""
    try:
        return load()
    except (ImportError, OSError):
        return None
