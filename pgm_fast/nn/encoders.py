"""Encoders from feature vectors and variable-length feature sequences to representations.

A sequence ``[B, T, d]`` comes with lengths ``[B]``; what stands beyond a sample's length never influences a result or a
gradient, whatever it holds. Pooled encoders return ``[B, dim]``, per-step ones ``[B, T, dim]`` (undefined beyond the
length). Encoders of sequences alone also take one of them, ``[T, d]`` with a length of no dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .dropout import Dropout
from .mlp import MLP
from .padding import hide_padding, masked_mean, valid_steps

__all__ = ["ENCODERS", "GRUEncoder", "MLPEncoder", "TransformerEncoder", "make_encoder"]

ENCODERS = ("mlp", "gru", "transformer", "resnet18")


class MLPEncoder(nn.Module):
    """Hidden layers (linear, GELU, dropout) and a linear layer to ``dim``; on sequences per step, then averaged.

    Args:
        in_dim: width of the input.
        dim: width of the representation.
        hidden: width of the hidden layers.
        layers: how many hidden layers.
        dropout: after each.
        per_step: for sequences, return every step instead of their mean.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.0,
        per_step: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.per_step = per_step
        if layers == 1:
            self.net = MLP(in_dim, hidden, dim, dropout, device=device, dtype=dtype)
            return
        modules: list[nn.Module] = []
        width = in_dim
        for _ in range(layers):
            modules += [nn.Linear(width, hidden, device=device, dtype=dtype), nn.GELU(), Dropout(dropout)]
            width = hidden
        modules.append(nn.Linear(width, dim, device=device, dtype=dtype))
        self.net = nn.Sequential(*modules)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``[in_dim]`` -> ``[dim]``; ``[B, in_dim]`` -> ``[B, dim]``; ``[B, T, in_dim]`` -> ``[B, dim]`` or, per step,
        ``[B, T, dim]``."""
        if x.dim() < 3:
            return self.net(x)
        valid = valid_steps(x, lengths)
        steps = self.net(hide_padding(x, valid))
        return steps if self.per_step else masked_mean(steps, valid)


class GRUEncoder(nn.Module):
    """A GRU over the padded sequence, the state at each sample's last step (or every state), and a linear layer.

    It runs from the first step on, so padding after a sample's end cannot reach its states; no packing, which would
    need the lengths on the host.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        hidden: int = 128,
        layers: int = 1,
        dropout: float = 0.0,
        per_step: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.per_step = per_step
        layers = max(layers, 1)
        factory = {"device": device, "dtype": dtype}
        between = dropout if layers > 1 else 0.0
        self.rnn = nn.GRU(in_dim, hidden, layers, batch_first=True, dropout=between, **factory)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``[B, T, in_dim]`` -> ``[B, dim]`` or, per step, ``[B, T, dim]``."""
        states, _ = self.rnn(hide_padding(x, valid_steps(x, lengths)))
        if not self.per_step:
            if lengths is None:
                states = states[..., -1, :]
            else:
                last = (lengths - 1)[..., None, None].expand(*lengths.shape, 1, states.shape[-1])
                states = states.gather(-2, last).squeeze(-2)
        return self.out(self.dropout(states))


class _TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward (Xiong et al., ICML 2020), masked by validity."""

    def __init__(self, hidden: int, heads: int, dropout: float, **factory):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(hidden, **factory)
        self.qkv = nn.Linear(hidden, 3 * hidden, **factory)
        self.attention_out = nn.Linear(hidden, hidden, **factory)
        self.norm_feed = nn.LayerNorm(hidden, **factory)
        self.feed = nn.Sequential(
            nn.Linear(hidden, 2 * hidden, **factory),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(2 * hidden, hidden, **factory),
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        *leading, hidden = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(*leading, 3, self.heads, hidden // self.heads)
        q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.dropout(self.attention_out(mixed.transpose(-3, -2).flatten(-2)))
        return x + self.dropout(self.feed(self.norm_feed(x)))


class TransformerEncoder(nn.Module):
    """Linear layer, sinusoidal positions, pre-norm layers that look both ways, mean over steps.

    Vaswani et al., NeurIPS 2017; Xiong et al., ICML 2020.

    Raises:
        ConfigError: ``heads`` does not divide ``hidden``.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        hidden: int = 128,
        layers: int = 1,
        heads: int = 4,
        dropout: float = 0.0,
        per_step: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        if heads < 1 or hidden % heads:
            raise ConfigError(f"model.heads is {heads}, must divide model.hidden, {hidden}")
        self.per_step = per_step
        self.embed = nn.Linear(in_dim, hidden, **factory)
        self.layers = nn.ModuleList(_TransformerLayer(hidden, heads, dropout, **factory) for _ in range(max(layers, 1)))
        self.norm = nn.LayerNorm(hidden, **factory)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``[B, T, in_dim]`` -> ``[B, dim]`` or, per step, ``[B, T, dim]``."""
        valid = valid_steps(x, lengths)
        steps = self.embed(hide_padding(x, valid))
        steps = self.dropout(steps + self._positions(steps))
        mask = valid[..., None, None, :]
        for layer in self.layers:
            steps = layer(steps, mask)
        steps = self.norm(steps)
        return self.out(self.dropout(steps if self.per_step else masked_mean(steps, valid)))

    @staticmethod
    def _positions(steps: Tensor) -> Tensor:
        hidden = steps.shape[-1]
        time = torch.arange(steps.shape[-2], device=steps.device, dtype=torch.float32).unsqueeze(-1)
        pair = torch.arange((hidden + 1) // 2, device=steps.device, dtype=torch.float32)
        angle = time * torch.exp(pair * (-2.0 * math.log(10000.0) / hidden))
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[:, :hidden].to(steps.dtype)


def make_encoder(
    kind: str,
    in_dim: int,
    dim: int,
    *,
    hidden: int = 128,
    layers: int = 1,
    heads: int = 4,
    dropout: float = 0.0,
    per_step: bool = False,
    values: str = "features",
    projection: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The encoder called ``kind``, one of :data:`ENCODERS`.

    ``values`` says what the input holds: ``features``, ``frames`` or ``spectrogram``; only ``resnet18`` asks for it and
    for ``projection`` (see :class:`~.resnet.ResNetEncoder`).
    ``device`` and ``dtype`` are those of the parameters.

    Raises:
        ConfigError: unknown kind, or sizes that do not fit it.
    """
    factory = {"device": device, "dtype": dtype}
    if kind == "mlp":
        return MLPEncoder(in_dim, dim, hidden, layers, dropout, per_step, **factory)
    if kind == "gru":
        return GRUEncoder(in_dim, dim, hidden, layers, dropout, per_step, **factory)
    if kind == "transformer":
        return TransformerEncoder(in_dim, dim, hidden, layers, heads, dropout, per_step, **factory)
    if kind == "resnet18":
        from .resnet import ResNetEncoder

        if per_step:
            raise ConfigError("encoder resnet18 gives one representation per sample, and this data has labels per step")
        return ResNetEncoder(values, in_dim, dim, dropout, projection, **factory)
    raise ConfigError(f"encoder is {kind!r}, must be one of auto, {', '.join(ENCODERS)}")
