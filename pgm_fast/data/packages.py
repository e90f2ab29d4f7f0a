"""Packages that only some sources need: imported when one is read, and named with their extra where they lack."""

from __future__ import annotations

import importlib
from types import ModuleType

from .raw import Problem, RefusedData, one_line

__all__ = ["import_package"]


def import_package(name: str, source: str, needs: str, extra: str) -> ModuleType:
    """The module ``name``.

    Args:
        name: of the module.
        source: what is read, for the message.
        needs: what needs the package, in the plural: "sound and picture files".
        extra: of pyproject.toml, which installs it.

    Raises:
        RefusedData: it cannot be imported; says why and what installs it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        message = f"{needs} need {name.partition('.')[0]}, which cannot be imported ({one_line(error)}): "
        raise RefusedData(Problem(source, "", None, f'{message}pip install "pgm-fast[{extra}]"')) from None
