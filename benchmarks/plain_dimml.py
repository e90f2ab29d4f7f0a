"""DI-MML's first stage as one writes it with ``torch.nn`` alone: the baseline that a training step is held against."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from plain_pgm import plain
from torch import Tensor, nn

from pgm_fast.methods import DIMML

__all__ = ["PlainDIMML"]


class PlainDIMML(nn.Module):
    """The encoders, heads and losses of ``model`` after its warm-up, every modality present: a head for each modality,
    one for all, and the contrastive loss on the dimensions that one modality hands to another. Parameters are copies of
    those of ``model`` and belong to the same groups."""

    def __init__(self, model: DIMML):
        super().__init__()
        self.config, self.dim = model.config, model.model_config.dim
        self.encoders = plain(model.encoders)
        self.heads, self.shared_head = copy.deepcopy(model.heads), copy.deepcopy(model.shared_head)
        self.fusion_head = copy.deepcopy(model.fusion_head)  # of the second stage: there, and not trained
        self.handed = {pair: dims.clone() for pair, dims in model._dims.items()}

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The total loss of a batch, the mean over its rows."""
        f = {name: F.layer_norm(encoder(inputs[name]), (self.dim,)) for name, encoder in self.encoders.items()}
        own = sum(F.cross_entropy(self.heads[name](x), labels) for name, x in f.items())
        shared = sum(F.cross_entropy(self.shared_head(x), labels) for x in f.values())
        handed = sum(
            self._transfer(f[student], f[teacher].detach(), dims) for (teacher, student), dims in self.handed.items()
        )
        return own + self.config.shared_weight * shared + self.config.duc_weight * handed

    def _transfer(self, student: Tensor, teacher: Tensor, dims: Tensor) -> Tensor:
        logits = student.index_select(1, dims) @ teacher.index_select(1, dims).t() / self.config.temperature
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
