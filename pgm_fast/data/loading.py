"""Batches of one split: from a copy on the device where it fits, else gathered from memory or files beside training, by
a thread or by processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .arrays import CHUNK_BYTES
from .batch import Batch
from .decoding import Decoders
from .feature_set import SPLITS, FeatureSet
from .media import MediaRows
from .memory import free_bytes
from .normalize import Normalizer
from .preparation import Preparation
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
        accumulate: batches that make one update. Their losses and gradients add up to those of the joined batch: the
            row weights of all of them together sum to 1.
        resident: ``auto`` keeps the normalised split on the device if it fits half of the free memory; ``always``;
            ``never``. What varies from epoch to epoch is not kept.
        with_labels: False leaves labels out.
        augment: training: pictures that are to be drawn at random are, anew in each epoch.
        workers: processes that decode sound and picture files where they are not resident; 0 for a thread.
        fixed: every batch is the same :class:`Batch` of the same tensors, written anew; one of fewer samples is padded
            with rows of weight 0. Not with sequences, whose steps differ.

    ``batches(epoch, start)`` is a function of (seed, epoch, start) alone, and gives the same bits whether the split is
    resident or not, and by however many workers.

    Raises:
        ConfigError: an argument is out of range, or ``always`` is asked of what varies.
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
        accumulate: int = 1,
        resident: str = "auto",
        with_labels: bool = True,
        augment: bool = False,
        workers: int = 0,
        fixed: bool = False,
    ):
        _check(split, batch_size, seed, modality_dropout, rank, world, accumulate, resident, workers)
        self.features = features
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.with_labels = with_labels
        self.sampler = Sampler(
            features, split, batch_size, seed, shuffle, modality_dropout, rank, world, accumulate, fixed
        )
        rows, hides = self.sampler.rows, self.sampler.modality_dropout > 0
        self._prepare = Preparation(features, rows, self.sampler.presence, normalizer, seed, augment, hides)
        if self._prepare.varies and resident == "always":
            raise ConfigError(
                "resident='always' would keep pictures that are drawn anew in each epoch; give auto or never"
            )
        self._resident_choice = "never" if self._prepare.varies else resident
        self._residents: dict[str, Tensor] | None = None
        self._workers = workers
        if fixed and self._prepare.lengths:
            raise ConfigError("fixed=True would give every batch the same steps, and sequences differ in theirs")
        self._fixed: dict[str, Tensor] | None = {} if fixed else None  # by where in the batch they are
        self._batch: Batch | None = None
        self._decoders: Decoders | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sampler)

    @property
    def fixed(self) -> bool:
        """Whether every batch is in the same memory."""
        return self._fixed is not None

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
        steps = self._prepare.steps(np.arange(len(self.sampler.rows)))
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
        plans = (self.sampler.plan(number, order, present) for number in numbers)
        decoded = [name for name, array in self.features.modalities.items() if isinstance(array, MediaRows)]
        read = self._by_processes(plans, epoch, decoded) if self._workers and decoded else self._by_thread(plans, epoch)
        for plan, blocks in read:
            yield self._finish(plan, blocks)

    def _by_thread(self, plans: Iterator[Plan], epoch: int) -> Iterator[tuple[Plan, dict[str, Tensor]]]:
        with ThreadPoolExecutor(1, thread_name_prefix="pgm_fast-read", initializer=self._use_device) as reader:
            waiting: deque = deque()
            try:
                for plan in plans:
                    waiting.append(reader.submit(self._gather, plan, epoch, list(self.features.modalities)))
                    if len(waiting) >= PREFETCH:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _by_processes(
        self, plans: Iterator[Plan], epoch: int, decoded: list[str]
    ) -> Iterator[tuple[Plan, dict[str, Tensor]]]:
        """Files are decoded by them, what is in memory is gathered here."""
        if self._decoders is None:
            self._decoders = Decoders(self._prepare, decoded, self._workers, self.device.type == "cuda")
        others = [name for name in self.features.modalities if name not in decoded]
        for plan, blocks in self._decoders.batches(plans, epoch):
            blocks = {**blocks, **self._gather(plan, epoch, others)[1]}
            yield plan, {name: blocks[name] for name in self.features.modalities}

    def _resident_copy(self, name: str) -> Tensor:
        array = self.features.modalities[name]
        count = len(self.sampler.rows)
        steps = self._prepare.steps(np.arange(count)).get(name)
        shape = array.shape[1:] if steps is None else (steps, *array.shape[2:])
        copy = torch.empty((count, *shape), dtype=torch.float32, device=self.device)
        size = max(1, CHUNK_BYTES // (4 * int(np.prod(shape))))
        for begin in range(0, count, size):
            samples = np.arange(begin, min(begin + size, count))
            copy[begin : begin + len(samples)] = torch.from_numpy(self._prepare.values(name, samples, steps, epoch=0))
        return copy

    def _select(self, plan: Plan) -> dict[str, Tensor]:
        samples, steps = self._send(plan.samples), self._prepare.steps(plan.samples)
        blocks = {}
        for name, source in self._residents.items():
            source = source[:, : steps[name]] if name in steps else source
            if self._fixed is None:
                block = source.index_select(0, samples)
            else:
                block = self._place(f"inputs/{name}", (len(samples), *source.shape[1:]), source.dtype)
                torch.index_select(source, 0, samples, out=block)
            if self.sampler.modality_dropout > 0:
                hidden = self._send(~plan.present[:, self._prepare.position(name)])
                block.masked_fill_(hidden.view(-1, *[1] * (block.ndim - 1)), 0.0)
            blocks[name] = block
        return blocks

    def _use_device(self) -> None:
        """On the reading thread: pinning memory would otherwise open a context on the first device in every rank."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _gather(self, plan: Plan, epoch: int, names: list[str]) -> tuple[Plan, dict[str, Tensor]]:
        """Host side of a batch, on the thread that reads."""
        blocks = self._prepare.batch(plan, epoch, names)
        return plan, {name: self._pinned(block) for name, block in blocks.items()}

    def _pinned(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _send(self, array: np.ndarray) -> Tensor:
        """To the device without waiting for it."""
        return self._pinned(array).to(self.device, non_blocking=True)

    def _place(self, where: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The memory of a fixed batch's part; what the parts before hold stays as it is."""
        if where not in self._fixed:
            self._fixed[where] = torch.empty(shape, dtype=dtype, device=self.device)
        return self._fixed[where]

    def _put(self, where: str, value: np.ndarray | Tensor) -> Tensor:
        """A part of a batch on the device."""
        host = self._pinned(value) if isinstance(value, np.ndarray) else value
        if self._fixed is None:
            return host.to(self.device, non_blocking=True)
        place = self._place(where, tuple(host.shape), host.dtype)
        return place if place is host else place.copy_(host, non_blocking=True)

    def _finish(self, plan: Plan, inputs: dict[str, Tensor]) -> Batch:
        batch = self._filled(plan, inputs)
        if self._fixed is None:
            return batch
        if self._batch is None:
            self._batch = batch
        self._batch.rows = batch.rows
        return self._batch

    def _filled(self, plan: Plan, inputs: dict[str, Tensor]) -> Batch:
        names = list(self.features.modalities)
        batch = Batch(
            inputs={name: self._put(f"inputs/{name}", block) for name, block in inputs.items()},
            weight=self._put("weight", plan.weight),
            index=self._put("index", plan.index),
            lengths={
                name: self._put(f"lengths/{name}", of[plan.samples]) for name, of in self._prepare.lengths.items()
            },
            rows=plan.rows,
        )
        if plan.present is not None:
            rows = plan.present[plan.sample_of_row]
            batch.presence = {name: self._put(f"presence/{name}", rows[:, m]) for m, name in enumerate(names)}
            batch.modality_weight = {
                name: self._put(f"weight/{name}", plan.modality_weight[m]) for m, name in enumerate(names)
            }
        if self.features.per_step:
            steps = max(self._prepare.steps(plan.samples).values())
            batch.steps = self._put("steps", plan.sample_of_row * steps + plan.step_of_row)
        if self.with_labels and self.features.labels is not None:
            batch.labels = self._put("labels", self._labels(plan))
        return batch

    def _labels(self, plan: Plan) -> np.ndarray:
        """int64 ``[n]``, or float32 ``[n, C]``. Padding rows hold the label of some real row."""
        samples = self.sampler.rows[plan.samples[plan.sample_of_row]]
        labels = self.features.labels
        labels = labels[samples, plan.step_of_row] if self.features.per_step else labels[samples]
        if self.features.task == "classification":
            return labels.astype(np.int64)
        return labels.astype(np.float32).reshape(len(labels), -1)


def _check(split, batch_size, seed, modality_dropout, rank, world, accumulate, resident, workers) -> None:
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
    if accumulate < 1:
        raise ConfigError(f"accumulate={accumulate}: at least 1 is needed")
    if resident not in RESIDENT:
        raise ConfigError(f"resident='{resident}' is not one of {', '.join(RESIDENT)}")
    if workers < 0:
        raise ConfigError(f"workers={workers}: a whole number >= 0 is needed")
