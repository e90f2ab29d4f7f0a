"""UMT: uni-modal teachers.

Du et al., ICML 2023, arXiv 2305.01233 (before: arXiv 2106.11059). Joint training leaves features unlearned that one
modality alone would teach. Here an encoder of each modality that has learned alone, t_m, is the teacher of the encoder
in the joint model, f_m, which begins anew:

    stage 1: loss = sum_m loss(head_m(t_m(x_m)))
    stage 2: loss = loss(head([f_1(x_1) ... f_M(x_M)])) + distillation_weight * sum_m mean |f_m(x_m) - t_m(x_m)|^2

The mean is over rows and dimensions, teachers are frozen and without dropout. Which weights the paper used on its data
sets is not known to us. Ours: teachers of one epoch, see :mod:`.pretrained`; teacher and student begin with the same
weights; rows in which a modality is absent count nothing in its distillation.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..settings import number
from .base import ModelConfig, Output
from .components import encode
from .pretrained import AloneFirst

__all__ = ["UMT", "UMTConfig"]


@dataclass
class UMTConfig:
    """Settings of UMT."""

    distillation_weight: float = number(1.0, at_least=0)  # of each modality's distance from its teacher
    alone_epochs: int = number(0, at_least=0)  # of the teachers' stage; 0 for train.epochs
    # {modality, shared or "*": {encoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class UMT(AloneFirst):
    """Uni-modal teachers, then a joint model that learns from them too.

    Losses: ``uni/<m>``, ``total`` in the first stage; ``task``, in training ``distill/<m>``, and ``total`` in the
    second.
    """

    name = "umt"
    config_class = UMTConfig

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: UMTConfig, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        self.teachers = copy.deepcopy(self.encoders)

    @property
    def learning_alone(self) -> nn.ModuleDict:
        return self.teachers

    def train(self, mode: bool = True) -> "UMT":
        super().train(mode)
        if self._together:
            self.teachers.eval()
        return self

    def _predict(self, h: dict[str, Tensor], batch: Batch) -> Output:
        out = super()._predict(h, batch)
        if self.training and batch.labels is not None:
            with torch.no_grad():
                taught = encode(self.teachers, batch, self.spec, self.model_config)
            distances = {f"distill/{m}": _distance(x, taught[m], batch.weight_of(m)) for m, x in h.items()}
            total = out.losses["task"] + self.config.distillation_weight * torch.stack(list(distances.values())).sum()
            out.losses = {"task": out.losses["task"], **distances, "total": total}
        return out


def _distance(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Mean over rows, by ``weight`` ``[n]``, and dimensions of a squared difference ``[n, d]``, float32 or wider."""
    difference = student - teacher
    difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
    return (difference.square().mean(-1) * weight).sum()
