"""The contract between a method (model + losses + stages) and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..errors import ConfigError
from ..nn.encoders import ENCODERS
from ..settings import choice, number
from .answers import ANSWERS

__all__ = [
    "KEPT",
    "LABELLED",
    "MONITORS",
    "OPTIMIZERS",
    "SCHEDULES",
    "HeldOut",
    "Method",
    "ModelConfig",
    "Output",
    "Stage",
]

OPTIMIZERS = ("adamw", "sgd")
"""What a stage may name; sgd has momentum 0.9."""

SCHEDULES: dict[str, dict[str, float | str]] = {
    "constant": {},
    "cosine": {},
    "plateau": {"factor": 0.3, "patience": 5, "monitor": "score"},
    "step": {"factor": 0.1, "every": 30},
}
"""What a stage may name -> its options and their defaults, see :class:`~pgm_fast.train.step.optimizers.Schedule`."""

MONITORS = ("score", "loss")
"""What a plateau watches of the fused output on validation: the monitored metric, the task's loss."""

KEPT = ("best", "last")
"""Which epoch's weights a stage hands on: that of the best validation score, or its last."""

LABELLED = ("classification", "multilabel", "regression")
"""The tasks with something to predict, which one modality can learn alone."""


@dataclass
class ModelConfig:
    """Sizes and settings that every method shares, so that comparisons are fair.

    Attributes:
        dim: width d of each modality's representation.
        encoder: ``auto`` (mlp for vectors, gru for sequences, resnet18 for pictures and spectrograms), ``mlp``,
            ``gru``, ``transformer`` or ``resnet18``; one name for all modalities.
        hidden: width inside the encoder.
        layers: number of hidden layers of the encoder.
        heads: attention heads, where there is attention. Must divide ``hidden`` and ``dim``.
        dropout: in [0, 1).
        contrastive_temperature: of the similarities in the retrieval loss, > 0.
        projection: ``linear``, the layer from resnet18's 512 pooled features to ``dim``, or ``none``: those features,
            and ``dim`` is 512.
        normalize: whether each encoder's output passes a LayerNorm without parameters; None: in classification, where
            it lifts every method on most sets, and not elsewhere.
        recompute: whether what each encoder computes on its way is not kept for the backward pass but computed again
            there (activation checkpointing, Chen et al. 2016): memory for one encoder's at a time, for another pass
            forth of each.
        answer: how a method's heads answer together, one of :data:`~pgm_fast.methods.answers.ANSWERS`; ``auto`` is the
            method's own way.
    """

    dim: int = number(64, at_least=1)
    encoder: str = choice("auto", ("auto", *ENCODERS))
    hidden: int = number(128, at_least=1)
    layers: int = number(1, at_least=1)
    heads: int = number(4, at_least=1)
    dropout: float = number(0.1, at_least=0, below=1)
    contrastive_temperature: float = number(0.1, above=0)
    projection: str = choice("linear", ("linear", "none"))
    normalize: Optional[bool] = None  # null: on for classification
    answer: str = choice("auto", ANSWERS)
    recompute: bool = False  # what encoders compute is not kept but computed again in the backward pass


@dataclass
class Stage:
    """One phase of training with its own optimizer.

    Attributes:
        name: written to metrics and checkpoints.
        epochs: how many, None for ``train.epochs``.
        groups: param groups for the optimizer (each with ``params``, ``lr``, ``name``); parameters in none of them are
            frozen.
        optimizer: name registered in ``train/step/optimizers.py``, None for ``train.optimizer``.
        weight_decay: None for ``train.weight_decay``.
        schedule: ``constant``, ``cosine``, ``plateau`` or ``step``, None for ``train.schedule``.
        schedule_options: settings of that schedule, see :class:`~pgm_fast.train.step.optimizers.Schedule`.
        patience: epochs without a better validation score before the stage ends, 0 for never, None for
            ``train.patience``.
        keep: one of :data:`KEPT`, None for ``train.keep``.
    """

    name: str
    groups: list[dict]
    epochs: int | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    schedule_options: dict[str, float | str] = field(default_factory=dict)
    patience: int | None = None
    keep: str | None = None


