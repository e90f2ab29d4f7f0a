"""Updates that are safe without the host waiting for them: clipping, and skipping what is not finite."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...optim import MultiRateOptimizer
from ..distributed import Ranks
from .buffers import BufferWatch

__all__ = ["Counts", "DelayedReading", "UpdateGuard"]


class Counts(NamedTuple):
    """What a guard has counted, in the order of its tensor.

    Attributes:
        skipped: updates of the epoch.
        in_a_row: of these the ones just before, without one that was done.
        longest: such row of the run.
        stopping: 1 where a rank was asked to stop.
    """

    skipped: float
    in_a_row: float
    longest: float
    stopping: float


class UpdateGuard:
    """Clips gradients and skips updates that are not finite, all on the device.

    A step whose total loss or global gradient norm is NaN or infinite, or that makes a buffer so (the running
    statistics of a normalisation), changes neither parameters nor buffers nor optimizer state (nor the optimizer's
    step counts): the flag goes to the optimizer as ``found_inf``, the protocol of torch's fused optimizers. No rank
    updates where one must not. The host learns of it from ``counts``, when it asks: they are :class:`Counts`. The
    optimizer clips as it loads gradients, which themselves keep their values. ``counts`` and ``skipped`` are the same
    memory in every step.

    Args:
        optimizer: its ``max_norm`` and ``found_inf`` are set here.
        clip_norm: largest global gradient norm; 0 for none.
        ranks: whose flags are joined.
        module: whose buffers are guarded; None for none.
    """

    def __init__(self, optimizer: MultiRateOptimizer, clip_norm: float, ranks: Ranks, module: nn.Module | None = None):
        self.optimizer = optimizer
        self.optimizer.max_norm = clip_norm or None
        self.ranks = ranks
        self.buffers = BufferWatch(nn.Module() if module is None else module)
        self.counts = torch.zeros(len(Counts._fields), device=ranks.device)
        self.skipped = torch.zeros((), device=ranks.device)  # 1 if the last update was skipped
        self.optimizer.found_inf = self.skipped
        self.optimizer.grad_scale = None

    def begin(self) -> None:
        """Before the forward pass of a step: what its buffers go back to if it is skipped."""
        self.buffers.remember()

    @torch.no_grad()
    def update(self, loss: Tensor, stop: bool = False) -> None:
        """One step of the optimizer from the gradients at hand.

        Args:
            loss: the scalar that backward started from.
            stop: whether this rank was asked to stop; with several ranks, any one's wish shows in ``counts`` on all.
        """
        skipped, row, longest, stopping = self.counts.unbind()
        seen = loss.detach() + self.optimizer.total_norm()
        difference = seen - seen  # 0, or NaN where anything is infinite or NaN
        torch.ne(difference, 0, out=self.skipped)
        if (whole := self.buffers.finite()) is not None:
            torch.maximum(self.skipped, whole.logical_not().float(), out=self.skipped)
        if self.ranks.world > 1:
            flags = torch.stack([self.skipped, torch.full_like(self.skipped, float(stop))])
            skip, wish = self.ranks.maximum_(flags)
            self.skipped.copy_(skip)
            stopping.copy_(wish)
        self.optimizer.step()
        self.buffers.go_back(self.skipped)
        skipped.add_(self.skipped)
        row.add_(1.0).mul_(self.skipped)
        torch.maximum(longest, row, out=longest)

    def begin_epoch(self) -> None:
        """Count the skipped updates of an epoch from 0."""
        self.counts[Counts._fields.index("skipped")] = 0.0

    def load_counts(self, counts: Tensor, limit: int) -> None:
        """Go on from the ``counts`` of another guard, whose run a signal or ``limit`` skipped updates in a row ended:
        whoever takes it up again has mended the cause or wants to see it once more."""
        self.counts.copy_(counts)
        _, row, longest, stopping = self.counts.unbind()
        stopping.zero_()
        if longest > limit:
            row.zero_()
            longest.zero_()


class DelayedReading:
    """Values of a small device tensor on the host, one call late, so that nobody waits; at once on the CPU."""

    def __init__(self, device: torch.device):
        self._device = device
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, tensor: Tensor) -> list[float] | None:
        """Hand in the present values; get those of the call before (None at first), on the CPU the present ones."""
        if self._device.type != "cuda":
            return tensor.tolist()
        values = None
        if self._pending is not None:
            host, event = self._pending
            event.synchronize()
            values = host.tolist()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        # of the tensor's device, where the copy is: another may be the current one
        event.record(torch.cuda.current_stream(self._device))
        self._pending = (host, event)
        return values
