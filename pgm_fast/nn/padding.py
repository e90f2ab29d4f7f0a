"""Padded sequences ``[..., T, d]``: which steps are valid, and means over those."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hide_padding", "masked_mean", "valid_steps"]


def valid_steps(x: Tensor, lengths: Tensor | None) -> Tensor:
    """bool ``[..., T]`` of x ``[..., T, d]``: the steps before each sample's length; all of them without lengths."""
    if lengths is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    return torch.arange(x.shape[-2], device=x.device) < lengths.unsqueeze(-1)


def hide_padding(x: Tensor, valid: Tensor) -> Tensor:
    """Zeros beyond the length: a NaN there would reach the weights' gradients even under a zero gradient."""
    return x.masked_fill(~valid.unsqueeze(-1), 0.0)


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x ``[..., T, d]`` over the valid steps."""
    mask = valid.unsqueeze(-1).to(x.dtype)
    return (x * mask).sum(-2) / mask.sum(-2).clamp(min=1)
