"""An average of the weights over the updates of a stage: validated and kept in place of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...optim.watch import local_tensor
from ..sharding import cut

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential moving average of the parameters that are trained: a += (1 - d) (w - a) after every update.

    d is ``decay``, in the first updates less: min(decay, (1 + t) / (10 + t)) in update t, counted from 1, so that the
    start is soon forgotten (as TensorFlow's ExponentialMovingAverage with ``num_updates``). Buffers are not averaged.

    Args:
        module: the average starts as its parameters are now; those that take gradients now are averaged.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in named]
        self._weights = [p for _, p in named]
        self._average = [p.detach().clone() for p in self._weights]
        self._updates = 0

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """After an update of the optimizer; one that was skipped (a number on the device, not 0) changes nothing."""
        self._updates += 1
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        weights, average = _here(self._weights), _here(self._average)
        way = torch._foreach_sub(weights, average)
        torch._foreach_mul_(way, (1 - decay) * (skipped == 0))
        torch._foreach_add_(average, way)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the average for the block, and its own weights, to the bit, afterwards."""
        with torch.no_grad():
            weights = _here(self._weights)
            own = [x.clone() for x in weights]
            torch._foreach_copy_(weights, _here(self._average))
            try:
                yield
            finally:
                torch._foreach_copy_(weights, own)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self._updates, "weights": dict(zip(self._names, self._average, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, int | Mapping[str, Tensor]]) -> None:
        self._updates = state["updates"]
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(cut(state["weights"][name], average))


def _here(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The memory of each that is in this process."""
    return [local_tensor(x.detach()) for x in tensors]
