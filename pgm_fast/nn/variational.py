"""Variational layers: diagonal Gaussians whose mean and log-variance are linear in the input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from .arguments import check_size
from .linear import rename_loaded

__all__ = ["Variational", "VariationalLayer"]


class Variational(NamedTuple):
    """One or more Gaussians per row, side by side in the last dimension.

    Attributes:
        mu: means ``[..., layers * out_features]``.
        logvar: log-variances, of the shape of ``mu``.
        z: a sample, or ``mu`` itself where none was drawn.
        kl: divergence from the standard normal per row and layer, ``[..., layers]``: the mean over its dimensions.

    Where moments alone were asked for, z and kl are None.
    """

    mu: Tensor
    logvar: Tensor
    z: Tensor | None
    kl: Tensor | None


class VariationalLayer(nn.Module):
    """q(z|x) = N(mu(x), exp(logvar(x))) with mu and logvar from one linear layer (DMIL, Yang et al., arXiv 2606.11614).

    Layers that read the same input are one product here: ``layers=2`` gives two Gaussians, their means and
    log-variances from one matrix. In a model of your own::

        bottleneck = VariationalLayer(256, 64)
        q = bottleneck(features)                 # a sample in training, the mean in evaluation
        loss = task(q.z) + 0.01 * q.kl.mean()

    Args:
        in_features: width of x.
        out_features: width of each z.
        layers: how many Gaussians.
        device, dtype: of the parameters.

    Raises:
        ConfigError: a size below 1.

    ``linear.weight`` is ``[2 * layers * out_features, in_features]``: the rows of all means, then those of all
    log-variances.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        layers: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features), ("layers", layers)):
            check_size(name, value)
        self.out_features = out_features
        self.layers = layers
        self.linear = nn.Linear(in_features, 2 * layers * out_features, device=device, dtype=dtype)
        rename_loaded(self, {"weight": "linear.weight", "bias": "linear.bias"})

    def forward(
        self, x: Tensor, sample: bool | None = None, seed: Tensor | None = None, moments_only: bool = False
    ) -> Variational:
        """The Gaussians of ``x`` ``[..., in_features]``.

        Args:
            sample: whether z is drawn; None for in training only.
            seed: of the noise, see :func:`pgm_fast.ops.gaussian_sample_kl`.
            moments_only: neither z nor the divergence is formed.
        """
        mu, logvar = self.linear(x).chunk(2, dim=-1)
        if moments_only:
            return Variational(mu, logvar, None, None)
        sample = self.training if sample is None else sample
        z, kl = ops.gaussian_sample_kl(mu, logvar, sample=sample, seed=seed, layers=self.layers)
        return Variational(mu, logvar, z, kl)

    def moments(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Means and log-variances ``[..., out_features]`` of every layer, with no sample and no divergence."""
        q = self(x, moments_only=True)
        return list(q.mu.chunk(self.layers, dim=-1)), list(q.logvar.chunk(self.layers, dim=-1))

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, layers={self.layers}"
