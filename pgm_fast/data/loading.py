"""Batches of one split: from a copy on the device where it fits, else gathered from memory or files beside training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import CHUNK_BYTES, CleanRows, read_rows, without_filling
from .batch import Batch
from .feature_set import SPLITS, FeatureSet
from .memory import free_bytes
from .normalize import Normalizer
from .sampling import Plan, Sampler

__all__ = ["Loader"]

RESIDENT = ("auto", "always", "never")
PREFETCH = 2  # batches gathered ahead; one in use, one ready, so that reading and training overlap


class Loader:
    """Iterates over the batches of one split.

    Args:
        features: the feature set.
        split: ``train``, ``valid`` or ``test``.
        batch_size: samples per batch over all ranks together; the last batch may be smaller.
        device: where batches go.
        seed: of the order and of modality dropout.
        shuffle: a new order each epoch; ascending rows otherwise.
        normalizer: applied to every modality; None leaves values as they are.
        modality_dropout: each modality of a sample is hidden with this probability, never all of them.
        rank, world: this process among the data-parallel ones.
        resident: ``auto`` keeps the normalised split on the device if it fits half of the free memory; ``always``;
            ``never``.
        with_labels: False leaves labels out.

    ``batches(epoch, start)`` is a function of (seed, epoch, start) alone, and gives the same bits whether the split is
    resident or not.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        features: FeatureSet,
        split: str,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool = False,
        normalizer: Normalizer | None = None,
        modality_dropout: float = 0.0,
        rank: int = 0,
        world: int = 1,
        resident: str = "auto",
        with_labels: bool = True,
    ):
        _check(split, batch_size, seed, modality_dropout, rank, world, resident)
        self.features = features
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.normalizer = normalizer
        self.with_labels = with_labels
        self.sampler = Sampler(features, split, batch_size, seed, shuffle, modality_dropout, rank, world)
        self._resident_choice = resident
        self._residents: dict[str, Tensor] | None = None
        rows = self.sampler.rows
        # Valid steps per sample of the split, for the modalities that are sequences.
        self._lengths = {
            name: _length_of(features, name, array.shape[1])[rows]
            for name, array in features.modalities.items()
            if array.ndim == 3
        }

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sampler)

    @property
    def num_rows(self) -> int:
        """Labelled rows of the split: samples, or steps where labels are per step."""
        return self.sampler.num_rows

    @property
    def resident(self) -> bool:
        """Whether batches come from a copy of the split on the device. Decided once, on the first call."""
        if self._resident_choice == "auto":
            # Ranks on one host share its memory, whereas each has a device of its own.
            sharing = self.sampler.world if self.device.type == "cpu" else 1
            self._resident_choice = "always" if self._bytes() * sharing <= free_bytes(self.device) // 2 else "never"
        return self._resident_choice == "always"

    def _bytes(self) -> int:
        steps = self._steps(np.arange(len(self.sampler.rows)))
        widths = (steps.get(name, 1) * array.shape[-1] for name, array in self.features.modalities.items())
        return 4 * len(self.sampler.rows) * sum(widths)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on. Earlier ones are not generated."""
        order, present = self.sampler.epoch(epoch)
        numbers = range(start, len(self))
        if not len(numbers):
            return
        if self.resident:
            if self._residents is None:
                self._residents = {name: self._resident_copy(name) for name in self.features.modalities}
            for number in numbers:
                plan = self.sampler.plan(number, order, present)
                yield self._finish(plan, self._select(plan))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="pgm_fast-read", initializer=self._use_device) as reader:
            waiting: deque = deque()
            upcoming = iter(numbers)
            try:
                for number in upcoming:
                    waiting.append(reader.submit(self._gather, self.sampler.plan(number, order, present)))
                    if len(waiting) >= PREFETCH:
                        yield self._finish(*waiting.popleft().result())
                while waiting:
                    yield self._finish(*waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def _steps(self, samples: np.ndarray) -> dict[str, int]:
        """Steps of each sequence that these samples need: the longest; of all modalities where labels are per step."""
        longest = {name: int(lengths[samples].max(initial=1)) for name, lengths in self._lengths.items()}
        if self.features.per_step:
            longest = dict.fromkeys(longest, max(longest.values()))
        return longest

    def _prepared(self, name: str, samples: np.ndarray, steps: int | None) -> np.ndarray:
        """float32 ``[len(samples), ...]`` of samples of the split (ascending): normalised, padding and absent 0."""
        array = self.features.modalities[name]
        block = read_rows(without_filling(array), self.sampler.rows[samples], steps)
        with np.errstate(over="ignore", invalid="ignore"):  # absent rows may hold anything
            block = self.normalizer.apply(name, block) if self.normalizer is not None else block.astype(np.float32)
        if isinstance(array, CleanRows):
            block[~np.isfinite(block)] = 0  # the mean, where values are standardised
        if name in self._lengths:
            block[np.arange(block.shape[1]) >= self._lengths[name][samples, None]] = 0
        if self.sampler.presence is not None:
            block[~self.sampler.presence[samples, self._position(name)]] = 0
        return block

    def _position(self, name: str) -> int:
        return list(self.features.modalities).index(name)

    def _resident_copy(self, name: str) -> Tensor:
        array = self.features.modalities[name]
        count = len(self.sampler.rows)
        steps = self._steps(np.arange(count)).get(name)
        shape = array.shape[1:] if steps is None else (steps, *array.shape[2:])
        copy = torch.empty((count, *shape), dtype=torch.float32, device=self.device)
        size = max(1, CHUNK_BYTES // (4 * int(np.prod(shape))))
        for begin in range(0, count, size):
            samples = np.arange(begin, min(begin + size, count))
            copy[begin : begin + len(samples)] = torch.from_numpy(self._prepared(name, samples, steps))
        return copy

    def _select(self, plan: Plan) -> dict[str, Tensor]:
        samples, steps = self._send(plan.samples), self._steps(plan.samples)
        blocks = {}
        for name, source in self._residents.items():
            block = (source[:, : steps[name]] if name in steps else source).index_select(0, samples)
            if self.sampler.modality_dropout > 0:
                hidden = self._send(~plan.present[:, self._position(name)])
                block.masked_fill_(hidden.view(-1, *[1] * (block.ndim - 1)), 0.0)
            blocks[name] = block
        return blocks

    def _use_device(self) -> None:
        """On the reading thread: pinning memory would otherwise open a context on the first device in every rank."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _gather(self, plan: Plan) -> tuple[Plan, dict[str, Tensor]]:
        """Host side of a batch, on the reading thread: rows are read ascending, then put in the order of the batch."""
        samples, place = np.unique(plan.samples, return_inverse=True)
        steps = self._steps(plan.samples)
        blocks = {}
        for name in self.features.modalities:
            block = self._prepared(name, samples, steps.get(name))[place]
            if self.sampler.modality_dropout > 0:
                block[~plan.present[:, self._position(name)]] = 0
            blocks[name] = self._pinned(block)
        return plan, blocks

    def _pinned(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _send(self, array: np.ndarray) -> Tensor:
        """To the device without waiting for it."""
        return self._pinned(array).to(self.device, non_blocking=True)

    def _finish(self, plan: Plan, inputs: dict[str, Tensor]) -> Batch:
        names = list(self.features.modalities)
        batch = Batch(
            inputs={name: block.to(self.device, non_blocking=True) for name, block in inputs.items()},
            weight=self._send(plan.weight),
            index=self._send(plan.index),
            lengths={name: self._send(lengths[plan.samples]) for name, lengths in self._lengths.items()},
        )
        if plan.present is not None:
            rows = plan.present[plan.sample_of_row]
            batch.presence = {name: self._send(rows[:, m].copy()) for m, name in enumerate(names)}
            batch.modality_weight = {name: self._send(plan.modality_weight[m]) for m, name in enumerate(names)}
        if self.features.per_step:
            steps = max(self._steps(plan.samples).values())
            batch.steps = self._send(plan.sample_of_row * steps + plan.step_of_row)
        if self.with_labels and self.features.labels is not None:
            batch.labels = self._send(self._labels(plan))
        return batch

    def _labels(self, plan: Plan) -> np.ndarray:
        """int64 ``[n]``, or float32 ``[n, C]``. Padding rows hold the label of some real row."""
        samples = self.sampler.rows[plan.samples[plan.sample_of_row]]
        labels = self.features.labels
        labels = labels[samples, plan.step_of_row] if self.features.per_step else labels[samples]
        if self.features.task == "classification":
            return labels.astype(np.int64)
        return labels.astype(np.float32).reshape(len(labels), -1)


def _length_of(features: FeatureSet, name: str, longest: int) -> np.ndarray:
    lengths = features.lengths.get(name, features.step_lengths)
    return np.full(len(features), longest, np.int64) if lengths is None else lengths.astype(np.int64)


def _check(split, batch_size, seed, modality_dropout, rank, world, resident) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split '{split}' is not one of {', '.join(SPLITS)}")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: at least 1 is needed")
    if seed < 0:
        raise ConfigError(f"seed={seed}: a whole number >= 0 is needed")
    if not 0 <= modality_dropout < 1:
        raise ConfigError(f"modality_dropout={modality_dropout}: a probability in [0, 1) is needed")
    if not 0 <= rank < world:
        raise ConfigError(f"rank={rank} of world={world}: 0 <= rank < world is needed")
    if resident not in RESIDENT:
        raise ConfigError(f"resident='{resident}' is not one of {', '.join(RESIDENT)}")
