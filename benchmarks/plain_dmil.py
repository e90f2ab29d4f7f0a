"""DMIL's third stage as one writes it with ``torch.nn`` alone: the baseline that a training step is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from plain_pgm import plain
from torch import Tensor, nn

from pgm_fast.methods import DMIL
from pgm_fast.methods.dmil_config import JOINT
from pgm_fast.nn import mark_part
from pgm_fast.nn.parts import SHARED

__all__ = ["PlainDMIL"]


class Gaussian(nn.Module):
    """Mean and log-variance by a layer each."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.mu, self.logvar = nn.Linear(width_in, width), nn.Linear(width_in, width)

    def forward(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) if self.training else mu
        return z, mu, logvar


def divergence(mu, logvar, prior_mu=None, prior_logvar=None):
    """Mean over batch and dimensions."""
    if prior_mu is None:
        prior_mu, prior_logvar = torch.zeros_like(mu), torch.zeros_like(logvar)
    ratio = logvar - prior_logvar
    return 0.5 * torch.mean(-ratio + ratio.exp() + (mu - prior_mu).pow(2) / prior_logvar.exp() - 1)


class PlainDMIL(nn.Module):
    """The third stage with the encoders, widths and weights of ``model``, which has two modalities that are always
    present: a linear layer for every mean and every log-variance, a function for the divergence, ``F.cross_entropy``
    for every head."""

    def __init__(self, model: DMIL):
        super().__init__()
        self.config = model.config
        self.dim = d = model.model_config.dim
        self.encoders, names = plain(model.encoders), list(model.encoders)
        self.m = nn.ModuleDict({n: Gaussian(d, d) for n in names})
        self.n = nn.ModuleDict({n: Gaussian(d, d) for n in names})
        self.v = nn.ModuleDict({n: Gaussian(d, d) for n in names})
        self.u = nn.ModuleDict({n: Gaussian(d, d) for n in names})
        self.r = Gaussian(2 * d, d)
        intra, consistency = plain(model.intra), plain(model.consistency)
        self.rebuild_h, self.rebuild_m = intra["rebuild"], consistency["rebuild"]
        self.m_heads, self.u_heads = intra["heads"], consistency["unique_heads"]
        self.synergy = consistency["synergistic"]
        self.r_head, self.s_head = consistency["redundant_head"], consistency["synergistic_head"]
        gate = consistency["gate"]
        self.gate = nn.Sequential(gate.hidden, nn.ReLU(), gate.out, nn.Softmax(dim=1))
        for name in names:
            _copy(model.intra["layers"][name], self.m[name], self.n[name])
            _copy(model.consistency["unique"][name], self.v[name], self.u[name])
        _copy(model.consistency["redundant"], self.r)
        mark_part(self, SHARED, "paired")  # but for encoders and heads, which have marks of their own

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The total loss of a batch, the mean over its rows."""
        return self.losses(inputs, labels)["total"]

    def losses(self, inputs: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Every loss by its name, and ``total``."""
        w, cfg = {}, self.config
        uni, kl, rec = cfg.uni_weight[JOINT], cfg.kl_weight[JOINT], cfg.reconstruction_weight[JOINT]
        kl_c, rebuild, part = (
            cfg.consistency_kl_weight[JOINT],
            cfg.rebuild_weight[JOINT],
            cfg.component_weight[JOINT],
        )
        losses, means, rests = {}, {}, {}
        for name in self.encoders:
            h = F.layer_norm(self.encoders[name](inputs[name]), (self.dim,))
            m, means[name], m_logvar = self.m[name](h)
            rests[name], n_mu, n_logvar = self.n[name](h)
            losses[f"uni/{name}"], w[f"uni/{name}"] = F.cross_entropy(self.m_heads[name](m), y), uni
            losses[f"kl_predictive/{name}"] = divergence(means[name], m_logvar)
            losses[f"kl_rest/{name}"] = divergence(n_mu, n_logvar)
            w[f"kl_predictive/{name}"] = w[f"kl_rest/{name}"] = kl
            rebuilt = self.rebuild_h[name](torch.cat([m, rests[name]], dim=1))
            losses[f"reconstruction/{name}"], w[f"reconstruction/{name}"] = F.mse_loss(rebuilt, h), rec
        r, r_mu, r_logvar = self.r(torch.cat(list(means.values()), dim=1))
        losses["kl_redundant"], w["kl_redundant"] = divergence(r_mu, r_logvar), kl_c
        components, logits = [], []
        for name in self.encoders:
            _, v_mu, v_logvar = self.v[name](means[name])
            u, u_mu, u_logvar = self.u[name](means[name])
            losses[f"align/{name}"] = divergence(r_mu, r_logvar, v_mu, v_logvar)
            losses[f"kl_unique/{name}"] = divergence(u_mu, u_logvar)
            w[f"align/{name}"] = w[f"kl_unique/{name}"] = kl_c
            rebuilt = self.rebuild_m[name](torch.cat([r, u], dim=1))
            losses[f"rebuild/{name}"], w[f"rebuild/{name}"] = F.mse_loss(rebuilt, means[name]), rebuild
            components.append(u)
            logits.append(self.u_heads[name](u))
        a, b = rests.values()
        s = self.synergy(torch.cat([a, b, a * b], dim=1))
        components += [r, s]
        logits += [self.r_head(r), self.s_head(s)]
        gate = self.gate(torch.cat(components, dim=1))
        fused = sum(gate[:, k : k + 1] * x for k, x in enumerate(logits))
        losses["task"], w["task"] = F.cross_entropy(fused, y), cfg.task_weight[JOINT]
        for name, x in zip((*(f"unique/{m}" for m in self.encoders), "redundant", "synergistic"), logits, strict=True):
            losses[name], w[name] = F.cross_entropy(x, y), part
        losses["total"] = sum(w[name] * loss for name, loss in losses.items())
        return losses


def _copy(source, *layers: Gaussian) -> None:
    """The rows of all means, then of all log-variances, to a layer each."""
    goals = [layer.mu for layer in layers] + [layer.logvar for layer in layers]
    with torch.no_grad():
        rows = (x.chunk(len(goals)) for x in (source.linear.weight, source.linear.bias))
        for goal, weight, bias in zip(goals, *rows, strict=True):
            goal.weight.copy_(weight)
            goal.bias.copy_(bias)
