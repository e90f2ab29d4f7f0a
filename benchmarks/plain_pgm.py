"""PgM as one writes it with ``torch.nn`` alone: the baseline that a training step is held against."""

from __future__ import annotations

import copy
import math
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgm_fast.methods import PgM
from pgm_fast.nn import MLP, mark_part
from pgm_fast.nn.dropout import Dropout
from pgm_fast.nn.information import KAPPA
from pgm_fast.nn.partitioner import FLOOR, REACH, WIDTH

__all__ = ["PlainPgM", "plain"]


def plain(module: nn.Module) -> nn.Module:
    """A copy whose layers are called one by one, as ``torch.nn`` has them."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        # which differ in how they are called, not in what they hold
        if isinstance(part, MLP):
            part.__class__ = nn.Sequential
        if isinstance(part, Dropout):
            part.__class__ = nn.Dropout
    return copied


class PlainPgM(nn.Module):
    """The model and all losses of a classifying PgM with the gate ``boundary``, ``single`` or ``dual`` and otherwise
    its defaults, every modality present.

    What is plain PyTorch there, encoders, the MLPs of learners and gates, heads, is taken over; partition, split
    projections, decoder, contrastive alignment and the shares' targets are written in their usual forms:
    ``softmax(z).cumsum``, ``nn.Linear`` on a concatenation, ``F.mse_loss``, ``F.cross_entropy``. Parameters are copies
    of those of ``model`` and belong to the same groups.
    """

    def __init__(self, model: PgM):
        super().__init__()
        self.config, self.dim = model.config, model.model_config.dim
        self.encoders, self.learners = plain(model.encoders), plain(model.block.learners)
        self.head, self.uni_heads, self.paired_head = map(plain, (model.head, model.uni_heads, model.paired_head))
        self.gates, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for name in self.encoders:
            partitioner = model.block.partitioners[name]
            self.gates[name] = copy.deepcopy(partitioner.projection or partitioner.boundaries)
            self.decoders[name] = _decoder(model.block.decoders[name])
            mark_part(self.gates[name], name, "partitioner")
            mark_part(self.decoders[name], name, "decoder")
        if self.config.gate == "boundary":
            temperatures = dict(zip(model.calibration.heads, model.calibration.temperature, strict=True))
            self.task_heads = [head for head in temperatures if "/" not in head]
            self.register_buffer("places", (torch.arange(self.dim) + 0.5) / self.dim)
            self.register_buffer("task_temperatures", torch.stack([temperatures[head] for head in self.task_heads]))
            self.register_buffer("uni_temperatures", torch.stack([temperatures[f"uni/{m}"] for m in self.encoders]))

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The total loss of a batch, the mean over its rows."""
        config = self.config
        rebuilt, paired, by_uni, distances, shares = [], [], [], [], []
        for name, encoder in self.encoders.items():
            h = F.layer_norm(encoder(inputs[name]), (self.dim,))
            uni_part, paired_part, *share = self._parts(h, self.gates[name])
            learners = self.learners[name]
            f_uni = uni_part + learners.uni(learners.uni_norm(uni_part))
            f_paired = paired_part + learners.paired(learners.paired_norm(paired_part))
            decoded = self.decoders[name](torch.cat([f_uni, f_paired], dim=-1))
            rebuilt.append(h + decoded - 0.5 * (uni_part + paired_part))
            distances.append(F.mse_loss(rebuilt[-1], h.detach()))
            paired.append(f_paired)
            by_uni.append(self.uni_heads[name](f_uni))
            shares.append(share)
        task = self.head(torch.cat(rebuilt, dim=-1))
        together = self.paired_head(torch.cat(paired, dim=-1)) + 0.5 * sum(by_uni).detach()
        total = (
            F.cross_entropy(task, labels)
            + config.uni_weight * sum(F.cross_entropy(logits, labels) for logits in by_uni) / len(by_uni)
            + config.paired_weight * F.cross_entropy(together, labels)
            + config.align_weight * self._alignment(paired)
            + config.reconstruction_weight * sum(distances) / len(distances)
        )
        if config.gate == "boundary":
            total = total + config.information_weight * self._information(
                {"task": task, "paired": together}, by_uni, labels, shares
            )
        return total

    def _parts(self, h: Tensor, gate: nn.Module) -> tuple[Tensor, ...]:
        """What either learner reads of h, and with boundaries what share of it that is."""
        if self.config.gate == "single":
            paired = torch.softmax(gate(h), -1).cumsum(-1) * h
            return h - paired, paired
        if self.config.gate == "dual":
            z_uni, z_paired = gate(h).chunk(2, dim=-1)
            return (1 - torch.softmax(z_uni, -1).cumsum(-1)) * h, torch.softmax(z_paired, -1).cumsum(-1) * h
        lengths = 0.5 + REACH * (torch.sigmoid(gate(h.detach())) - 0.5)
        uni, paired = lengths.split(1, dim=-1)
        e, r = 1 - self._opens_at(uni), self._opens_at(1 - paired)
        parts = ((FLOOR + (1 - FLOOR) * x.detach()) * h for x in (e, r))
        return *parts, e.mean(-1), r.mean(-1)

    def _opens_at(self, place: Tensor) -> Tensor:
        return torch.softmax(-((self.places - place) ** 2) / (2 * WIDTH**2), -1).cumsum(-1)

    def _alignment(self, paired: list[Tensor]) -> Tensor:
        rows = [F.normalize(f, dim=-1) for f in paired]
        own = torch.arange(len(rows[0]), device=rows[0].device)
        losses = []
        for a, b in combinations(rows, 2):
            logits = a @ b.t() / self.config.align_temperature
            losses.append(0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)))
        return sum(losses) / len(losses)

    def _information(
        self, together: dict[str, Tensor], by_uni: list[Tensor], labels: Tensor, shares: list[list[Tensor]]
    ) -> Tensor:
        """Squared distance of the shares from what the heads know of the labels."""
        with torch.no_grad():
            known = _known(torch.stack(by_uni), labels, self.uni_temperatures)
            most = _known(torch.stack([together[head] for head in self.task_heads]), labels, self.task_temperatures)
            best, second = known.topk(2, dim=0).values
            every = torch.maximum(best, most.amax(0))
            uni_target = (known + KAPPA) / (every + KAPPA)
            paired_target = (torch.minimum(known, second) + every - best + KAPPA) / (every + KAPPA)
        uni, paired = (torch.stack(side) for side in zip(*shares, strict=True))
        return ((uni - uni_target) ** 2 + (paired - paired_target) ** 2).mean()


def _known(logits: Tensor, labels: Tensor, temperatures: Tensor) -> Tensor:
    """``[heads, n]`` in [0, 1], of logits ``[heads, n, C]``."""
    log_p = torch.log_softmax(logits / temperatures[:, None, None], -1)
    of_label = log_p.gather(-1, labels.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
    return (1 + of_label / math.log(logits.shape[-1])).clamp(0, 1)


def _decoder(decoder: nn.Module) -> nn.Linear:
    weights = torch.cat([decoder.uni.weight, decoder.paired.weight], dim=1).detach()
    linear = nn.Linear(weights.shape[1], weights.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weights)
        linear.bias.copy_(decoder.paired.bias)
    return linear
