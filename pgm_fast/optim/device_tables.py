"""The tables of a launch that change from step to step, on its device, and what CUDA graphs hold of them.

A graph holds addresses, and replays what it was captured with. So tables that it was captured with are left alone from
then on: steps after it get tables of their own. Where gradients move or rates change between the last step and the
capture, as they do where ``zero_grad`` drops the gradients before it, the tables are written within the graph, from
pinned memory that is written once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["CAPTURES", "DeviceTables", "copied", "is_capturing", "is_on_host"]

CAPTURES = 16
"""How often graphs can write new tables between two steps outside of graphs: pinned memory is not to be had within."""


class DeviceTables:
    """Addresses of gradients and hyper-parameters of groups.

    Args:
        gradients, groups: as the host writes them.

    Attributes:
        gradients, groups: as kernels read them; on the CPU the host's own.
    """

    def __init__(self, gradients: Tensor, groups: Tensor, device: torch.device):
        self._host, self._device = (gradients, groups), device
        self.gradients, self.groups = gradients, groups
        self._captured = self._written_in_graph = False
        self._held: list[Tensor] = []  # by graphs, as long as there is anything for them to update
        if not is_on_host(device):
            self._renew()

    def update(self, gradients: bool, groups: bool, capturing: bool) -> None:
        """Bring what changed on the host to the device; while a graph is captured, as part of it.

        Raises:
            RuntimeError: graphs have been captured with new gradients or rates more than CAPTURES times in a row.
        """
        if is_on_host(self._device):
            return
        changed = gradients or groups
        if capturing:
            if changed or self._written_in_graph:
                self._write_in_graph(changed)
            self._captured = True
        elif self._captured and (changed or self._written_in_graph):
            self._held += [self.gradients, self.groups, self._staging]
            self._renew()
        else:
            # from pageable memory: the driver stages it before the call returns, so the host may write it again at once
            if gradients:
                self.gradients.copy_(self._host[0], non_blocking=True)
            if groups:
                self.groups.copy_(self._host[1], non_blocking=True)

    def _renew(self) -> None:
        """Tables that no graph holds, and pinned memory for the graphs to come."""
        self.gradients, self.groups = (copied(table, self._device) for table in self._host)
        self._captured = self._written_in_graph = False
        shape = CAPTURES, sum(map(_words, self._host))
        self._staging = torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=self._device.type == "cuda")
        self._free = self._staged_tables()

    def _staged_tables(self) -> Iterator[list[Tensor]]:
        for row in self._staging:
            parts = row.split([_words(table) for table in self._host])
            yield [
                part.view(table.dtype)[: table.numel()].view_as(table)
                for part, table in zip(parts, self._host, strict=True)
            ]

    def _write_in_graph(self, changed: bool) -> None:
        if changed:
            staged = next(self._free, None)
            if staged is None:
                raise RuntimeError(
                    f"gradients moved or rates changed in more than {CAPTURES} captured steps without one outside of a "
                    "CUDA graph. Keep gradients in place within the graph, zero_grad(set_to_none=False), give rates as "
                    "tensors, or take a step between captures"
                )
            for part, table in zip(staged, self._host, strict=True):
                part.copy_(table)
            self._staged = staged
        if self._captured:  # by a graph before this one, which goes on using them
            self._held += [self.gradients, self.groups]
        self.gradients, self.groups = (copied(table, self._device) for table in self._staged)
        self._written_in_graph = True


def is_on_host(device: torch.device) -> bool:
    """Whether kernels read the host's own tables."""
    return device.type == "cpu"


def copied(table: Tensor, device: torch.device) -> Tensor:
    """New memory of the device with what is in the host's, without waiting for it; part of the graph while one is
    captured."""
    return table.to(device, copy=True, non_blocking=True)


def is_capturing() -> bool:
    """Whether a CUDA graph is captured on the current stream."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _words(table: Tensor) -> int:
    """64-bit words that hold it."""
    return -(-table.numel() * table.element_size() // 8)
