"""What the label looks like from one modality, or from two together: classifiers and their log-probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Classifiers", "fit_temperature"]

# Temperatures that are tried, evenly in the logarithm: from twice as sure to a nearly uniform answer.
TEMPERATURES = 2.0 ** (torch.arange(-16, 81) / 16)


class Classifiers(nn.Module):
    """G perceptrons with two hidden layers of one shape, each with weights of its own.

    Args:
        members: G.
        inputs: width d of a row.
        hidden: width of the hidden layers.
        classes: C.
        dropout: before each hidden layer's product, in [0, 1).
        generator: of the initial weights (uniform in ± 1/sqrt(fan in), as ``nn.Linear``).
        activation: ``gelu`` or ``relu``.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        hidden: int,
        classes: int,
        dropout: float,
        generator: torch.Generator,
        activation: str = "gelu",
    ):
        super().__init__()
        self.activation = {"gelu": nn.functional.gelu, "relu": nn.functional.relu}[activation]
        self.dropout = dropout
        sizes = (inputs, hidden, hidden, classes)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            bound = 1 / math.sqrt(fan_in)
            weight, bias = torch.empty(members, fan_in, fan_out), torch.empty(members, 1, fan_out)
            self.weights.append(nn.Parameter(weight.uniform_(-bound, bound, generator=generator)))
            self.biases.append(nn.Parameter(bias.uniform_(-bound, bound, generator=generator)))

    def forward(self, x: Tensor) -> Tensor:
        """Rows ``[G, B, d]`` -> logits ``[G, B, C]``."""
        last = len(self.weights) - 1
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if number < last:
                x = nn.functional.dropout(self.activation(x), self.dropout, self.training)
        return x


def fit_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature that makes ``softmax(logits / T)`` likeliest on held-out rows (Guo et al., ICML 2017).

    Found by trying :data:`TEMPERATURES`; a classifier that knows nothing gets the largest.

    Args:
        logits: ``[n, C]``.
        labels: int64 ``[n]``.

    Returns:
        float32 scalar.
    """
    tried = TEMPERATURES.to(logits.device)
    scaled = torch.log_softmax(logits / tried[:, None, None], dim=-1)
    chosen = scaled.gather(-1, labels.expand(len(tried), -1).unsqueeze(-1))
    return tried[chosen.mean(dim=(1, 2)).argmax()]
