"""Half precision: autocast, and the factor that keeps small gradients of float16 from vanishing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...optim.watch import local_tensor
from ..config import PRECISIONS

__all__ = ["LossScale", "autocast"]

_START, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000  # those of torch.amp.GradScaler


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context that a forward pass at ``train.precision`` runs in."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018), with the numbers of :class:`torch.amp.GradScaler`.

    Gradients are brought back to their size before anything looks at them, so that clipping and methods that work on
    gradients need not know of it. An update that overflows is skipped as every update that is not finite, on all ranks,
    and the factor halved; after 2000 updates in a row it is doubled. The host never waits for it.

    Attributes:
        factor: what the loss is multiplied by, a float32 scalar on the device.
    """

    def __init__(self, device: torch.device):
        self.factor = torch.tensor(_START, device=device)
        self._row = torch.zeros((), device=device)  # updates since the factor changed

    @torch.no_grad()
    def unscale_(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients by the factor, in place. It is a power of two: nothing is rounded."""
        gradients = [local_tensor(gradient) for gradient in gradients]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.factor)

    def update(self, skipped: Tensor) -> None:
        """After an update of the optimizer, which was skipped (a number on the device, not 0) or not."""
        row = self._row + 1
        grown = torch.where(row >= _INTERVAL, self.factor * _GROWTH, self.factor)
        self.factor = torch.where(skipped != 0, self.factor * _BACKOFF, grown)
        self._row = torch.where((skipped != 0) | (row >= _INTERVAL), 0.0, row)

    def state_dict(self) -> dict[str, Tensor]:
        return {"factor": self.factor, "row": self._row}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.factor, self._row = (state[key].to(self.factor.device) for key in ("factor", "row"))
