"""The activations a projection can end in, and their derivatives from the pre-activation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "activate", "activate_backward"]

ACTIVATIONS = (None, "relu", "gelu", "silu")


def activate(x: Tensor, activation: str | None) -> Tensor:
    """``activation(x)``; gelu is the exact one."""
    if activation is None:
        return x
    return {"relu": torch.relu, "gelu": F.gelu, "silu": F.silu}[activation](x)


def activate_backward(grad: Tensor, x: Tensor, activation: str | None) -> Tensor:
    """Gradient with respect to the pre-activation ``x``; ``grad`` and ``x`` in the accumulation dtype."""
    if activation is None:
        return grad
    if activation == "relu":
        return torch.where(x > 0, grad, torch.zeros_like(grad))
    if activation == "gelu":
        normal_cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        normal_pdf = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return grad * (normal_cdf + x * normal_pdf)
    sigmoid = torch.sigmoid(x)
    return grad * sigmoid * (1 + x * (1 - sigmoid))
