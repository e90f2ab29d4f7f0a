"""How sure a head may be of what it says: a temperature per head, and weights of a mixture, from held-out rows.

The likelihood of a row's label under a head's logits z at temperature T:

    classification   softmax(z / T)[y]
    multilabel       prod_c sigmoid(z_c / T) or its complement
    regression       prod_c Normal(y_c; z_c, T^2)

Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The mixture's weights are the
maximum of their posterior under a Dirichlet prior, by expectation maximisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Calibration", "fit_temperature", "label_log_likelihood", "mixture_weights", "pool_weights"]

COOLEST, HOTTEST = 0.05, 20.0  # between a head twenty times too timid and one twenty times too sure
_SEARCH_STEPS = 40  # golden section: an interval of log 400 shrinks to 3e-8 of itself
_GOLDEN = (math.sqrt(5) - 1) / 2
EM_STEPS = 40
PSEUDO_COUNTS = 4.0  # rows a head is credited with before any is seen
_NEWTON_STEPS = 50
_HALVINGS = 30
_SETTLED = 1e-12  # of the loss, relative


class Calibration(nn.Module):
    """How much each head knows of a row's label, by a temperature per head that is fitted to held-out rows.

    A head's information about a row is what its likelihood of the label gains over knowing nothing, as a part of what
    there is to know, in [0, 1]:

    - classification: max(0, 1 + log p(y) / log C), over equally likely classes;
    - multilabel: max(0, 1 - log p(y) / log p_0(y)), with p_0 the labels' frequencies in the held-out rows;
    - regression: 1 - exp(-2 (log p(y) - log p_0(y)) / targets), with p_0 the normal distribution of the held-out
      targets: of jointly normal variables its mean is about the squared correlation (Linfoot, Information and Control,
      1957).

    Before :meth:`fit` all temperatures are 1, and p_0 is one half, or standard normal.

    Args:
        heads: their names.
        task: classification, multilabel or regression.
        outputs: C, of every head.
        device, dtype: of the buffers.
    """

    temperature: Tensor
    frequency: Tensor
    mean: Tensor
    deviation: Tensor

    written_in_steps = ()  # :meth:`fit` does, after a validation

    def __init__(
        self,
        heads: Sequence[str],
        task: str,
        outputs: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.heads = tuple(heads)
        self.task = task
        self.register_buffer("temperature", torch.empty(len(self.heads), device=device, dtype=dtype))
        if task == "multilabel":
            self.register_buffer("frequency", torch.empty(outputs, device=device, dtype=dtype))
        if task == "regression":
            self.register_buffer("mean", torch.empty(outputs, device=device, dtype=dtype))
            self.register_buffer("deviation", torch.empty(outputs, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget what was fitted."""
        self.temperature.fill_(1.0)
        if self.task == "multilabel":
            self.frequency.fill_(0.5)
        if self.task == "regression":
            self.mean.zero_()
            self.deviation.fill_(1.0)

    def fit(self, logits: Mapping[str, Tensor], labels: Tensor, usable: Mapping[str, Tensor]) -> None:
        """Fit to held-out rows.

        Args:
            logits: head -> ``[n, C]``.
            labels: int64 ``[n]``, or ``[n, C]``.
            usable: head -> bool ``[n]``, rows in which it has input; all where it is missing here.
        """
        if not len(labels):
            return
        for k, head in enumerate(self.heads):
            rows = usable.get(head, slice(None))
            self.temperature[k] = fit_temperature(self.task, logits[head][rows], labels[rows])
        if self.task == "multilabel":
            self.frequency.copy_((labels.double().sum(0) + 0.5) / (len(labels) + 1))
        if self.task == "regression":
            values = labels.double().view(len(labels), -1)
            self.mean.copy_(values.mean(0))
            self.deviation.copy_(values.std(0, correction=0).clamp(min=1e-6))

    @torch.no_grad()
    def information(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """head -> ``[n]`` in [0, 1]; see the class."""
        heads = [logits[name] for name in self.heads]
        z = torch.stack([x.to(torch.promote_types(x.dtype, torch.float32)) for x in heads])
        count, n = z.shape[:2]
        # all heads in one pass, as so many rows
        temperature = self.temperature.to(z.dtype).repeat_interleave(n).unsqueeze(-1)
        rows, wanted = z.flatten(0, 1), labels.repeat(count, *[1] * (labels.dim() - 1))
        gains = self._relative(label_log_likelihood(self.task, rows, wanted, temperature), rows, wanted)
        return dict(zip(self.heads, gains.view(count, n).unbind(), strict=True))

    def _relative(self, log_likelihood: Tensor, z: Tensor, labels: Tensor) -> Tensor:
        if self.task == "classification":
            return (1 + log_likelihood / math.log(max(z.shape[-1], 2))).clamp(0, 1)
        labels = labels.to(z.dtype).view_as(z)
        if self.task == "multilabel":
            p = self.frequency.to(z.dtype)
            nothing = labels * p.log() + (1 - labels) * torch.log1p(-p)
            return (1 - log_likelihood / nothing.sum(-1)).clamp(0, 1)
        mean, deviation = self.mean.to(z.dtype), self.deviation.to(z.dtype)
        nothing = -0.5 * ((labels - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
        return -torch.expm1(-2 * (log_likelihood - nothing.sum(-1)).clamp(min=0) / z.shape[-1])


def label_log_likelihood(task: str, logits: Tensor, labels: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """``[n]``: log likelihood of each row's label.

    Args:
        task: classification, multilabel or regression.
        logits: ``[n, C]``.
        labels: int64 ``[n]``, or ``[n, C]``.
        temperature: number > 0, or a tensor that broadcasts with ``logits``.
    """
    if task == "classification":
        return -F.cross_entropy(logits / temperature, labels, reduction="none")
    labels = labels.to(logits.dtype).view_as(logits)
    if task == "multilabel":
        return -F.binary_cross_entropy_with_logits(logits / temperature, labels, reduction="none").sum(-1)
    variance = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device).square()
    return -0.5 * ((logits - labels).square() / variance + torch.log(2 * math.pi * variance)).sum(-1)


def fit_temperature(task: str, logits: Tensor, labels: Tensor) -> float:
    """The temperature at which these rows' labels are likeliest; 1 without rows.

    For classes and labels it is searched between 0.05 and 20 in the logarithm, where the likelihood has one maximum
    (it is concave in 1 / T); for regression it is the root of the mean squared error, in closed form.
    """
    if not len(labels):
        return 1.0
    logits = logits.detach().double()
    if task == "regression":
        error = (logits - labels.double().view_as(logits)).square().mean().sqrt()
        return max(float(error), 1e-6)

    def loss(log_temperature: float) -> float:
        return -float(label_log_likelihood(task, logits, labels, math.exp(log_temperature)).mean())

    low, high = math.log(COOLEST), math.log(HOTTEST)
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(_SEARCH_STEPS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = loss(b)
    return math.exp((low + high) / 2)


def mixture_weights(log_likelihood: Tensor, usable: Tensor) -> Tensor:
    """Weights ``[K]`` of a mixture of K heads, together 1.

    Args:
        log_likelihood: ``[n, K]``, of each row's label by each head.
        usable: bool ``[n, K]``: heads that have something to go by in a row; the others take no part in it.
    """
    evidence = log_likelihood.double().masked_fill(~usable, -math.inf)
    evidence = evidence[usable.any(1)]
    weight = evidence.new_full((usable.shape[1],), 1.0 / usable.shape[1])
    for _ in range(EM_STEPS):
        responsibility = torch.softmax(evidence + weight.log(), dim=1)
        counts = responsibility.sum(0) + PSEUDO_COUNTS
        weight = counts / counts.sum()
    return weight


def pool_weights(task: str, logits: Tensor, labels: Tensor, usable: Tensor) -> Tensor:
    """Weights ``[K]`` >= 0 of a product of K heads, whose logits are sum_k w_k z_k (a logarithmic opinion pool: Genest
    and Zidek, Statistical Science 1, 1986).

    The maximum of their posterior: the rows' likelihoods under a normal prior around 1 / K, the geometric mean, of
    precision :data:`PSEUDO_COUNTS`. Its negative logarithm is convex, and minimised by projected Newton steps
    (Bertsekas, SIAM Journal on Control and Optimization 20, 1982).

    Args:
        task: classification or multilabel.
        logits: calibrated, ``[n, K, C]``.
        labels: int64 ``[n]``, or ``[n, C]``.
        usable: bool ``[n, K]``: heads that have something to go by in a row; the others take no part in it.
    """
    z = logits.detach().double().masked_fill(~usable.unsqueeze(-1), 0.0)
    start = torch.full((z.shape[1],), 1.0 / z.shape[1], dtype=z.dtype, device=z.device)

    def loss(weight: Tensor) -> Tensor:
        likelihood = label_log_likelihood(task, torch.einsum("nkc,k->nc", z, weight), labels)
        return 0.5 * PSEUDO_COUNTS * (weight - start).square().sum() - likelihood.sum()

    weight, reached = start, loss(start)
    for _ in range(_NEWTON_STEPS):
        slope, curvature = _pool_derivatives(task, z, labels, weight)
        slope = slope + PSEUDO_COUNTS * (weight - start)
        curvature.diagonal().add_(PSEUDO_COUNTS)
        at_zero = (weight == 0) & (slope > 0)
        free = torch.outer(~at_zero, ~at_zero)
        newton = torch.linalg.solve(
            torch.where(free, curvature, torch.eye(len(weight), dtype=z.dtype, device=z.device)), slope
        )
        newton = newton.masked_fill(at_zero, 0.0)
        for halving in range(_HALVINGS):
            tried = (weight - newton * 0.5**halving).clamp(min=0)
            found = loss(tried)
            if found < reached:
                break
        else:
            return weight
        settled = reached - found <= _SETTLED * (1 + abs(reached))
        weight, reached = tried, found
        if settled:
            break
    return weight


def _pool_derivatives(task: str, z: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient ``[K]`` and Hessian ``[K, K]`` of the negative log likelihood in the weights."""
    pooled = torch.einsum("nkc,k->nc", z, weight)
    if task == "classification":
        p, wanted = pooled.softmax(-1), F.one_hot(labels, z.shape[2])
        mean = torch.einsum("nkc,nc->nk", z, p)
        curvature = _gram(z, p) - mean.t() @ mean
    else:
        p, wanted = pooled.sigmoid(), labels.view_as(pooled)
        curvature = _gram(z, p * (1 - p))
    return torch.einsum("nkc,nc->k", z, p - wanted.to(z.dtype)), curvature


def _gram(z: Tensor, weight: Tensor) -> Tensor:
    """``[K, K]``: products of ``z [n, K, C]`` with itself, summed with weights ``[n, C]``."""
    flat = (z * weight.sqrt().unsqueeze(1)).transpose(0, 1).flatten(1)
    return flat @ flat.t()
