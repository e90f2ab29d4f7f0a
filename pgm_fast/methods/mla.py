"""MLA: multimodal learning with alternating unimodal adaptation.

Zhang et al., CVPR 2024, arXiv 2311.10707; released code Cecile-hi/Multimodal-Learning-with-Alternating-Unimodal-
Adaptation. No loss ever sees two modalities: within a batch each takes its turn, and what they have in common is a
linear head. With f_m = encoder_m(x_m), in turn m:

    loss = CE(W f_m + b), and one update of encoder m and the head
    P <- P - P r r' P / (alpha + r' P r), P <- P / |P|_F       r: mean of f over the batch in the turn before
    gradient of W: g P                                         so that the head forgets little of what it saw there
    answer: sum_m l_m (W f_m + b), l = softmax_m(-H_m)         H_m: entropy of what m alone predicts, row by row

P starts as the identity, and the first update is not modified. From the paper: r is of the turn before; in the released
code it is of the turn itself, its test for the layer's name never holds, so that nothing is modified there, and the
entropies are sums over whole batches. From that code: P's norm. Ours: alpha does not fall within an epoch (0.1 to 0.01
there); rows in which a modality is absent count nothing in its turn and its weight; of several labels the entropies'
mean; in regression, which has none, the mean of the predictions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..nn.parts import SHARED, mark_part
from ..nn.weights import sum_over_ranks, world_size
from ..settings import check_settings, number
from .base import ModelConfig, Output
from .baselines import Baseline, alone, mean_of_present
from .components import encode

__all__ = ["MLA", "MLAConfig", "entropy_weights", "remember"]


@dataclass
class MLAConfig:
    """Settings of MLA. With AdamW, which divides the gradient by its size, the norm of P does not matter."""

    modification: bool = True  # of the head's gradient; false: the modalities take turns and nothing else
    alpha: float = number(0.1, above=0)  # the less, the more of the turn before is protected
    # {modality, shared or "*": {encoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class MLA(Baseline):
    """Modalities that take turns at a shared linear head, in the order in which the data has them.

    A batch is as many updates as there are modalities. ``model.answer`` may ask for another answer than the published.

    Losses: ``uni/<m>``, ``total``.
    """

    name = "mla"
    config_class = MLAConfig
    written_in_steps = ("projection", "seen")

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: MLAConfig, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(config, self.name)
        self.shared_head = mark_part(nn.Linear(model.dim, spec.num_outputs), SHARED, "head")
        self.turns = len(spec.modalities)
        self.register_buffer("projection", torch.eye(model.dim))
        self.register_buffer("seen", torch.zeros(model.dim))  # mean features of the turn before
        self._turn: int | None = None  # None: all at once
        self._seen: Tensor | None = None  # mean features of this turn, on this rank

    def _answering(self) -> list[str]:
        return [f"uni/{m}" for m in self.spec.modalities]

    def begin_turn(self, turn: int) -> None:
        self._turn = turn

    def forward(self, batch: Batch, report: bool = False) -> Output:
        names = list(self.spec.modalities)
        if self.training and self._turn is not None:
            names = [names[self._turn]]
        h = encode({m: self.encoders[m] for m in names}, batch, self.spec, self.model_config)
        out = alone(dict.fromkeys(names, self.shared_head), h, batch, self.spec.task)
        if self.training and self._turn is not None:
            weight = batch.weight_of(names[0]).unsqueeze(-1)
            seen = (h[names[0]].detach() * weight).sum(0)
            self._seen = seen if self._seen is None else self._seen + seen
            return out
        out.logits = self._together(out.unimodal, batch)
        return out

    def _together(self, logits: Mapping[str, Tensor], batch: Batch) -> Tensor:
        if self.answer is not None:
            return self.answer({f"uni/{m}": z for m, z in logits.items()}, self._usable(batch.presence))
        stacked = torch.stack(list(logits.values()))
        if self.spec.task == "regression":
            return mean_of_present(stacked, list(logits), batch)
        present = torch.stack([batch.presence_of(m) for m in logits])
        return (stacked * entropy_weights(stacked, present, self.spec.task).unsqueeze(-1)).sum(0)

    @torch.no_grad()
    def after_backward(self, seed: int) -> None:
        if self._seen is None:
            return
        if self.config.modification:
            began = self.seen.any()  # nothing was seen before the first turn
            self.projection.copy_(
                torch.where(began, remember(self.projection, self.seen, self.config.alpha), self.projection)
            )
            gradient = self.shared_head.weight.grad
            gradient.copy_(torch.where(began, gradient @ self.projection.to(gradient.dtype), gradient))
        self.seen.copy_(sum_over_ranks(self._seen) / world_size())
        self._seen = None


def remember(projection: Tensor, seen: Tensor, alpha: float) -> Tensor:
    """P ``[d, d]`` (symmetric) with the direction r ``[d]`` weakened, of Frobenius norm 1."""
    k = projection @ seen
    weaker = projection - torch.outer(k, k) / (alpha + seen @ k)
    return weaker / torch.linalg.matrix_norm(weaker)


def entropy_weights(logits: Tensor, present: Tensor, task: str) -> Tensor:
    """Weights ``[M, n]`` of predictions ``[M, n, C]``: softmax over the present (bool ``[M, n]``) of -entropy; zeros in
    rows without any."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if task == "classification":
        entropy = -(F.softmax(logits, -1) * F.log_softmax(logits, -1)).sum(-1)
    else:
        p = torch.sigmoid(logits)
        entropy = -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).mean(-1)
    weights = F.softmax((-entropy).masked_fill(~present, torch.finfo(entropy.dtype).min), dim=0)
    return weights * present
