"""From a configuration and its data to all that a run is made of: statistics, model, loaders, the machine's state."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import backends
from ..data import Loader, Normalizer
from ..data.feature_set import DataSpec, FeatureSet
from ..errors import CheckpointError, ConfigError
from ..methods import Method, build
from .config import SECTION_OF, Config
from .distributed import Ranks, connect
from .limits import explained
from .run import checkpoints
from .run.shards import has_shards
from .step.captured import why_not_captured

__all__ = ["Encoders", "Run", "machine"]

log = logging.getLogger(__name__)

_training = threading.Lock()  # held by the run that random numbers, threads and algorithms are set for

Encoders = Mapping[str, nn.Module]


@dataclass
class Run:
    """A model and the data that it meets, on one device.

    Attributes:
        config: of the run.
        features: the data.
        spec: what the model was made for.
        normalizer: of the training split; None where the data is taken as it is.
        method: the model.
        ranks: the processes.
    """

    config: Config
    features: FeatureSet
    spec: DataSpec
    normalizer: Normalizer | None
    method: Method
    ranks: Ranks

    @classmethod
    def new(cls, config: Config, features: FeatureSet, encoders: Encoders | None, ranks: Ranks) -> Run:
        """A run at its beginning: statistics of the training split, weights from the seed. Every rank calls it."""
        normalizer = None
        if config.data.standardize:
            normalizer = Normalizer.from_state_dict(ranks.on_main(lambda: Normalizer.fit(features).state_dict()))
        torch.manual_seed(config.train.seed)
        method = _build(config, features.spec, encoders).to(ranks.device)
        # The same weights everywhere, then other dropout masks on every rank.
        torch.manual_seed(config.train.seed + ranks.rank)
        return cls(config, features, features.spec, normalizer, method, ranks)

    @classmethod
    def from_checkpoint(
        cls, state: Mapping[str, Any], config: Config, features: FeatureSet, encoders: Encoders | None, ranks: Ranks
    ) -> Run:
        """The model of a checkpoint with its weights.

        Raises:
            CheckpointError: the weights do not fit, or the run had encoders of its own and they are not given.
        """
        with checkpoints.reading("modalities"):
            spec = DataSpec.from_dict(state["spec"])
        given = sorted(encoders or {})
        if given != state["encoders"]:
            wanted = ", ".join(state["encoders"]) or "none"
            raise CheckpointError(
                f"this run was trained with encoders handed in for: {wanted}; given now: "
                f"{', '.join(given) or 'none'}. Pass the same as encoders="
            )
        with checkpoints.reading("statistics"):
            normalizer = None if state["normalizer"] is None else Normalizer.from_state_dict(state["normalizer"])
        with checkpoints.reading("modalities"):
            method = _build(config, spec, encoders)
        with checkpoints.reading("weights"):
            if not has_shards(state):  # which are read when there is something to read them into
                method.load_state_dict(state["model"])
        return cls(config, features, spec, normalizer, method.to(ranks.device), ranks)

    def training_loader(self) -> Loader:
        """Shuffled batches of the training split, with modality dropout and what the pictures' settings draw.

        With ``train.capture=auto`` they stay in the same memory, unless something stands against it, which is said."""
        settings = self.config
        fixed = settings.train.capture == "auto"
        if fixed:
            reason = why_not_captured(self.method, self.ranks, settings.train, len(self.features.rows("train")))
            fixed = reason is None
            if reason is not None:
                log.warning("train.capture: steps are not captured, %s", reason)
        return self._loader(
            "train",
            settings.train.batch_size,
            True,
            shuffle=True,
            augment=True,
            modality_dropout=settings.data.modality_dropout,
            accumulate=settings.train.accumulate,
            fixed=fixed,
        )

    def loader(self, split: str, with_labels: bool = True) -> Loader:
        """Batches of a split in order, every row once."""
        return self._loader(split, self.config.train.eval_batch_size, with_labels)

    def training_loader_in_order(self) -> Loader:
        """The whole training split in order, on every rank, with nothing drawn."""
        return self._loader("train", self.config.train.eval_batch_size, True, rank=0, world=1)

    def _loader(self, split: str, batch_size: int, with_labels: bool, **more: Any) -> Loader:
        own = {"rank": self.ranks.rank, "world": self.ranks.world}
        return Loader(
            self.features,
            split,
            batch_size=batch_size,
            device=self.ranks.device,
            seed=self.config.train.seed,
            normalizer=self.normalizer,
            resident=self.config.data.resident,
            with_labels=with_labels,
            workers=self.config.train.workers,
            **{**own, **more},
        )


@contextmanager
def machine(config: Config) -> Iterator[Ranks]:
    """The state that a run wants of torch, for the block: processes, threads, backend, repeatable algorithms.

    Raises:
        ConfigError: the device is not there, or another run is being trained in this process.
        TrainingStopped: the block asks for more than the machine has, see :mod:`.limits`.
    """
    threads, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.get_deterministic_debug_mode()
    with ExitStack() as stack:
        if not _training.acquire(blocking=False):
            raise ConfigError(
                "another run is being trained in this process, and the two would draw from the same random numbers; "
                "train one after the other, or each in a process of its own"
            )
        stack.callback(_training.release)
        ranks = stack.enter_context(connect(config.train.device))
        stack.enter_context(explained(config))
        if ranks.device.type == "cuda":
            # cuBLAS reads this when its first handle is made; without it two runs may differ in the last bit.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if config.train.backend != "auto":
            stack.enter_context(backends.backend(config.train.backend))
        try:
            if config.train.threads:
                torch.set_num_threads(config.train.threads)
            # as torch.use_deterministic_algorithms, which imports torch's compiler: seconds
            torch.set_deterministic_debug_mode("warn")
            torch.utils.deterministic.fill_uninitialized_memory = (
                False  # costs a pass over every new tensor and mends no result here
            )
            yield ranks
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fill


def _build(config: Config, spec: DataSpec, encoders: Encoders | None) -> Method:
    section = getattr(config, SECTION_OF[config.method])
    unknown = [name for name in encoders or {} if name not in spec.modalities]
    if unknown:
        raise ConfigError(f"encoders are given for {', '.join(unknown)}; the data has {', '.join(spec.modalities)}")
    for name, encoder in (encoders or {}).items():
        if not isinstance(encoder, nn.Module):
            raise ConfigError(
                f"the encoder for {name} is a {type(encoder).__name__}, must be a torch.nn.Module; "
                "make an instance of it and pass that"
            )
    # Copies: two runs of one call (seeds) must not train the same modules, nor a run change what its caller holds.
    return build(config.method, spec, config.model, section, copy.deepcopy(dict(encoders)) if encoders else None)
