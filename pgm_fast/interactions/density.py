"""Density of a modality: a mixture of Gaussians trained by likelihood (KNIFE, Pichler et al., ICML 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["COMPONENTS", "Knife", "knife_log_density"]

COMPONENTS = 5

# A component this many nats below the likeliest adds no digit to the density, not even in fp64. Its gradients would be
# denormal numbers, with which the matrix products of the backward pass take ten times as long on a CPU.
NEGLIGIBLE = 60.0


def knife_log_density(x: Tensor, means: Tensor, scale: Tensor, coupling: Tensor, logits: Tensor) -> Tensor:
    """Log-density of a mixture of K Gaussians that ``A_k = (I + tril(C_k, -1)) diag(e^tanh s_k)`` whiten:

        log p(x) = log sum_k pi_k |det A_k| (2 pi)^(-d/2) exp(-|A_k (x - mu_k)|^2 / 2),   log |det A_k| = sum tanh s_k

    with ``pi = softmax(logits)``. The determinant needs no decomposition, since A_k is triangular, and tanh keeps it in
    bounds. The couplings of all components meet all rows in one batched matrix product: no coupling is copied per row.

    Args:
        x: ``[G, N, d]``.
        means, scale: ``[G, K, d]``; scale before tanh.
        coupling: ``[G, K, d, d]``; what is not below the diagonal is ignored.
        logits: ``[G, K]``.

    Returns:
        ``[G, N]`` in nats.
    """
    dim = x.shape[-1]
    bounded = scale.tanh()
    y = (x.unsqueeze(1) - means.unsqueeze(2)) * bounded.exp().unsqueeze(2)
    flat = y.flatten(0, 1)
    whitened = torch.baddbmm(flat, flat, torch.tril(coupling, -1).flatten(0, 1).mT)
    squares = whitened.square().sum(-1).view(y.shape[:-1])
    weight = torch.log_softmax(logits, -1) + bounded.sum(-1) - 0.5 * dim * math.log(2 * math.pi)
    scores = weight.unsqueeze(-1) - 0.5 * squares
    scores = scores.masked_fill(scores < scores.detach().amax(1, keepdim=True) - NEGLIGIBLE, -math.inf)
    return torch.logsumexp(scores, 1)


class Knife(nn.Module):
    """G densities of one width, each with parameters of its own.

    Args:
        start: ``[G, K, d]``, rows of the data where the components begin. Scales begin at 1, couplings at 0, mixture
            weights equal.
    """

    def __init__(self, start: Tensor):
        super().__init__()
        members, components, dim = start.shape
        self.means = nn.Parameter(start.clone())
        self.scale = nn.Parameter(torch.zeros(members, components, dim))
        self.coupling = nn.Parameter(torch.zeros(members, components, dim, dim))
        self.logits = nn.Parameter(torch.zeros(members, components))

    def forward(self, x: Tensor) -> Tensor:
        """Rows ``[G, N, d]`` -> log-density ``[G, N]`` in nats."""
        return knife_log_density(x, self.means, self.scale, self.coupling, self.logits)
