"""MCR: multimodal competition regularizer.

Kontras et al., NeurIPS 2025, arXiv 2411.07335; released code kkontras/MCR. From encoders that have learned alone, a
joint model with a head of its own for each modality, in which modalities play for their say in the joint prediction p:

    loss = L_task + uni_weight * sum_m L_uni,m + game_weight * sum_m L_m + contrastive_weight * L_con
           + bottleneck_weight * L_ceb
    L_m   = -mean_i JSD(p(h_1,i ... h_M,i), p(... h_m,s(i) ...))      h_m exchanged between rows, the others kept
    L_con = mean_i mean_{p: y_p = y_i} -log e_ip / (e_ip + sum_{q: y_q != y_i} e_iq),  e_ij = exp(cos(h_m,i, h_n,j) / T)
    L_ceb = mean |[h_1 ... h_M] - r(logits)|^2                       r: two linear layers and a ReLU

What L_m does to encoder n: its gradient counts once for n = m and ``k`` times for the others; k is 1 in the
collaborative game, 0 in the independent, -1 in the greedy one, where each makes itself important at the expense of the
rest. As in the released code the contrastive term is of normalised features, the reconstruction starts from the
detached logits, and predictions with exchanged features are without dropout.

Ours: the prediction with nothing exchanged is constant in L_m (in the released greedy game its gradients cancel), and
so is the joint head (there, its linear part of each modality plays along); s shifts the rows by a random number, so
that every row meets every other one equally often and never itself; L_con is between modalities, over all ordered
pairs; more than two modalities; rows in which a modality is absent are neither exchanged nor compared; several labels
(JSD of each label's probability, rows that share a label are alike) and regression (squared Hellinger distance of
normal distributions of deviation 1, no L_con). Rows meet those of their own rank.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..nn.parts import SHARED, mark_part
from ..nn.weights import among
from ..settings import choice, number
from .base import ModelConfig, Output, Stage
from .baselines import joint_and_own
from .components import fuse
from .pretrained import AloneFirst

__all__ = ["GAMES", "MCR", "MCRConfig", "contrast", "divergence", "exchange"]

GAMES = {"greedy": -1.0, "independent": 0.0, "collaborative": 1.0}
"""game -> k, what the others' losses count in an encoder's gradient."""


@dataclass
class MCRConfig:
    """Settings of MCR."""

    game: str = choice("greedy", GAMES)  # greedy (published as best), independent, collaborative
    game_weight: float = number(0.1, at_least=0)  # of the modalities' importance
    exchanges: int = number(6, at_least=1)  # how often the rows are exchanged in a step
    uni_weight: float = number(1.0, at_least=0)  # of each modality's own loss
    contrastive_weight: float = number(1.0, at_least=0)  # of the features' contrast by label
    contrastive_temperature: float = number(0.5, above=0)  # of its similarities
    # of the features' distance from what the logits tell; published for encoders from self-supervised learning only
    bottleneck_weight: float = number(0.0, at_least=0)
    pretrain: bool = True  # a first stage in which encoders learn alone, as published; false: from scratch
    alone_epochs: int = number(0, at_least=0)  # of that stage; 0 for train.epochs
    # {modality, shared or "*": {encoder, decoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class MCR(AloneFirst):
    """A joint head and own heads, with the regularizer.

    Losses: ``uni/<m>``, ``total`` in the first stage; ``task``, ``uni/<m>``, in training ``importance/<m>`` (L_m),
    ``contrast``, ``bottleneck``, and ``total`` in the second. Terms of weight 0 are not computed.
    """

    name = "mcr"
    config_class = MCRConfig

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: MCRConfig, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        self.reconstruction = None
        if config.bottleneck_weight > 0:
            layers = (
                nn.Linear(spec.num_outputs, model.dim, bias=False),
                nn.ReLU(),
                nn.Linear(model.dim, model.dim * len(spec.modalities), bias=False),
            )
            self.reconstruction = mark_part(nn.Sequential(*layers), SHARED, "decoder")
        if not config.pretrain:
            self.last_stage = 0
            self.begin_stage(0)

    def _answering(self) -> list[str]:
        return ["task", *(f"uni/{m}" for m in self.spec.modalities)]

    def stages(self, lr: float) -> list[Stage]:
        stages = super().stages(lr)
        return stages if self.config.pretrain else stages[1:]

    def trained_together(self) -> list[nn.Module]:
        own = [self.uni_heads] if self.config.uni_weight > 0 or not self.config.pretrain else []
        return [*super().trained_together(), *own, *filter(None, [self.reconstruction])]

    def _predict(self, h: dict[str, Tensor], batch: Batch) -> Output:
        out = joint_and_own(self, h, batch)
        if batch.labels is None:
            return out
        config, terms = self.config, {n: loss for n, loss in out.losses.items() if n != "total"}
        weights = {"task": 1.0, "uni": config.uni_weight}
        if self.training:
            if config.game_weight > 0 and len(h) > 1:
                terms.update(self._importance(h, batch))
                weights["importance"] = config.game_weight
            if config.contrastive_weight > 0 and self.spec.task != "regression" and len(h) > 1:
                terms["contrast"] = contrast(h, batch, config.contrastive_temperature)
                weights["contrast"] = config.contrastive_weight
            if self.reconstruction is not None:
                terms["bottleneck"] = self._bottleneck(h, batch)
                weights["bottleneck"] = config.bottleneck_weight
        out.losses = {**terms, "total": sum(weights[n.split("/")[0]] * loss for n, loss in terms.items())}
        return out

    def _importance(self, h: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        k, times = GAMES[self.config.game], self.config.exchanges
        draws = torch.rand(times, device=batch.weight.device)
        losses = {}
        with _constant(self.head):
            before = self.head(fuse({m: x.detach() for m, x in h.items()})).detach().repeat(times, 1)
            for m in h:
                counted = (batch.index >= 0) & batch.presence_of(m)
                rows = exchange(counted, draws)
                played = {n: x if n == m else k * x + (1 - k) * x.detach() for n, x in h.items()}
                exchanged = {n: x.index_select(0, rows) if n == m else x.repeat(times, 1) for n, x in played.items()}
                distance = divergence(self.spec.task, before, self.head(fuse(exchanged)))
                losses[f"importance/{m}"] = -(distance.view(times, -1).mean(0) * batch.weight_of(m)).sum()
        return losses

    def _bottleneck(self, h: dict[str, Tensor], batch: Batch) -> Tensor:
        told = self.reconstruction(self.head(fuse(h)).detach())
        distance = (fuse(h) - told).to(torch.promote_types(told.dtype, torch.float32)).square().mean(-1)
        return (distance * batch.weight).sum()


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Inside, the module passes gradients on and takes none, and nothing is dropped."""
    training, trained = module.training, [p for p in module.parameters() if p.requires_grad]
    module.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        module.train(training)


