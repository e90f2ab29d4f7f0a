"""Density of a modality: a mixture of Gaussians trained by likelihood (KNIFE, Pichler et al., ICML 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["COMPONENTS", "Knife", "knife_log_density"]

COMPONENTS = 5


def knife_log_density(x: Tensor, means: Tensor, scale: Tensor, coupling: Tensor, logits: Tensor) -> Tensor:
    """Log-density of a mixture of K Gaussians that ``A_k = (I + tril(C_k, -1)) diag(e^tanh s_k)`` whiten:

        log p(x) = log sum_k pi_k |det A_k| (2 pi)^(-d/2) exp(-|A_k (x - mu_k)|^2 / 2),   log |det A_k| = sum tanh s_k

    with ``pi = softmax(logits)``. The determinant needs no decomposition, since A_k is triangular, and tanh keeps it in
    bounds. ``A_k x`` for all k is one matrix product of the rows with the K matrices side by side: neither rows nor
    matrices are copied.

    Args:
        x: ``[G, N, d]``.
        means, scale: ``[G, K, d]``; scale before tanh.
        coupling: ``[G, K, d, d]``; what is not below the diagonal is ignored.
        logits: ``[G, K]``.

    Returns:
        ``[G, N]`` in nats.
    """
    members, components, dim = means.shape
    bounded = scale.tanh()
    diagonal = bounded.exp()
    whitening = torch.tril(coupling, -1) * diagonal.unsqueeze(-2) + torch.diag_embed(diagonal)
    center = whitening @ means.unsqueeze(-1)
    stacked = whitening.reshape(members, components * dim, dim)
    whitened = torch.baddbmm(center.reshape(members, 1, -1), x, stacked.mT, beta=-1)
    squares = whitened.view(members, -1, components, dim).square().sum(-1)
    weight = torch.log_softmax(logits, -1) + bounded.sum(-1) - 0.5 * dim * math.log(2 * math.pi)
    return torch.logsumexp(weight.unsqueeze(1) - 0.5 * squares, -1)


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
