"""Baselines with PgM's encoders and heads: each modality alone, all of them concatenated, and the mean of their
predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..errors import ConfigError
from ..nn.contrastive import cross_modal_info_nce
from ..nn.parts import SHARED, modality_dict
from ..optim.groups import multi_rate_groups
from ..settings import check_settings
from .answers import make_answer, usable_alone
from .base import LABELLED, HeldOut, Method, ModelConfig, Output, Stage
from .components import Head, build_encoders, encode, fuse, fuse_only
from .tasks import task_loss

__all__ = [
    "Baseline",
    "BaselineConfig",
    "Ensemble",
    "Joint",
    "Unimodal",
    "WithOwnHeads",
    "alone",
    "joint_and_own",
    "mean_of_present",
]


@dataclass
class BaselineConfig:
    """Settings of the baselines; their sizes are those of :class:`~pgm_fast.methods.base.ModelConfig`."""

    # {modality, shared or "*": {encoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class Baseline(Method):
    """Encoders, one stage, and an answer of the heads that a subclass names."""

    config_class = BaselineConfig

    def __init__(
        self,
        spec: DataSpec,
        model: ModelConfig,
        config: Any,
        encoders: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(model, "model")
        self.encoders = build_encoders(spec, model, encoders)
        self.answer = make_answer(self.name, model.answer, "task", self._answering(), spec.task)

    def _answering(self) -> list[str]:
        """The heads that ``model.answer`` is of, ``task`` first where there is one."""
        return ["task"]

    def stages(self, lr: float) -> list[Stage]:
        return [Stage("main", multi_rate_groups(self, lr, self.config.rates, default=1.0))]

    def after_validation(self, scores: Mapping[str, float], held_out: HeldOut) -> bool:
        if self.answer is None or held_out.labels is None:
            return False
        return self.answer.fit(held_out.logits, held_out.labels, self._usable(held_out.presence))

    def _usable(self, presence: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """head -> bool ``[n]``: rows in which it has something to go by."""
        if not presence:
            return {}
        everywhere = torch.ones_like(next(iter(presence.values())))
        some = torch.stack([presence.get(m, everywhere) for m in self.spec.modalities]).any(0)
        return {**usable_alone(presence), "task": some}


class Joint(Baseline):
    """One head on the concatenated representations, one loss.

    Retrieval: a dual encoder, one embedding head per modality, InfoNCE.
    ``Output.unimodal[m]`` is the head with only m present, in evaluation. Losses: ``task``, ``total``.
    """

    name = "joint"
    tasks = (*LABELLED, "retrieval")

    def __init__(
        self,
        spec: DataSpec,
        model: ModelConfig,
        config: BaselineConfig,
        encoders: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__(spec, model, config, encoders)
        self.head = self.embedding_heads = None
        if spec.task != "retrieval":
            self.head = Head(model.dim * len(spec.modalities), spec.num_outputs, model, SHARED)
            return
        if len(spec.modalities) < 2:
            raise ConfigError(f"retrieval needs two modalities or more, the data has {', '.join(spec.modalities)}")
        self.embedding_heads = modality_dict({m: Head(model.dim, model.dim, model, m) for m in spec.modalities})

    def forward(self, batch: Batch, report: bool = False) -> Output:
        h = encode(self.encoders, batch, self.spec, self.model_config)
        if self.embedding_heads is not None:
            out = Output()
            out.embeddings = {
                m: nn.functional.normalize(head(h[m]), dim=-1) for m, head in self.embedding_heads.items()
            }
            loss = cross_modal_info_nce(
                out.embeddings, self.model_config.contrastive_temperature, batch.weight, batch.presence
            )
            out.losses = {"task": loss, "total": loss}
            return out
        return self._predict(h, batch)

    def _predict(self, h: dict[str, Tensor], batch: Batch) -> Output:
        """What the head says of the representations, and its loss."""
        out = Output(logits=self.head(fuse(h)))
        if not self.training:
            out.unimodal = {m: self.head(fuse_only(h, m)) for m in h}
        if batch.labels is not None:
            loss = task_loss(self.spec.task, out.logits, batch.labels, batch.weight)
            out.losses = {"task": loss, "total": loss}
        return out


class WithOwnHeads(Joint):
    """:class:`Joint` with a head of its own for each modality, whose losses count beside that of the joint one.

    Losses: ``task``, ``uni/<m>``, ``total``, their sum.
    """

    tasks = LABELLED

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: Any, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        self.uni_heads = modality_dict({m: Head(model.dim, spec.num_outputs, model, m) for m in spec.modalities})

    def _answering(self) -> list[str]:
        return ["task", *(f"uni/{m}" for m in self.spec.modalities)]

    def _predict(self, h: dict[str, Tensor], batch: Batch) -> Output:
        return joint_and_own(self, h, batch)


class _Separate(Baseline):
    """A model per modality, each trained by its own loss only; subclasses say how they answer together.

    Losses: ``uni/<m>``, and ``total``, their sum: no modality's loss reaches another's parameters. The run around them
    is shared: gradients are clipped by their joint norm, and the best epoch is that of the fused score.
    """

    def __init__(
        self,
        spec: DataSpec,
        model: ModelConfig,
        config: BaselineConfig,
        encoders: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__(spec, model, config, encoders)
        self.heads = modality_dict({m: Head(model.dim, spec.num_outputs, model, m) for m in spec.modalities})

    def forward(self, batch: Batch, report: bool = False) -> Output:
        h = encode(self.encoders, batch, self.spec, self.model_config)
        out = alone(self.heads, h, batch, self.spec.task)
        out.logits = self._together(torch.stack(list(out.unimodal.values())), batch)
        return out

    def _together(self, logits: Tensor, batch: Batch) -> Tensor:
        """``[M, n, C]`` -> ``[n, C]``."""
        raise NotImplementedError


class Unimodal(_Separate):
    """Every modality alone; the fused output is that of the modality with the best latest validation score.

    Where that modality is absent, so is the answer: it then comes from zeros.
    """

    name = "unimodal"
    written_in_steps = ()

    def __init__(
        self,
        spec: DataSpec,
        model: ModelConfig,
        config: BaselineConfig,
        encoders: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__(spec, model, config, encoders)
        self.register_buffer("best", torch.zeros(1, dtype=torch.int64))

    def _together(self, logits: Tensor, batch: Batch) -> Tensor:
        return logits.index_select(0, self.best).squeeze(0)

    def after_validation(self, scores: Mapping[str, float], held_out: HeldOut) -> bool:
        modalities = list(self.spec.modalities)
        finite = {m: scores[m] for m in modalities if m in scores and math.isfinite(scores[m])}
        before = int(self.best)
        if finite:
            self.best.fill_(modalities.index(max(finite, key=finite.get)))
        return int(self.best) != before


class Ensemble(_Separate):
    """Mean of the present modalities' logits, each modality trained alone; or together as ``model.answer`` says.

    What is common to them is their answer only: no answer is trained, ``experts`` too is a sum of heads trained alone.
    """

    name = "ensemble"

    def _answering(self) -> list[str]:
        return [f"uni/{m}" for m in self.spec.modalities]

    def _together(self, logits: Tensor, batch: Batch) -> Tensor:
        if self.answer is not None:
            heads = dict(zip((f"uni/{m}" for m in self.spec.modalities), logits, strict=True))
            return self.answer(heads, self._usable(batch.presence))
        return mean_of_present(logits, list(self.spec.modalities), batch)


def alone(heads: Mapping[str, nn.Module], h: Mapping[str, Tensor], batch: Batch, task: str) -> Output:
    """What each modality's head says of its own representation, with its loss and their sum; ``logits`` unset."""
    out = Output(unimodal={m: head(h[m]) for m, head in heads.items()})
    if batch.labels is not None:
        out.losses = {
            f"uni/{m}": task_loss(task, logits, batch.labels, batch.weight_of(m)) for m, logits in out.unimodal.items()
        }
        out.losses["total"] = torch.stack(list(out.losses.values())).sum()
    return out


def joint_and_own(method: Joint, h: Mapping[str, Tensor], batch: Batch) -> Output:
    """What the joint head of ``method`` and each modality's of its ``uni_heads`` say, with their losses and the sum."""
    task = method.spec.task
    out = alone(method.uni_heads, h, batch, task)
    out.logits = logits = method.head(fuse(h))
    if batch.labels is not None:
        loss = task_loss(task, logits, batch.labels, batch.weight)
        out.losses = {"task": loss, **out.losses, "total": loss + out.losses["total"]}
    if method.answer is not None:
        out.further = {"task": logits}
        if not method.training:
            heads = {**out.further, **{f"uni/{m}": z for m, z in out.unimodal.items()}}
            out.logits = method.answer(heads, method._usable(batch.presence))
    return out


def mean_of_present(logits: Tensor, modalities: Sequence[str], batch: Batch) -> Tensor:
    """``[M, n, C]`` -> ``[n, C]``, zeros in rows without any modality."""
    if not batch.presence:
        return logits.mean(0)
    present = torch.stack([batch.presence_of(m) for m in modalities]).unsqueeze(-1)
    return (logits * present).sum(0) / present.sum(0).clamp(min=1)
