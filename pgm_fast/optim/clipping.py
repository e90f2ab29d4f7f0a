"""Gradients that somebody else has clipped before the optimizer does."""

from __future__ import annotations

import warnings

__all__ = ["ClippedBefore"]

_STEPS = 3
_ALIKE = 1e-3  # a norm after clipping is off by what its gradients round to, in bfloat16 too


class ClippedBefore:
    """Watches the norms of the first steps and warns once where they come clipped.

    Norms of gradients differ from batch to batch. Where those of three steps in a row are the same but for rounding,
    they were clipped, and to clip them again to another norm is hardly meant. Three are read and no more: on a GPU each
    waits for the device. Norms that are equal in every bit are of one gradient, as in a benchmark, and say nothing.

    Args:
        steps: how many are watched; 0 for none.
    """

    def __init__(self, steps: int = _STEPS) -> None:
        self.steps = steps
        self.norms: list[float] = []

    @property
    def watches(self) -> bool:
        """Whether another norm is wanted."""
        return len(self.norms) < self.steps

    def note(self, norm: float, max_norm: float) -> None:
        """One step's norm before the optimizer clips it, and what it clips to."""
        self.norms.append(norm)
        low, high = min(self.norms), max(self.norms)
        if len(self.norms) == self.steps and len(set(self.norms)) > 1 and high - low <= _ALIKE * high:
            warnings.warn(
                f"gradients had the norm {high:.4g} in each of the first {self.steps} steps: something clips them "
                f"before this optimizer does, to max_norm={max_norm:g}. Clip in one place: leave out clip_grad_norm_ "
                "(max_grad_norm=0 in transformers' TrainingArguments, gradient_clip_val=None in Lightning), or set "
                "max_norm=None here",
                stacklevel=4,
            )
