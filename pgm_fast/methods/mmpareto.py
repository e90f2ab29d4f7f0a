"""MMPareto: uni-modal assistance that does not stand in the way of the multimodal loss.

Wei & Hu, ICML 2024, arXiv 2405.17730; released code GeWu-Lab/MMPareto_ICML2024. A joint model with a head of its own
for each modality: the encoder of m is pulled by the joint loss, g, and by its own head's, u. In every step:

    g.u > 0 (over the whole encoder):  a = 1/2
    else:                              a = argmin |a g + (1-a) u|^2 = (u.u - g.u) / (g.g + u.u - 2 g.u)
    direction of a tensor:             d = 2 a g + 2 (1-a) u
    its gradient:                      gamma d max(1, |g + u| / |d|)

so that in a conflict the step hurts neither loss, and is no shorter for it. Heads take the sum of all losses. As in the
released code, weights are of a whole encoder and lengths are compared tensor by tensor. Ours: more than two modalities
(each encoder has two losses all the same), other tasks than classification, and rows in which a modality is absent,
which count nothing in its own loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.feature_set import DataSpec
from ..nn.weights import sum_over_ranks, world_size
from ..settings import check_settings, number
from .base import ModelConfig, Output
from .baselines import WithOwnHeads

__all__ = ["MMPareto", "MMParetoConfig", "integrate"]

LEAST = 1e-3  # weight of a loss, as released: where the other has no gradient, this one's direction is all there is


@dataclass
class MMParetoConfig:
    """Settings of MMPareto. Published with SGD: AdamW divides the gradient by its size, and gamma with it."""

    gamma: float = number(1.5, above=0)  # factor on the encoders' gradients; above 1 for the noise that generalises
    # {modality, shared or "*": {encoder or head: factor on train.lr}}
    rates: dict[str, dict[str, float]] = field(default_factory=dict)


class MMPareto(WithOwnHeads):
    """Joint and own losses, integrated in each encoder.

    Losses: ``task``, ``uni/<m>``, ``total``, their sum.
    """

    name = "mmpareto"
    config_class = MMParetoConfig

    def __init__(
        self,
        spec: DataSpec,
        model: ModelConfig,
        config: MMParetoConfig,
        encoders: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__(spec, model, config, encoders)
        check_settings(config, self.name)
        self._losses: dict[str, Tensor] = {}  # of the last pass in training
        self._own: dict[str, list[Tensor]] = {}  # modality -> gradients of its own loss, in its encoder, so far

    def _predict(self, h: dict[str, Tensor], batch: Batch) -> Output:
        out = super()._predict(h, batch)
        if self.training:
            self._losses = out.losses
        return out

    def backward(self, total: Tensor, scale: Tensor | None = None) -> None:
        factor = 1.0 if scale is None else scale
        for m, encoder in self.encoders.items():
            parameters = [p for p in encoder.parameters() if p.requires_grad]
            if parameters:
                loss = self._losses[f"uni/{m}"] * factor
                found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                before = self._own.get(m, [torch.zeros_like(p) for p in parameters])
                self._own[m] = [b if g is None else b + g / factor for b, g in zip(before, found, strict=True)]
        self._losses = {}
        super().backward(total, scale)

    @torch.no_grad()
    def after_backward(self, seed: int) -> None:
        for m, own in self._own.items():
            parameters = [p for p in self.encoders[m].parameters() if p.requires_grad]
            own = _mean_over_ranks(own)
            gradients = [
                torch.zeros_like(u) if p.grad is None else p.grad for p, u in zip(parameters, own, strict=True)
            ]
            for p, gradient in zip(parameters, integrate(gradients, own, self.config.gamma), strict=True):
                if p.grad is not None:
                    p.grad.copy_(gradient)
        self._own = {}


def integrate(total: Sequence[Tensor], own: Sequence[Tensor], gamma: float) -> list[Tensor]:
    """The gradients of an encoder's tensors from those of both losses together, g + u, and of its own, u."""
    joint = [t - u for t, u in zip(total, own, strict=True)]
    dot = [
        torch.stack([(a * b).sum(dtype=torch.float64) for a, b in zip(x, y, strict=True)]).sum()
        for x, y in ((joint, joint), (joint, own), (own, own))
    ]
    gg, gu, uu = dot
    least = ((uu - gu) / (gg + uu - 2 * gu).clamp(min=torch.finfo(torch.float64).tiny)).clamp(LEAST, 1 - LEAST)
    a = torch.where(gu > 0, 0.5, least)
    found = []
    for t, g, u in zip(total, joint, own, strict=True):
        d = 2 * (a * g + (1 - a) * u).to(t.dtype)
        length, sum_length = d.norm(), t.norm()
        longer = torch.where(length > 0, sum_length / length.clamp(min=torch.finfo(t.dtype).tiny), 1.0).clamp(min=1.0)
        found.append(gamma * longer * d)
    return found


def _mean_over_ranks(tensors: list[Tensor]) -> list[Tensor]:
    if world_size() == 1:
        return tensors
    flat = sum_over_ranks(torch.cat([t.flatten() for t in tensors])) / world_size()
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
