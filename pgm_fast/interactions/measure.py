"""The two measured quantities of every row: information about the label, and negative log-density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .density import COMPONENTS, Knife
from .discriminators import Classifiers, fit_temperature
from .members import Member, evaluate, train
from .settings import Settings

__all__ = ["entropy", "information", "label_surprise"]

Tick = Callable[[float], None]


def label_surprise(labels: np.ndarray, fit: np.ndarray, classes: int, prior: str) -> np.ndarray:
    """``-log p(y)`` of each class, float64 ``[C]``.

    Args:
        labels: int64 ``[n]``.
        fit: rows whose labels are counted, one added per class, for ``prior="empirical"``.
        classes: C.
        prior: ``uniform`` gives log C.
    """
    if prior == "uniform":
        return np.full(classes, math.log(classes))
    counts = np.bincount(labels[fit], minlength=classes) + 1.0
    return -np.log(counts / counts.sum())


def information(
    inputs: Sequence[Tensor],
    labels: Tensor,
    surprise: np.ndarray,
    members: Sequence[Member],
    settings: Settings,
    generator: torch.Generator,
    tick: Tick,
) -> np.ndarray:
    """``i = -log p(y) + log p(y|x)`` in nats, float64 ``[n]``, for the rows that the members answer for; else NaN.

    ``p(y|x)`` is a classifier's softmax, with ``calibrate`` at the temperature that suits the member's stopping rows.

    Args:
        inputs: ``[n, d]`` tensors that are looked at together.
        labels: int64 ``[n]``.
        surprise: ``-log p(y)`` per class.
    """
    width = sum(x.shape[1] for x in inputs)
    net = Classifiers(
        len(members), width, settings.hidden, len(surprise), settings.dropout, generator, settings.activation
    )
    net.to(labels.device)

    def logits(rows: Tensor) -> Tensor:
        return net(torch.cat([x[rows] for x in inputs], -1))

    def loss(rows: Tensor) -> Tensor:
        return -_of_label(logits(rows), labels[rows])

    train(net, loss, members, settings.classifier_schedule, generator, tick)
    stopping = evaluate(net, logits, [member.stop for member in members], labels.device)
    scored = evaluate(net, logits, [member.score for member in members], labels.device)
    found = np.full(len(labels), np.nan)
    for member, known, asked in zip(members, stopping, scored, strict=True):
        told = labels[torch.from_numpy(member.stop).to(labels.device)]
        temperature = fit_temperature(known, told) if settings.calibrate else 1.0
        own = labels[torch.from_numpy(member.score).to(labels.device)]
        found[member.score] = _of_label(asked.double() / temperature, own).cpu().numpy() + surprise[own.cpu().numpy()]
    return found


def entropy(
    x: Tensor, members: Sequence[Member], settings: Settings, generator: torch.Generator, tick: Tick
) -> np.ndarray:
    """``H = -log p(x)`` in nats, float64 ``[n]``, for the rows that the members answer for; else NaN.

    Args:
        x: ``[n, d]``.
    """
    begin = [
        member.fit[torch.randint(len(member.fit), (COMPONENTS,), generator=generator).numpy()] for member in members
    ]
    density = Knife(x[torch.from_numpy(np.stack(begin)).to(x.device)])
    if settings.density_start == "normal":
        with torch.no_grad():
            for parameter in (density.means, density.scale, density.coupling):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def surprise(rows: Tensor) -> Tensor:
        return -density(x[rows])

    train(density, surprise, members, settings.density_schedule, generator, tick)
    found = np.full(len(x), np.nan)
    for member, values in zip(
        members, evaluate(density, surprise, [member.score for member in members], x.device), strict=True
    ):
        found[member.score] = values.double().cpu().numpy()
    return found


def _of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the label: ``[..., C]`` and int64 ``[...]`` -> ``[...]``."""
    return torch.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