@dataclass
class Output:
    """What one forward pass of a method gives. Rows as in :class:`~pgm_fast.data.batch.Batch`.

    Attributes:
        logits: fused ``[n, num_outputs]``; None for retrieval.
        unimodal: modality -> ``[n, num_outputs]``: the prediction from that modality alone.
        further: name -> ``[n, num_outputs]``: predictions of other heads, scored beside the fused one. A name that ends
            in ``/<modality>`` counts only where that modality is present.
        embeddings: retrieval: modality -> ``[n, e]``, unit length.
        losses: named scalars, unweighted, plus ``total``, the one to minimise. Empty without labels.
        shares: modality -> ``[n, K]`` gate mass per partition and row (K = 2: uni, paired; K = 4: uni-only,
            paired-only, shared, unused). Only when asked for with ``report=True``; empty for methods without a
            partitioner.
        gates: component -> ``[n]``, what part of the fused output it gives in each row; together 1. DMIL:
            ``unique/<modality>``, ``redundant``, ``synergistic``. Empty for methods that weigh no components.
        features: ``<modality>/<uni|paired>`` -> ``[n, *]``, for projections and ``extract_features``. Only with
            ``report=True``.
    """

    logits: Tensor | None = None
    unimodal: dict[str, Tensor] = field(default_factory=dict)
    further: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    gates: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class HeldOut:
    """What a method's heads said about the rows of the validation split, on the CPU.

    Attributes:
        logits: name as in ``Output.further``, or ``uni/<modality>`` for ``Output.unimodal`` -> ``[n, num_outputs]``.
        labels: int64 ``[n]`` or float ``[n, num_outputs]``; None for retrieval.
        presence: modality -> bool ``[n]``; a modality that is missing here is present in all rows.
    """

    logits: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    presence: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """Base of the systems. A subclass is an ``nn.Module`` whose forward maps a batch to an :class:`Output`.

    Args:
        spec: what the data looks like.
        model: the shared sizes.
        config: the method's own dataclass.
        encoders: modality -> module that replaces the built-in encoder. Called as ``module(x)`` for vectors and
            ``module(x, lengths)`` for sequences; returns ``[B, dim]``, or ``[B, T, dim]`` where ``spec.per_step``.

    Attributes:
        name: what ``--method`` takes.
        config_class: its settings. Methods may share one.
        tasks: those that it does.
        least_modalities: how many its components or losses are of.
        written_in_steps: names of the buffers that a step of training writes, said by every class for itself; one that
            says nothing has all its buffers guarded in every step.
        turns: updates per batch, each after a forward and a backward pass of its own, see :meth:`begin_turn`.

    Raises:
        ConfigError: data of another task or of too few modalities.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    tasks: ClassVar[tuple[str, ...]] = LABELLED
    least_modalities: ClassVar[int] = 1
    turns: int = 1

    def __init__(self, spec: DataSpec, model: ModelConfig, config, encoders: Mapping[str, nn.Module] | None = None):
        super().__init__()
        if spec.task not in self.tasks:
            raise ConfigError(
                f"method {self.name} does {', '.join(self.tasks)}, the data's task is {spec.task}: use joint or pgm"
            )
        if len(spec.modalities) < self.least_modalities:
            raise ConfigError(
                f"method {self.name} needs two modalities or more, the data has {', '.join(spec.modalities)}: "
                "use unimodal"
            )
        self.spec = spec
        self.model_config = model
        self.config = config

    def forward(self, batch: Batch, report: bool = False) -> Output:
        """One pass. Losses are present when ``batch.labels`` is, and always for retrieval. No host synchronisation."""
        raise NotImplementedError

    def stages(self, lr: float) -> list[Stage]:
        """The phases of training at base learning rate ``lr``; most methods have one. Raises ConfigError for wrong
        rates."""
        raise NotImplementedError

    def begin_stage(self, index: int) -> None:
        """Called before a stage's first step and after a checkpoint of that stage is loaded: freeze what must be
        frozen."""

    def begin_epoch(self, stage: int, epoch: int, batches: Callable[[], Iterator[Batch]]) -> None:
        """Called before the first step of every epoch, in evaluation mode and without gradients.

        It is called again when training is taken up inside the epoch, with the weights of that moment: what is decided
        from weights must be kept in buffers and not be decided twice.

        Args:
            stage, epoch: numbers from 0, the epoch's within its stage.
            batches: the training split in its order, every row once, nothing hidden by modality dropout. Every rank
                gets the whole split.
        """

    def begin_turn(self, turn: int) -> None:
        """Called in training before the forward pass of each of the ``turns`` updates of a batch, with its number.

        A turn may leave parameters without gradient; they are not updated in it. The losses of the turns make up those
        of the batch.
        """

    def backward(self, total: Tensor, scale: Tensor | None = None) -> None:
        """The gradients of the total loss of a batch added to ``.grad``, where they are averaged over ranks.

        Called once for each of the batches that make an update or turn (``train.accumulate``), whose losses add up.

        Args:
            scale: factor of the gradients that are left in ``.grad``, for float16; None for 1. They are divided by it
                before :meth:`after_backward`.
        """
        (total if scale is None else total * scale).backward()

    def after_backward(self, seed: int) -> None:
        """Called once an update, after :meth:`backward` and before gradients are clipped, on every rank with the same
        gradients: they may be changed here, in the same way on every rank. No host synchronisation.

        Args:
            seed: for random numbers; the same on every rank, another one for every update of a run.
        """

    def after_validation(self, scores: Mapping[str, float], held_out: HeldOut) -> bool:
        """Called after every validation, on every rank with the same values; whether answers have changed by it.

        What is concluded must be kept in buffers. The epoch is judged by the answers as they are afterwards.

        Args:
            scores: modality -> its primary score, larger is better.
            held_out: what the heads said.
        """
        return False

    def findings(self) -> dict[str, Any]:
        """What the method has found out about the data, for report.json and the plots: plain containers by name."""
        return {}
