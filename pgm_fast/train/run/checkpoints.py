"""Checkpoints: written beside, flushed to the disk and renamed; verified, and read without running what they hold."""

from __future__ import annotations

import os
import shlex
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, PgmFastError
from .files import atomic_write, second_name

__all__ = ["FORMAT", "damage", "instead", "keep", "load", "load_run", "reading", "save"]

FORMAT = "pgm_fast.checkpoint.1"

_NUMBER = (int, float)
_RUN = {
    "config": str,
    "spec": {"modalities": dict, "task": str, "num_outputs": int, "per_step": bool},
    "data": dict,
    "normalizer": (dict, type(None)),
    "encoders": list,
    "world": int,
    "class_names": (list, type(None)),
    "model": dict,
    "position": {"stage": int, "stage_epoch": int, "epoch": int, "step": int},
    "best": {"epoch": int, "score": _NUMBER, "loss": _NUMBER, "since": int},
}
"""What every checkpoint of a run holds: its keys, nested where their keys matter, and the types of the values."""

_GOING_ON = {
    "position": {"seconds": _NUMBER, "train_seconds": _NUMBER, "skipped": int},
    "records": str,
    "optimizer": dict,
    "schedule": dict,
    "generators": list,
    "epoch": {"losses": {"names": list, "table": (torch.Tensor, type(None))}, "counts": torch.Tensor, "seconds": float},
}
"""What last.pt holds besides."""


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, plain containers); ``path`` is at every moment the old checkpoint or the whole new one.

    Raises:
        CheckpointError: the disk is full or refuses; what was at ``path`` is still there.
    """
    with atomic_write(path, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def keep(path: Path, name: Path) -> None:
    """Let the checkpoint at ``path`` have a second name, in place of what is there, if it proves readable.

    Raises:
        CheckpointError: as :func:`save`.
    """
    if path.is_file() and damage(path) is None:
        second_name(path, name)


def damage(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint; None where all are as they were written.

    The archive has a checksum of every tensor and of the rest, which ``torch.load`` does not look at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception:  # whatever a damaged header makes of itself
        size = path.stat().st_size
        return f"it is truncated or of another kind, {size} bytes" if size else "it is empty"
    return f"it is damaged: the checksum of {damaged} does not match" if damaged is not None else None


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with ``weights_only=True``: a file cannot run code.

    Raises:
        CheckpointError: missing, truncated, damaged, or not a checkpoint of this engine; says what to try.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; {instead(path)}")
    reason, cause = damage(path), None
    if reason is None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the content of a foreign archive makes of itself
            reason, cause = "it is damaged, or holds more than tensors and plain values", error
    if reason is not None:
        raise CheckpointError(f"checkpoint {path} cannot be read ({reason}); {instead(path)}") from cause
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this engine ({FORMAT}); {instead(path)}")
    return state


def load_run(path: str | Path, going_on: bool = False) -> dict[str, Any]:
    """As :func:`load`, of a run: what it must hold is there and of the right kind.

    Args:
        path: of the checkpoint.
        going_on: whether training is to go on from it, which needs more (last.pt has it, best.pt has not).

    Raises:
        CheckpointError: as :func:`load`, or names what is missing or of another kind.
    """
    path = Path(path)
    state = load(path)
    problem = _misfit(state, _RUN) or (_misfit(state, _GOING_ON) if going_on else None)
    if problem is not None:
        raise CheckpointError(f"checkpoint {path} does not fit a run: {problem}; {instead(path)}")
    return state


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Content of a checkpoint is put to use in the block: where it does not fit, that is a CheckpointError."""
    try:
        yield
    except PgmFastError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the checkpoint's {what} do not fit this run ({type(error).__name__}: {reason}); "
            "use another checkpoint, or train again into another folder"
        ) from error


def _misfit(value: Any, wanted: Any, name: str = "") -> str | None:
    if isinstance(wanted, Mapping):
        if not isinstance(value, Mapping):
            return f"{name} is a {type(value).__name__}, must be a dict"
        for key, kind in wanted.items():
            inner = f"{name}.{key}" if name else key
            if key not in value:
                return f"{inner} is missing"
            if (problem := _misfit(value[key], kind, inner)) is not None:
                return problem
        return None
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return None
    names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    return f"{name} is a {type(value).__name__}, must be {names}"


def instead(path: Path) -> str:
    """The next thing to do about an unusable checkpoint."""
    others = [p for p in sorted(path.parent.glob("*.pt")) if p.name != path.name and damage(p) is None]
    if not others or path.parent.name != "checkpoints":
        return "give the folder of a run, or train again into another folder"
    best = next((p for p in others if p.name == "best.pt"), others[0])
    run = shlex.quote(os.fspath(path.parent.parent))
    option = "" if best.name == "best.pt" else f" --checkpoint {best.stem}"
    use = f"pgm-fast evaluate {run}{option}"
    return f"{best.name} beside it is whole: use it with {use}, or train again into another folder"
