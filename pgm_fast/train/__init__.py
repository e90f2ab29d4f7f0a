"""Training from feature files to a report: the loop, its checkpoints, its metrics and its command line's functions.

Names are imported at first use: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "fit": "jobs",
    "fit_seeds": "jobs",
    "resume": "jobs",
    "evaluate": "trained",
    "predict": "trained",
    "extract_features": "trained",
    "write_comparison": "report.compare",
    "Config": "config",
    "DataConfig": "config",
    "TrainConfig": "config",
    "Predictions": "scores.predictions",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
