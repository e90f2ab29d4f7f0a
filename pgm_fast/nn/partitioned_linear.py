"""The split projections: two linear layers, each on its own part of one representation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..errors import ConfigError
from .fused import are_plain
from .parts import mark_part

__all__ = ["PartitionedLinear"]

_ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class PartitionedLinear(nn.Module):
    """u = act(W_u uni + b_u) and p = act(W_p paired + b_p).

    Given a representation and the logits of a single gate, masking and both products are one op
    (:func:`pgm_fast.ops.partitioned_linear`), in which the masked operands need not exist; where somebody has changed
    the layers or put hooks on them, they are called.

    Args:
        dim: width of the representation.
        uni_features: width of u.
        paired_features: width of p.
        bias: as in ``nn.Linear``.
        activation: None, ``relu``, ``gelu`` or ``silu``.
        temperature: of the gate, for :meth:`forward`.
        device, dtype: of the parameters.

    Raises:
        ConfigError: unknown activation.
    """

    def __init__(
        self,
        dim: int,
        uni_features: int,
        paired_features: int,
        bias: bool = True,
        activation: str | None = None,
        temperature: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ConfigError(f"activation is {activation!r}, must be one of None, relu, gelu, silu")
        self.activation = activation
        self.temperature = temperature
        self.uni = mark_part(nn.Linear(dim, uni_features, bias, device=device, dtype=dtype), part="uni")
        self.paired = mark_part(nn.Linear(dim, paired_features, bias, device=device, dtype=dtype), part="paired")

    def forward(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """``(u[..., uni_features], p[..., paired_features])`` of h ``[..., dim]`` under single-gate logits z ``[...,
        dim / c]``."""
        if not are_plain(h, nn.Linear, self.uni, self.paired):
            return self.from_parts(*ops.partition(h, z, self.temperature))
        return ops.partitioned_linear(
            h,
            z,
            self.uni.weight,
            self.uni.bias,
            self.paired.weight,
            self.paired.bias,
            activation=self.activation,
            temperature=self.temperature,
        )

    def from_parts(self, uni: Tensor, paired: Tensor) -> tuple[Tensor, Tensor]:
        """The same from parts ``[..., dim]`` that any other gate has made."""
        activation = _ACTIVATIONS[self.activation]
        return activation(self.uni(uni)), activation(self.paired(paired))

    def extra_repr(self) -> str:
        return f"activation={self.activation}, temperature={self.temperature}"