def exchange(counted: Tensor, draws: Tensor) -> Tensor:
    """Row numbers ``[S * n]``: for each of S draws in [0, 1), which row every row takes its feature from.

    The rows that count (bool ``[n]``) are shifted among themselves by 1 to their number less 1; the others keep theirs.
    """
    n = counted.sum()
    order = torch.argsort((~counted).to(torch.uint8), stable=True)  # those that count first
    place = counted.cumsum(0) - 1
    shift = 1 + (draws * (n - 1).clamp(min=1)).long()
    there = order[(place + shift.unsqueeze(1)) % n.clamp(min=1)]
    return torch.where(counted, there, torch.arange(len(counted), device=counted.device)).flatten()


def divergence(task: str, a: Tensor, b: Tensor) -> Tensor:
    """How far two predictions ``[n, C]`` are apart, row by row, float32 (or wider) ``[n]``.

    Classification: Jensen-Shannon divergence in nats; multilabel: the mean of each label's; regression: squared
    Hellinger distance of normal distributions of deviation 1, 1 - exp(-|a - b|^2 / 8).
    """
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    if task == "regression":
        return 1 - torch.exp(-(a - b).square().sum(-1) / 8)
    if task == "classification":
        log_a, log_b = F.log_softmax(a, -1), F.log_softmax(b, -1)
    else:
        log_a, log_b = (torch.stack([F.logsigmoid(z), F.logsigmoid(-z)], -1) for z in (a, b))
    log_mean = torch.logaddexp(log_a, log_b) - torch.log(torch.tensor(2.0, dtype=dtype))
    half = 0.5 * (log_a.exp() * (log_a - log_mean) + log_b.exp() * (log_b - log_mean)).sum(-1)
    return half if task == "classification" else half.mean(-1)


def contrast(h: Mapping[str, Tensor], batch: Batch, temperature: float) -> Tensor:
    """L_con, a mean over ordered pairs of modalities and over the rows that have both."""
    labels, real = batch.labels, batch.index >= 0
    if labels.is_floating_point():
        alike = (labels @ labels.T) > 0
        alike = alike | torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    else:
        alike = labels.unsqueeze(1) == labels
    losses = []
    for m, n in permutations(h, 2):
        both = real & batch.presence_of(m) & batch.presence_of(n)
        a, b = (F.normalize(h[k], dim=-1) for k in (m, n))
        dtype = torch.promote_types(a.dtype, torch.float32)
        similarity = (a.to(dtype) @ b.to(dtype).T).to(dtype) / temperature  # autocast multiplies in half
        least = torch.finfo(dtype).min
        others = similarity.masked_fill(alike | ~both, least).logsumexp(-1, keepdim=True)
        pairs = torch.logaddexp(similarity, others) - similarity
        positive = (alike & both).to(dtype)
        rows = (pairs * positive).sum(-1) / positive.sum(-1).clamp(min=1)
        losses.append((rows * among(batch.weight, both)).sum())
    return torch.stack(losses).mean()
