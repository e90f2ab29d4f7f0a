"""Running statistics that a bad batch must not spoil: buffers as they were before a step, to go back to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["BufferWatch"]


class BufferWatch:
    """Remembers the buffers of a module (a BatchNorm's running statistics, say), all on the device.

    A class may name in ``written_in_steps`` those of its buffers that a step writes, where others change between epochs
    only. Of a class that does not, itself and not its parents, all are watched.

    Args:
        module: its submodules are fixed from here on; their buffers may be replaced by others of the same size.
    """

    def __init__(self, module: nn.Module):
        self._owners = [(owner._buffers, name) for owner in module.modules() for name in _written(owner)]
        self._before: list[tuple[list[int], Tensor]] = []

    @torch.no_grad()
    def remember(self) -> None:
        """The present buffers are those to go back to."""
        # One tensor per type: a few kernels, however many buffers there are.
        groups = defaultdict(list)
        for number, (buffers, name) in enumerate(self._owners):
            if buffers.get(name) is not None:
                groups[buffers[name].dtype].append(number)
        self._before = [(numbers, self._flat(numbers)) for numbers in groups.values()]

    @torch.no_grad()
    def finite(self) -> Tensor | None:
        """Whether every value that was finite is so still: a bool on the device; None where there are no buffers."""
        kept = [
            (torch.isfinite(self._flat(numbers)) | ~torch.isfinite(before)).all()
            for numbers, before in self._before
            if before.is_floating_point()
        ]
        return torch.stack(kept).all() if kept else None

    @torch.no_grad()
    def go_back(self, where: Tensor) -> None:
        """Undo what happened to the buffers since :meth:`remember` if ``where`` (a number on the device) is not 0."""
        for numbers, before in self._before:
            values = torch.where(where != 0, before, self._flat(numbers))
            buffers = [self._buffer(number) for number in numbers]
            parts = values.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])

    def _buffer(self, number: int) -> Tensor:
        buffers, name = self._owners[number]
        return buffers[name]

    def _flat(self, numbers: list[int]) -> Tensor:
        return torch.cat([self._buffer(number).reshape(-1) for number in numbers])


def _written(owner: nn.Module) -> Iterable[str]:
    return vars(type(owner)).get("written_in_steps", owner._buffers)
