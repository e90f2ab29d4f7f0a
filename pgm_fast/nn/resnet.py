"""ResNet-18 over frames or spectrograms (He et al., CVPR 2016), built by configuration and trained from scratch.

The network is the one of ``transformers`` (``pip install "pgm-fast[av]"``); nothing is downloaded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .dropout import Dropout
from .padding import hide_padding, masked_mean, valid_steps

__all__ = ["PICTURES", "ResNetEncoder"]

PICTURES = ("frames", "spectrogram")


class ResNetEncoder(nn.Module):
    """Pictures to representations.

    Args:
        kind: ``frames``, each step of ``[B, T, 3 * s * s]`` a picture of its own, whose features are averaged over the
            steps; or ``spectrogram``, the whole ``[B, T, F]`` one picture of one channel.
        in_dim: width of a step.
        dim: width of the representation.
        dropout: before the last linear layer.
        projection: whether there is that layer, from 512 pooled features to ``dim``; without it ``dim`` is 512.
        device, dtype: of the parameters.

    Raises:
        ConfigError: unknown kind, a width that is no square RGB picture, or ``transformers`` is not installed.
    """

    def __init__(
        self,
        kind: str,
        in_dim: int,
        dim: int,
        dropout: float = 0.0,
        projection: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if kind not in PICTURES:
            raise ConfigError(f"resnet18 reads {' or '.join(PICTURES)}, not {kind}: use mlp, gru or transformer")
        self.kind = kind
        self.size = math.isqrt(in_dim // 3)
        if kind == "frames" and 3 * self.size**2 != in_dim:
            raise ConfigError(f"a frame has {in_dim} values, a square RGB picture 3 * size * size")
        try:
            from transformers import ResNetConfig, ResNetModel
        except ImportError as error:
            raise ConfigError(
                f'encoder resnet18 needs transformers, which cannot be imported ({error}): pip install "pgm-fast[av]", '
                "or pass your own encoders"
            ) from None
        widths = [64, 128, 256, 512]
        config = ResNetConfig(
            num_channels=3 if kind == "frames" else 1,
            embedding_size=64,
            hidden_sizes=widths,
            depths=[2, 2, 2, 2],
            layer_type="basic",
        )
        self.net = ResNetModel(config).to(device=device, dtype=dtype)  # pyright: ignore[reportCallIssue]
        self.dropout = Dropout(dropout)
        self.features = widths[-1]
        if not projection and dim != self.features:
            raise ConfigError(
                f"model.projection=none leaves resnet18's features {self.features} wide, and model.dim is {dim}: set "
                f"model.dim={self.features}, or model.projection=linear"
            )
        self.out = nn.Linear(self.features, dim, device=device, dtype=dtype) if projection else nn.Identity()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``[B, T, in_dim]`` -> ``[B, dim]``; one sample, ``[T, in_dim]`` -> ``[dim]``."""
        valid = valid_steps(x, lengths)
        x = hide_padding(x, valid)
        if self.kind == "spectrogram":
            features = self._of_pictures(x.reshape(-1, 1, *x.shape[-2:]), x.shape[:-2])
        else:
            steps = self._of_pictures(x.reshape(-1, 3, self.size, self.size), x.shape[:-1])
            features = masked_mean(steps, valid)
        return self.out(self.dropout(features))

    def _of_pictures(self, pictures: Tensor, leading: torch.Size) -> Tensor:
        return self.net(pictures).pooler_output.reshape(*leading, self.features)
