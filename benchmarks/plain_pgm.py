"""PgM as one writes it with ``torch.nn`` alone: the baseline that a training step is held against."""

from __future__ import annotations

import copy
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgm_fast.methods import PgM
from pgm_fast.nn import MLP, mark_part

__all__ = ["PlainPgM", "plain"]


def plain(module: nn.Module) -> nn.Module:
    """A copy whose layers are called one by one, as ``torch.nn`` has them."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if isinstance(part, MLP):
            # which differs in how it is called, not in what it holds
            part.__class__ = nn.Sequential
    return copied


class PlainPgM(nn.Module):
    """The model and all losses of a classifying PgM with the gate ``single`` or ``dual``, every modality present.

    What is plain PyTorch there, encoders, attention and heads, is taken over; partition, split projections, decoder and
    contrastive alignment are written in their usual forms: ``softmax(z).cumsum``, ``nn.Linear`` on its own operand or
    on a concatenation, ``F.mse_loss``, ``F.cross_entropy``. Parameters are copies of those of ``model`` and belong to
    the same groups.
    """

    def __init__(self, model: PgM):
        super().__init__()
        self.config = model.config
        self.encoders = plain(model.encoders)
        self.head, self.uni_heads = plain(model.head), plain(model.uni_heads)
        self.interaction, self.paired_head = plain(model.interaction), plain(model.paired_head)
        self.gates, self.uni, self.paired, self.decoders = (nn.ModuleDict() for _ in range(4))
        for name in self.encoders:
            learners = model.block.learners[name]
            self.gates[name] = copy.deepcopy(model.block.partitioners[name].projection)
            self.uni[name] = _learner(learners.split.uni, learners.dropout, learners.uni, learners.uni_norm)
            self.paired[name] = _learner(learners.split.paired, learners.dropout, learners.paired, learners.paired_norm)
            self.decoders[name] = _decoder(model.block.decoders[name])
            for parts, part in ((self.gates, "partitioner"), (self.decoders, "decoder")):
                mark_part(parts[name], name, part)
            mark_part(self.uni[name], name)
            mark_part(self.paired[name], name)

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The total loss of a batch, the mean over its rows."""
        config = self.config
        decoded, paired, by_uni, rebuilt = [], [], [], []
        for name, encoder in self.encoders.items():
            h = encoder(inputs[name])
            uni_part, paired_part = self._parts(h, self.gates[name](h))
            f_uni, f_paired = self.uni[name](uni_part), self.paired[name](paired_part)
            decoded.append(self.decoders[name](torch.cat([f_uni, f_paired], dim=-1)))
            paired.append(f_paired)
            by_uni.append(F.cross_entropy(self.uni_heads[name](f_uni), labels))
            rebuilt.append(F.mse_loss(decoded[-1], h.detach()))
        task = F.cross_entropy(self.head(torch.cat(decoded, dim=-1)), labels)
        together = F.cross_entropy(self.paired_head(self.interaction(paired)), labels)
        return (
            task
            + config.uni_weight * sum(by_uni) / len(by_uni)
            + config.paired_weight * together
            + config.align_weight * self._alignment(paired)
            + config.reconstruction_weight * sum(rebuilt) / len(rebuilt)
        )

    def _parts(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.gate == "single":
            paired = torch.softmax(z, -1).cumsum(-1) * h
            return h - paired, paired
        z_uni, z_paired = z.chunk(2, dim=-1)
        return (1 - torch.softmax(z_uni, -1).cumsum(-1)) * h, torch.softmax(z_paired, -1).cumsum(-1) * h

    def _alignment(self, paired: list[Tensor]) -> Tensor:
        rows = [F.normalize(f, dim=-1) for f in paired]
        own = torch.arange(len(rows[0]), device=rows[0].device)
        losses = []
        for a, b in combinations(rows, 2):
            logits = a @ b.t() / self.config.align_temperature
            losses.append(0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)))
        return sum(losses) / len(losses)


def _learner(first: nn.Linear, dropout: nn.Dropout, second: nn.Linear, norm: nn.LayerNorm) -> nn.Sequential:
    return nn.Sequential(*map(copy.deepcopy, (first, nn.GELU(), dropout, second, norm)))


def _decoder(decoder: nn.Module) -> nn.Linear:
    weights = torch.cat([decoder.uni.weight, decoder.paired.weight], dim=1).detach()
    linear = nn.Linear(weights.shape[1], weights.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weights)
        linear.bias.copy_(decoder.paired.bias)
    return linear
