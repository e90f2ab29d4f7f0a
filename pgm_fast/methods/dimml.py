"""DI-MML: Detached and Interactive Multimodal Learning.

Fan et al., ACM MM 2024, arXiv 2407.19514; released code fanyunfeng-bit/DI-MML. Joint training lets the modality that
learns fastest starve the others. Here each encoder has objectives of its own, and knowledge crosses by a loss on
chosen dimensions alone. With f_m = encoder_m(x_m):

    stage 1: loss = sum_m CE(head_m(f_m)) + shared_weight * sum_m CE(shared_head(f_m))
                    + duc_weight * sum_{n != m} DUC(student m, teacher n, dimensions E_n minus E_m)   after the warm-up
    stage 2: encoders frozen, loss = CE(fusion_head([f_1 ... f_M]))
    answer:  sum_k w_k z_k over head_1 ... head_M and the fusion head, w = softmax_k(max softmax(z_k) / temperature)

E_m, the effective dimensions of m, are measured once, at the end of the warm-up (see
:mod:`pgm_fast.ops.effective_dimensions`); DUC is :func:`pgm_fast.ops.duc_loss`. Our extensions: more than two
modalities (all ordered pairs), modalities missing in some rows, negatives from all ranks, and 0 for a pair without
dimensions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..nn.distillation import cross_modal_duc
from ..nn.parts import SHARED, mark_part, modality_dict
from ..ops import EffectiveDimensions, certainty_weighted_logits
from ..optim.groups import multi_rate_groups
from ..settings import check_settings, choice, number
from .answers import make_answer, usable_alone
from .base import KEPT, OPTIMIZERS, SCHEDULES, HeldOut, Method, ModelConfig, Output, Stage
from .components import build_encoders, encode, fuse
from .tasks import task_loss

__all__ = ["DIMML", "DIMMLConfig"]


@dataclass
class DIMMLConfig:
    """Settings of DI-MML. The published ones per data set are presets, see ``pgm-fast presets``."""

    shared_weight: float = number(1.0, at_least=0)  # of the shared head's losses
    duc_weight: float = number(1.0, at_least=0)  # of the loss on chosen dimensions
    # of that loss's products, which are not normalised; 50, 10, 10, 50 as published
    temperature: float = number(10.0, above=0)
    # epochs of the first stage before that loss; the effective dimensions are measured at their end
    warmup: int = number(20, at_least=0)
    certainty_temperature: float = number(1.0, above=0)  # of the certainties in the answer; 1, 3, 1, 3 as published
    detached_epochs: int = number(0, at_least=0)  # of the first stage; 0 for train.epochs
    fusion_epochs: int = number(20, at_least=1)  # of the second stage
    # of the first stage, handed to the second: best by the answer's validation score, or last, as released
    detached_keep: str = choice("best", KEPT)
    # torch: torch's own; released: fusion head Xavier with zero bias, gains of the encoders' BatchNorm from N(1, 0.02)
    initialisation: str = choice("torch", ("torch", "released"))
    cache: bool = True  # second stage: keep the frozen encoders' outputs; false where inputs change between epochs
    optimizer: str = choice("auto", ("auto", *OPTIMIZERS))  # of both stages; auto for train.optimizer
    weight_decay: Optional[float] = number(None, at_least=0)  # null for train.weight_decay
    schedule: str = choice("auto", ("auto", *SCHEDULES))  # constant, cosine, plateau, step; auto for train.schedule
    schedule_options: dict[str, Any] = field(default_factory=dict)  # of dimml.schedule: {every: 70, factor: 0.1}
    # epochs without a better validation score that end a stage; 0 for never, as published
    patience: int = number(0, at_least=0)
    # {modality, shared or "*": {encoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class DIMML(Method):
    """DI-MML for classification with two modalities or more.

    - ``Output.logits`` is the certainty-weighted answer: of the modalities' heads in the first stage, of these and the
      fusion head in the second, where ``model.answer`` may ask for another. No answer is trained.
      ``Output.unimodal[m]`` is m's own head; ``Output.further`` holds the shared head per modality and the fusion head.
    - Where a modality is absent its representation is zero, its heads weigh nothing in losses and answers, and a pair's
      loss is taken over the rows that have both.
    - The first stage is judged, as the second, by the answer on the validation split. An epoch before the end of the
      warm-up may be its best.

    Losses: ``uni/<m>``, ``shared/<m>`` and, in training after the warm-up, ``duc``; in the second stage ``fusion``;
    ``total``.
    """

    name = "dimml"
    config_class = DIMMLConfig
    written_in_steps = ()
    tasks = ("classification",)  # effective dimensions and certainties are of classes
    least_modalities = 2

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: DIMMLConfig, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(model, "model")
        check_settings(config, self.name)
        names, dim, outputs = list(spec.modalities), model.dim, spec.num_outputs
        self.encoders = build_encoders(spec, model, encoders)
        self.heads = modality_dict({m: mark_part(nn.Linear(dim, outputs), m, "head") for m in names})
        self.shared_head = mark_part(nn.Linear(dim, outputs), SHARED, "head")
        self.fusion_head = mark_part(nn.Linear(dim * len(names), outputs), SHARED, "head")
        if config.initialisation == "released":
            _initialise(self.fusion_head, [self.encoders[m] for m in names if m not in (encoders or {})])
        heads = ["fusion", *(f"uni/{m}" for m in names)]
        self.answer = make_answer(self.name, model.answer, "task", heads, spec.task)
        self.register_buffer("fusing", torch.zeros((), dtype=torch.bool))  # whether the fusion head speaks
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))  # whether the next two hold anything
        self.register_buffer("dimension_accuracy", torch.zeros(len(names), dim))
        self.register_buffer("effective", torch.zeros(len(names), dim, dtype=torch.bool))
        self.register_load_state_dict_post_hook(_look_after_loading)
        self._cache: dict[str, Tensor] | None = None
        self._distilling = False
        self._look()

    def _look(self) -> None:
        """What the buffers say, as the host needs it in a step."""
        self._fusing = bool(self.fusing)
        names, effective = list(self.spec.modalities), self.effective.cpu()
        self._dims = {
            (n, m): (effective[i] & ~effective[j]).nonzero().squeeze(-1).to(self.effective.device)
            for i, n in enumerate(names)
            for j, m in enumerate(names)
            if i != j
        }

    def stages(self, lr: float) -> list[Stage]:
        config = self.config
        groups = multi_rate_groups(self, lr, config.rates, default=1.0)
        fusion = {id(p) for p in self.fusion_head.parameters()}
        common = {
            "optimizer": None if config.optimizer == "auto" else config.optimizer,
            "weight_decay": config.weight_decay,
            "schedule": None if config.schedule == "auto" else config.schedule,
            "schedule_options": dict(config.schedule_options),
            "patience": config.patience,
        }

        def only(wanted: bool) -> list[dict]:
            parts = [{**g, "params": [p for p in g["params"] if (id(p) in fusion) == wanted]} for g in groups]
            return [g for g in parts if g["params"]]

        return [
            Stage("detached", only(False), epochs=config.detached_epochs or None, keep=config.detached_keep, **common),
            Stage("fusion", only(True), epochs=config.fusion_epochs, **common),
        ]

    def begin_stage(self, index: int) -> None:
        self.fusing.fill_(index == 1)
        self._cache = None
        self._look()

    def train(self, mode: bool = True) -> "DIMML":
        super().train(mode)
        if self._fusing:
            # neither weights nor running statistics move, nothing is dropped
            self.encoders.eval()
        return self

    def begin_epoch(self, stage: int, epoch: int, batches: Callable[[], Iterator[Batch]]) -> None:
        if stage == 0:
            self._distilling = epoch >= self.config.warmup and self.config.duc_weight > 0
            if epoch >= self.config.warmup and not bool(self.measured):
                self._measure(batches)
                self._look()
        elif self.config.cache and self._cache is None:
            self._cache = self._features_of(batches())

    def _measure(self, batches: Callable[[], Iterator[Batch]]) -> None:
        """The effective dimensions of every modality: two passes over the training split."""
        measures: dict[str, EffectiveDimensions] = {}
        for add in ("add_to_centroids", "add_to_hits"):
            for batch in batches():
                for m, features in self._encode(batch).items():
                    if m not in measures:
                        width, classes = self.model_config.dim, self.spec.num_outputs
                        measures[m] = EffectiveDimensions(width, classes, features.dtype, features.device)
                    # every row counts the same, absent and padding ones nothing
                    present = batch.presence_of(m) & (batch.index >= 0)
                    getattr(measures[m], add)(features, batch.labels, present.float())
        for i, m in enumerate(self.spec.modalities):
            accuracy, mask = measures[m].result()
            self.dimension_accuracy[i], self.effective[i] = accuracy, mask
        self.measured.fill_(True)

    def _features_of(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """modality -> features by row number. Rows of other splits hold zeros."""
        parts = [(batch.index, self._encode(batch)) for batch in batches]
        index = torch.cat([rows for rows, _ in parts])
        size = int(index.max()) + 1 if len(index) else 0
        cache = {}
        for m in self.spec.modalities:
            features = torch.cat([encoded[m] for _, encoded in parts])
            cache[m] = features.new_zeros(size, features.shape[1]).index_copy_(0, index, features)
        return cache

    def _encode(self, batch: Batch) -> dict[str, Tensor]:
        if self._fusing and self.training and self._cache is not None:
            rows = batch.index.clamp(min=0)
            found = {m: x.index_select(0, rows) for m, x in self._cache.items()}
            return {
                m: x.masked_fill(~batch.presence[m].unsqueeze(-1), 0.0) if m in batch.presence else x
                for m, x in found.items()
            }
        if self._fusing:
            with torch.no_grad():
                return encode(self.encoders, batch, self.spec, self.model_config)
        return encode(self.encoders, batch, self.spec, self.model_config)

    def forward(self, batch: Batch, report: bool = False) -> Output:
        f = self._encode(batch)
        out = Output()
        if not self.training or not self._fusing:
            out.unimodal = {m: head(f[m]) for m, head in self.heads.items()}
            out.further = {f"shared/{m}": self.shared_head(x) for m, x in f.items()}
        if self._fusing:
            out.further["fusion"] = self.fusion_head(fuse(f))
        if not self.training:
            out.logits = self._answer(batch, out)
        if batch.labels is not None:
            out.losses = self._losses(batch, f, out)
        if report:
            out.features = {f"{m}/uni": x for m, x in f.items()}
        return out

    def after_validation(self, scores: Mapping[str, float], held_out: HeldOut) -> bool:
        if self.answer is None or held_out.labels is None or not self._fusing:
            return False
        return self.answer.fit(held_out.logits, held_out.labels, self._usable(held_out.presence))

    def _usable(self, presence: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """head -> bool ``[n]``: rows in which it has something to go by."""
        if not presence:
            return {}
        everywhere = torch.ones_like(next(iter(presence.values())))
        several = torch.stack([presence.get(m, everywhere) for m in self.heads]).any(0)
        return {**usable_alone(presence), "fusion": several}

    def _answer(self, batch: Batch, out: Output) -> Tensor:
        if self.answer is not None and self._fusing:
            heads = {**{f"uni/{m}": z for m, z in out.unimodal.items()}, "fusion": out.further["fusion"]}
            return self.answer(heads, self._usable(batch.presence))
        logits = list(out.unimodal.values())
        present = None
        if batch.presence:
            present = [batch.presence_of(m) for m in self.heads]
        if self._fusing:
            logits.append(out.further["fusion"])
            if present is not None:
                present.append(torch.stack(present).any(0))
        present = None if present is None else torch.stack(present, dim=1)
        return certainty_weighted_logits(logits, self.config.certainty_temperature, present)[0]

    def _losses(self, batch: Batch, f: dict[str, Tensor], out: Output) -> dict[str, Tensor]:
        task, config = self.spec.task, self.config
        if self._fusing:
            loss = task_loss(task, out.further["fusion"], batch.labels, batch.weight)
            return {"fusion": loss, "total": loss}
        weights = {m: batch.weight_of(m) for m in f}
        losses = {f"uni/{m}": task_loss(task, z, batch.labels, weights[m]) for m, z in out.unimodal.items()}
        total = torch.stack(list(losses.values())).sum()
        shared = {f"shared/{m}": task_loss(task, out.further[f"shared/{m}"], batch.labels, weights[m]) for m in f}
        losses.update(shared)
        total = total + config.shared_weight * torch.stack(list(shared.values())).sum()
        if self.training and self._distilling:
            losses["duc"] = cross_modal_duc(f, self._dims, config.temperature, batch.weight, batch.presence)
            total = total + config.duc_weight * losses["duc"]
        losses["total"] = total
        return losses

    def findings(self) -> dict[str, Any]:
        """The effective dimensions, where they were measured."""
        if not bool(self.measured):
            return {}
        rows = zip(self.spec.modalities, self.dimension_accuracy.tolist(), self.effective.tolist(), strict=True)
        return {"effective_dimensions": {m: {"accuracy": accuracy, "effective": mask} for m, accuracy, mask in rows}}


def _initialise(head: nn.Linear, encoders: Sequence[nn.Module]) -> None:
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    for module in (m for encoder in encoders for m in encoder.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def _look_after_loading(method: DIMML, _keys: Any) -> None:
    method._look()
