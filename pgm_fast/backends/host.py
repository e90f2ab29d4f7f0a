"""The compiled host path: ops that reach the CPU kernels, and autograd, without a Python frame on the way.

It is an extension of its own, because it includes torch's headers and so fits one version of torch, which its name
carries. Where it was not built, for another torch, or from sources whose ops have other schemas, Python's dispatch
selects as ever: the partitions run on the same kernels with the same numbers, and ops whose only compiled form is in it
fall back to their references.
"""

from __future__ import annotations

import importlib
import logging
import re
import zlib
from collections.abc import Mapping
from types import ModuleType

import torch

__all__ = ["connect", "digest", "load", "load_or_none", "module_name"]

_log = logging.getLogger("pgm_fast.host")
_refused: str | None = None  # why the extension stays unused although it loads


def module_name() -> str:
    """Name of the extension for this version of torch; setup.py builds it under this name."""
    return "_host_torch_" + re.sub(r"\W", "_", str(torch.__version__))


def digest(schema: str) -> str:
    """What of an op's schema is compiled into the extension."""
    return f"{zlib.crc32(schema.encode()):08x}"


def load() -> ModuleType:
    """The extension.

    Raises:
        ImportError: it is not built for this torch, for another CPU, or for ops with other schemas.
    """
    if _refused is not None:
        raise ImportError(_refused)
    name = f"pgm_fast.{module_name()}"
    try:
        extension = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"needs the compiled host path, which was not built for torch {torch.__version__}") from error
    if not hasattr(extension, "set_python"):
        raise ImportError("needs the compiled host path, which was built from older sources; install again")
    return extension


def load_or_none() -> ModuleType | None:
    """The extension, or None where :func:`load` raises."""
    try:
        return load()
    except (ImportError, OSError):
        return None


def connect(schemas: Mapping[str, str]) -> None:
    """Puts the extension's kernels behind the ops, name -> schema. Called by ``pgm_fast/ops`` when all are defined.

    An extension that was built for another schema of one of its ops, as one left over from older sources is, stays
    unused from here on: its kernels take other arguments. That is said once.
    """
    global _refused
    extension = load_or_none()
    if extension is None:
        return
    changed = sorted(name for name, built in extension.schemas.items() if built != digest(schemas.get(name, "")))
    if changed:
        _refused = f"needs the compiled host path, which was built for another {', '.join(changed)}; install again"
        _log.warning("%s is ignored: %s", module_name(), _refused)
        return
    extension.implement()
