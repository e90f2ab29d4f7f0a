"""How several heads of one model answer together. The same choices serve every method that has more than one head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..nn.calibration import fit_temperature, label_log_likelihood, mixture_weights, pool_weights
from ..ops import certainty_weighted_logits

__all__ = ["ANSWERS", "Answer", "make_answer", "usable_alone"]

ANSWERS = ("auto", "task", "mean", "certainty", "experts", "stack", "pool")
_FITTED = ("stack", "pool")


def make_answer(method: str, wanted: str, own: str, heads: Sequence[str], task: str) -> Answer | None:
    """The answer that ``model.answer`` asks of a method; None where the method answers in its own way.

    Args:
        method: its name.
        wanted: one of :data:`ANSWERS`.
        own: what ``auto`` means here.
        heads: those of the method, the one that ``task`` means first.

    Raises:
        ConfigError: a choice that the method or the task does not have.
    """
    kind = own if wanted == "auto" else wanted
    if kind == "task":
        return None
    if task == "retrieval" or len(heads) < 2:
        why = (
            "retrieval has no heads that predict labels"
            if task == "retrieval"
            else f"method {method} has one head here"
        )
        raise ConfigError(f"model.answer is {wanted}, but {why}: use auto")
    return Answer(kind, heads, task)


class Answer(nn.Module):
    """Logits of several heads -> logits of one answer.

    A head without input in a row (its modality is absent) takes no part there. With z_k the logits of head k:

    - ``mean``: mean of the probabilities (classification: softmax, multilabel: sigmoid), of the values in regression;
    - ``certainty``: DI-MML's certainty-weighted logits (Fan et al., ACM MM 2024); classification only;
    - ``experts``: sum of the z_k, a product of experts, which is also what the task loss is taken of (as I2M2,
      Madaan et al., NeurIPS 2024);
    - ``stack``: sum_k w_k softmax(z_k / T_k): every head calibrated on the validation split, then weights of their
      mixture, see :mod:`.calibration`. Until a first validation it is ``mean``;
    - ``pool``: sum_k w_k z_k / T_k: every head calibrated on the validation split, then the weights >= 0 of their
      product, see :func:`~pgm_fast.nn.calibration.pool_weights`. Classification and multilabel.

    The results are logits: their softmax (sigmoid) is the answer's probability.

    Args:
        kind: one of mean, certainty, experts, stack, pool.
        heads: names of the heads, in a fixed order.
        task: classification, multilabel or regression.

    Raises:
        ConfigError: a kind that the task does not have.
    """

    written_in_steps = ()  # :meth:`fit` does, after a validation

    def __init__(self, kind: str, heads: Sequence[str], task: str):
        super().__init__()
        if kind not in ANSWERS[2:]:
            raise ConfigError(f"model.answer is {kind!r}, must be one of {', '.join(ANSWERS)}")
        if kind == "certainty" and task != "classification":
            raise ConfigError(f"model.answer=certainty weighs classes, the data's task is {task}: use mean or stack")
        if kind == "pool" and task == "regression":
            raise ConfigError("model.answer=pool multiplies probabilities, the data's task is regression: use stack")
        self.kind = kind
        self.heads = tuple(heads)
        self.task = task
        self.fitted = kind in _FITTED
        if self.fitted:
            self.register_buffer("temperature", torch.ones(len(self.heads)))
            self.register_buffer("weight", torch.full((len(self.heads),), 1.0 / len(self.heads)))

    @property
    def trained(self) -> bool:
        """Whether the task loss is taken of the answer itself."""
        return self.kind == "experts"

    def forward(self, logits: Mapping[str, Tensor], usable: Mapping[str, Tensor]) -> Tensor:
        """``[n, C]``; zeros in rows without any usable head.

        Args:
            logits: head -> ``[n, C]``.
            usable: head -> bool ``[n]``; a head that is missing here is usable in all rows.
        """
        heads = [logits[name] for name in self.heads]
        mask = self._mask(heads[0], usable)
        if self.kind == "certainty":
            return certainty_weighted_logits(heads, 1.0, None if not usable else mask)[0]
        stacked = torch.stack(heads, dim=1)
        if self.kind == "experts":
            return (stacked * mask.unsqueeze(-1)).sum(1)
        if self.kind == "pool":
            return (stacked * (mask * (self.weight / self.temperature)).to(stacked.dtype).unsqueeze(-1)).sum(1)
        weight = mask.to(stacked.dtype)
        if self.fitted:
            weight = weight * self.weight.to(stacked.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        if self.task == "regression":
            return (stacked * weight.unsqueeze(-1)).sum(1)
        if self.fitted:
            stacked = stacked / self.temperature.to(stacked.dtype)[:, None]
        return self._mixed(stacked, weight) * mask.any(1, keepdim=True)

    def _mixed(self, logits: Tensor, weight: Tensor) -> Tensor:
        """Logits ``[n, C]`` of the mixture of probabilities, formed in the logarithm."""
        log_weight = weight.clamp(min=torch.finfo(weight.dtype).tiny).log().unsqueeze(-1)
        if self.task == "classification":
            return torch.logsumexp(F.log_softmax(logits, dim=-1) + log_weight, dim=1)
        positive = torch.logsumexp(F.logsigmoid(logits) + log_weight, dim=1)
        return positive - torch.logsumexp(F.logsigmoid(-logits) + log_weight, dim=1)

    def _mask(self, like: Tensor, usable: Mapping[str, Tensor]) -> Tensor:
        everywhere = torch.ones(len(like), dtype=torch.bool, device=like.device)
        return torch.stack([usable.get(name, everywhere) for name in self.heads], dim=1)

    def fit(self, logits: Mapping[str, Tensor], labels: Tensor, usable: Mapping[str, Tensor]) -> bool:
        """Fit temperatures and weights to held-out rows; whether the answer has changed by it."""
        if not self.fitted or not len(labels):
            return False
        heads = [logits[name].double() for name in self.heads]
        mask = self._mask(heads[0], usable)
        temperatures = [
            fit_temperature(self.task, z[rows], labels[rows]) for z, rows in zip(heads, mask.T, strict=True)
        ]
        before = self.temperature.clone(), self.weight.clone()
        self.temperature.copy_(self.temperature.new_tensor(temperatures))
        if self.kind == "pool":
            calibrated = torch.stack([z / t for z, t in zip(heads, temperatures, strict=True)], dim=1)
            self.weight.copy_(pool_weights(self.task, calibrated, labels, mask))
        else:
            evidence = torch.stack(
                [label_log_likelihood(self.task, z, labels, t) for z, t in zip(heads, temperatures, strict=True)], dim=1
            )
            self.weight.copy_(mixture_weights(evidence, mask))
        return not all(map(torch.equal, before, (self.temperature, self.weight)))


def usable_alone(presence: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """head ``uni/<m>`` -> bool ``[n]``: the rows that have its modality."""
    return {f"uni/{m}": present for m, present in presence.items()}
