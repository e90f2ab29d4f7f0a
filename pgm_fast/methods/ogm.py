"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement.

Peng et al., CVPR 2022, arXiv 2203.15332; released code GeWu-Lab/OGM-GE_CVPR2022. Joint training in which the encoder of
the modality that is ahead is slowed. In every step, with z_m the logits from modality m alone and y the labels:

    s_m = sum_i softmax(z_m,i)[y_i]              what m knows
    rho_m = s_m / s_n                            against the other modality n
    k_m = 1 - tanh(alpha rho_m) where rho_m > 1, else 1
    gradient of encoder m: k_m g + noise         noise ~ N(0, deviation of g's entries), tensor by tensor

As in the released code, the noise is not scaled and its deviation is that of each tensor's own gradient. From the paper
and not from that code: all parameters of an encoder are modulated, not only its convolutions. Ours: the head on the
concatenation is the one that all methods share, and z_m its answer with only m present (published: one linear layer,
split by modality); other tasks than classification, with exp(-loss of a row) for the probability of its label; more
than two modalities, where s_n is the mean over the others; rows in which a modality is absent count nothing in its s.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..nn.weights import sum_over_ranks
from ..settings import check_settings, number
from .base import LABELLED, ModelConfig, Output
from .baselines import Joint
from .components import fuse_only
from .tasks import task_rows

__all__ = ["OGM", "OGMConfig", "coefficients"]


@dataclass
class OGMConfig:
    """Settings of OGM-GE. Published with SGD: AdamW divides the gradient by its size, and most of k_m with it."""

    alpha: float = number(0.3, at_least=0)  # how much the modality that is ahead is slowed; 0 for not at all
    enhance: bool = True  # GE: noise of the gradient's own deviation on the encoders' gradients
    first_epoch: int = number(0, at_least=0)  # from which gradients are modulated, counted from 0
    last_epoch: int = number(50, at_least=0)  # after which they are not any more, counted from 0
    # {modality, shared or "*": {encoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class OGM(Joint):
    """:class:`~pgm_fast.methods.baselines.Joint` with OGM-GE.

    Every rank takes the same k_m, from the rows of all, and adds the same noise.

    Losses: ``task``, ``total``.
    """

    name = "ogm"
    config_class = OGMConfig
    tasks = LABELLED

    def __init__(
        self, spec: DataSpec, model: ModelConfig, config: OGMConfig, encoders: Mapping[str, nn.Module] | None = None
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(config, self.name)
        self._modulating = True
        self._scores: Tensor | None = None  # of the batches of an update so far

    def begin_epoch(self, stage: int, epoch: int, batches: Callable[[], Iterator[Batch]]) -> None:
        self._modulating = self.config.first_epoch <= epoch <= self.config.last_epoch

    def _predict(self, h: dict[str, Tensor], batch: Batch) -> Output:
        out = super()._predict(h, batch)
        if self.training and self._modulating and batch.labels is not None:
            with torch.no_grad():
                scores = torch.stack([self._score(h, m, batch) for m in h])
                self._scores = scores if self._scores is None else self._scores + scores
        return out

    def _score(self, h: dict[str, Tensor], modality: str, batch: Batch) -> Tensor:
        """Mean over rows of the probability that the modality alone gives the label."""
        rows = task_rows(self.spec.task, self.head(fuse_only(h, modality)), batch.labels)
        return ((-rows).exp() * batch.weight_of(modality)).sum()

    def after_backward(self, seed: int) -> None:
        if not self._modulating or self._scores is None:
            return
        factors = coefficients(sum_over_ranks(self._scores), self.config.alpha)
        self._scores = None
        generator = torch.Generator(factors.device).manual_seed(seed)
        for factor, encoder in zip(factors, self.encoders.values(), strict=True):
            for gradient in [p.grad for p in encoder.parameters() if p.grad is not None]:
                spread = gradient.std(correction=1) if gradient.numel() > 1 else gradient.new_zeros(())
                gradient.mul_(factor.to(gradient.dtype))
                if self.config.enhance:
                    noise = torch.randn(
                        gradient.shape, generator=generator, dtype=gradient.dtype, device=gradient.device
                    )
                    gradient.add_(noise * spread)


def coefficients(scores: Tensor, alpha: float) -> Tensor:
    """k_m ``[M]`` from s_m ``[M]``. A modality without others, or whose others know nothing, has 1."""
    others = (scores.sum() - scores) / max(1, len(scores) - 1)
    ratio = scores / others.clamp(min=torch.finfo(scores.dtype).tiny)
    slowed = (ratio > 1) & (others > 0)
    return torch.where(slowed, 1 - torch.tanh(alpha * ratio), 1.0)
