"""What a machine or a layer cannot do, said in one line with the setting to change instead of torch's traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import BackendError, TrainingStopped
from .config import Config
from .run.folder import RunFolder

__all__ = ["explained"]

_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "can't start new thread",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_ONE_ROW = "Expected more than 1 value per channel when training"


@contextmanager
def explained(config: Config, training: bool = True) -> Iterator[None]:
    """Memory that runs out in the block, and a BatchNorm that is left with one row, end it as TrainingStopped; a
    backend that was asked for and cannot serve ends it as BackendError, with the setting that asked.

    Args:
        config: of the run.
        training: whether the run is being trained, rather than a trained model applied.
    """
    try:
        yield
    except BackendError as error:
        if config.train.backend == "auto" or not training:
            raise
        raise BackendError(
            f"train.backend={config.train.backend} cannot train this: {error}; set train.backend=auto, which takes for "
            "each operation what serves it, and train into another folder or with --overwrite (overwrite=True)"
        ) from error
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        if _is_memory(error):
            raise TrainingStopped(_memory(config, training)) from error
        if _ONE_ROW in str(error):
            raise TrainingStopped(
                f"a batch normalisation was left with one row (train.batch_size={config.train.batch_size}); train into "
                "another folder with a train.batch_size that leaves more for the last batch, or normalise within rows, "
                "as LayerNorm and GroupNorm do"
            ) from error
        raise


def _is_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (OSError, RuntimeError)) and any(sign in str(error) for sign in _NO_MEMORY)
    )


def _memory(config: Config, training: bool) -> str:
    if not training:
        return "memory ran out while the model was applied; free some, or give fewer rows with split or data"
    keys = {
        "train.batch_size": config.train.batch_size,
        "train.eval_batch_size": config.train.eval_batch_size,
        "model.dim": config.model.dim,
        "model.hidden": config.model.hidden,
    }
    smaller = ", ".join(f"{key} (now {value})" for key, value in keys.items())
    others = "" if config.model.recompute else "model.recompute=true, "
    if config.train.strategy != "fsdp" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        others += "train.strategy=fsdp, "
    folder = RunFolder(config.out)
    kept = f", or free memory and go on with {folder.resume_command}" if folder.last.is_file() else ""
    return (
        f"memory ran out; train into another folder with a smaller {smaller}, or with {others}data.resident=never{kept}"
    )
