"""Encoders that learn alone first, then together.

The baseline that the field calls uni-pretrained, finetuned or frozen (Kontras et al., NeurIPS 2025, arXiv 2411.07335,
where it beats most methods that balance modalities; Du et al., ICML 2023, arXiv 2305.01233):

    stage 1: loss = sum_m loss(head_m(encoder_m(x_m)))                  no modality's loss reaches another's encoder
    stage 2: loss = loss(head([encoder_1(x_1) ... encoder_M(x_M)]))     from these encoders, which learn on or stay

Ours: the encoders of stage 2 are those of one epoch, the best of the mean of the modalities' logits on validation, and
not each of its own best epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..nn.parts import modality_dict
from ..optim.groups import multi_rate_groups
from ..settings import check_settings, number
from .base import LABELLED, HeldOut, ModelConfig, Output, Stage
from .baselines import Joint, alone, mean_of_present
from .components import Head, encode

__all__ = ["AloneFirst", "Pretrained", "PretrainedConfig"]


@dataclass
class PretrainedConfig:
    """Settings of the uni-pretrained baseline."""

    alone_epochs: int = number(0, at_least=0)  # of the first stage; 0 for train.epochs
    frozen: bool = False  # the second stage trains the head on the concatenation only
    # {modality, shared or "*": {encoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class AloneFirst(Joint):
    """:class:`~pgm_fast.methods.baselines.Joint` after a stage in which every modality learns alone.

    In that stage the answer is the mean of the present modalities' logits.

    Losses: ``uni/<m>``, ``total`` in the first stage; those of a subclass in the second.
    """

    tasks = LABELLED
    last_stage = 1

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: Any, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(config, self.name)
        self.uni_heads = modality_dict({m: Head(model.dim, spec.num_outputs, model, m) for m in spec.modalities})
        self.register_buffer("together", torch.zeros((), dtype=torch.bool))  # whether the second stage has begun
        self._together = False  # the same, on the host
        self.register_load_state_dict_post_hook(lambda method, _: method._look())

    def _look(self) -> None:
        self._together = bool(self.together)

    @property
    def learning_alone(self) -> nn.ModuleDict:
        """The encoders of the first stage."""
        return self.encoders

    def begin_stage(self, index: int) -> None:
        self.together.fill_(index == self.last_stage)
        self._look()

    def after_validation(self, scores: Mapping[str, float], held_out: HeldOut) -> bool:
        return self._together and super().after_validation(scores, held_out)

    def stages(self, lr: float) -> list[Stage]:
        groups = multi_rate_groups(self, lr, self.config.rates, default=1.0)
        first = {id(p) for part in (self.learning_alone, self.uni_heads) for p in part.parameters()}
        second = {id(p) for part in self.trained_together() for p in part.parameters()}

        def only(wanted: set[int]) -> list[dict]:
            parts = [{**g, "params": [p for p in g["params"] if id(p) in wanted]} for g in groups]
            return [g for g in parts if g["params"]]

        return [
            Stage("alone", only(first), epochs=self.config.alone_epochs or None),
            Stage("together", only(second)),
        ]

    def trained_together(self) -> list[nn.Module]:
        """What the second stage trains."""
        return [self.encoders, self.head]

    def forward(self, batch: Batch, report: bool = False) -> Output:
        if self._together:
            return self._predict(self._encode(batch), batch)
        h = encode(self.learning_alone, batch, self.spec, self.model_config)
        out = alone(self.uni_heads, h, batch, self.spec.task)
        out.logits = mean_of_present(torch.stack(list(out.unimodal.values())), list(h), batch)
        return out

    def _encode(self, batch: Batch) -> dict[str, Tensor]:
        return encode(self.encoders, batch, self.spec, self.model_config)


class Pretrained(AloneFirst):
    """Encoders learn alone, then with a head on their concatenation, finetuned or (``frozen``) as they are.

    Losses: ``uni/<m>``, ``total`` in the first stage, ``task``, ``total`` in the second.
    """

    name = "pretrained"
    config_class = PretrainedConfig

    def trained_together(self) -> list[nn.Module]:
        return [self.head] if self.config.frozen else super().trained_together()

    def train(self, mode: bool = True) -> "Pretrained":
        super().train(mode)
        if self._together and self.config.frozen:
            # neither weights nor running statistics move, nothing is dropped
            self.encoders.eval()
        return self

    def _encode(self, batch: Batch) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            return super()._encode(batch)
