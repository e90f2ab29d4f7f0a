"""Published recipes as configurations, each value with its source in a comment: files that come with the package.

A preset names every value that its method's results depend on, so that nothing is left to this package's defaults. The
first comment of a file says what it is. Those in folders are for ``pgm-fast train``, the others for ``pgm-fast
interactions``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, did_you_mean

__all__ = ["KINDS", "names", "read", "summary", "text"]

_FOLDER = Path(__file__).parent

KINDS = {"train": "*/*.yaml", "interactions": "*.yaml"}
"""command -> where the files of its presets are."""


def names(kind: str | None = None) -> list[str]:
    """Of all presets, or those of one command: ``<method>/<data set>``, ``lsmi``."""
    patterns = KINDS.values() if kind is None else [KINDS[kind]]
    files = [path for pattern in patterns for path in _FOLDER.glob(pattern)]
    return sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in files)


def text(name: str, kind: str | None = None) -> str:
    """The file of a preset. Raises ConfigError for an unknown name, or one of another command than ``kind``."""
    known = names(kind)
    if name not in known:
        raise ConfigError(f"preset={name!r} is not allowed{did_you_mean(name, known)}; it takes {', '.join(known)}")
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def read(name: str, kind: str) -> Mapping[str, Any]:
    """The values of a preset of a command: by section for ``train``, plain for ``interactions``."""
    return yaml.safe_load(text(name, kind))


def summary(name: str) -> str:
    """The first line of its comment."""
    return text(name).split("\n", 1)[0].lstrip("# ")
