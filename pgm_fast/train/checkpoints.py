"""Checkpoints: written beside, flushed to the disk and renamed; read without running what they hold."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .files import atomic_write

__all__ = ["FORMAT", "load", "save"]

FORMAT = "pgm_fast.checkpoint.1"


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, plain containers); ``path`` is at every moment the old checkpoint or the whole new one.

    Raises:
        CheckpointError: the disk is full or refuses; what was at ``path`` is still there.
    """
    with atomic_write(path, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with ``weights_only=True``: a file cannot run code.

    Raises:
        CheckpointError: missing, truncated, or not a checkpoint of this engine; says what to try.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; {_instead(path)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({_reason(path)}); {_instead(path)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this engine ({FORMAT}); {_instead(path)}")
    return state


def _reason(path: Path) -> str:
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    if not zipfile.is_zipfile(path):
        return f"it is truncated or of another kind, {size} bytes"
    return "it is damaged, or holds more than tensors and plain values"


def _instead(path: Path) -> str:
    """The next thing to do about an unusable checkpoint."""
    others = [
        p
        for p in sorted(path.parent.glob("*.pt"))
        if p.name != path.name and p.stat().st_size and zipfile.is_zipfile(p)
    ]
    run = path.parent.parent
    if path.name == "last.pt" and any(p.name == "best.pt" for p in others):
        return f"best.pt beside it is whole: use it with pgm-fast evaluate {run}, or train again into another folder"
    if others:
        return f"{', '.join(p.name for p in others)} beside it can be used instead"
    return "give the folder of a run, or train again into another folder"
