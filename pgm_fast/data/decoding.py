"""Batches of sound and picture files from processes of their own, so that training does not wait for decoders."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .preparation import Preparation
from .sampling import Plan

__all__ = ["Decoders"]


class Decoders:
    """Processes that read batches ahead, begun with the first batch and ended with this object.

    They are begun anew (``spawn``: torch's threads do not survive a fork), so that a program that trains needs its
    ``if __name__ == "__main__":``. What they give does not depend on how many they are.

    Args:
        preparation: what they read by.
        names: the modalities that they read.
        workers: how many.
        pinned: whether batches are put in memory that a CUDA device reads without waiting.
    """

    def __init__(self, preparation: Preparation, names: Sequence[str], workers: int, pinned: bool):
        self._keys = _Keys()
        self._loader = DataLoader(
            _Batches(preparation.only(names), names),
            batch_size=None,
            sampler=self._keys,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=pinned,
            multiprocessing_context="spawn",
            worker_init_fn=_leave_the_group,
            generator=torch.Generator(),  # seeds of processes are not drawn from training's random numbers
        )

    def batches(self, plans: Iterable[Plan], epoch: int) -> Iterator[tuple[Plan, dict[str, Tensor]]]:
        """Each plan with its values. Raises DataError where a file cannot be decoded."""
        kept: deque[Plan] = deque()

        def keys() -> Iterator[tuple[Plan, int]]:
            for plan in plans:
                kept.append(plan)
                yield plan, epoch

        self._keys.waiting = keys()
        for found in self._loader:
            if isinstance(found, DataError):
                raise found
            yield kept.popleft(), found


class _Keys:
    """What is to be read, in order; as a sampler of ``DataLoader``, which asks for it once per epoch."""

    waiting: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.waiting


class _Batches(Dataset):
    """Key -> values of a batch, in a process that has no other work: one thread."""

    def __init__(self, preparation: Preparation, names: Sequence[str]):
        self._preparation, self._names = preparation, list(names)

    def __getitem__(self, key: tuple[Plan, int]) -> dict[str, Tensor] | DataError:
        plan, epoch = key
        try:
            blocks = self._preparation.batch(plan, epoch, self._names, threads=1)
        except DataError as error:
            return error  # what DataLoader raises in its place says where in torch it was caught
        return {name: torch.from_numpy(block) for name, block in blocks.items()}


def _leave_the_group(worker: int) -> None:
    """Ctrl-C at a terminal reaches training alone, whose step is finished with what these read. They end with it."""
    if hasattr(os, "setsid"):
        os.setsid()
