"""A whole update as one CUDA graph: forward, backward, clipping and step, launched by the host at once.

What changes from step to step is in memory that stays where it is: the loader writes every batch into the same tensors
and pads the last one with rows of weight 0, learning rates are on the device, counts are taken in place. On a CPU there
is no graph, and the same memory is used by ordinary steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...data.batch import Batch
from ...methods.base import Method
from ...optim import MultiRateOptimizer
from ..config import TrainConfig
from ..distributed import Ranks

log = logging.getLogger(__name__)

__all__ = ["CapturedStep", "why_not_captured"]

Losses = dict[str, Tensor]


def why_not_captured(method: Method, ranks: Ranks, settings: TrainConfig, rows: int) -> str | None:
    """What stands against steps of a method on ``rows`` rows of training being captured; None where nothing does."""
    if ranks.world > 1:
        return f"it is for one process, this run has {ranks.world}"
    if any(s.sequence for s in method.spec.modalities.values()):
        return "batches of sequences change their length"
    if settings.accumulate > 1:
        return "an update is made of several batches (train.accumulate)"
    if settings.precision == "fp16":
        return "the loss is scaled by a number that changes (train.precision=fp16)"
    if settings.compile and ranks.device.type == "cpu":
        return "steps are compiled (train.compile)"
    if method.turns > 1 or type(method).backward is not Method.backward:
        return f"method {method.name} takes its gradients in a way of its own"
    if type(method).after_backward is not Method.after_backward:
        return f"method {method.name} changes gradients by numbers that the host draws"
    if rows % settings.batch_size and any(isinstance(module, _BatchNorm) for module in method.modules()):
        return (
            f"the last batch of {rows} rows is padded, and padding would count in the statistics of BatchNorm; give a "
            "train.batch_size that divides the rows"
        )
    return None


class CapturedStep:
    """Calls make an update from the loader's batch, which is always in the same memory, and give its loss terms.

    The first call of a graph is an ordinary update, which makes what an optimizer makes once; the second captures one
    and replays it. It is captured anew after :meth:`forget`, and where parameters or buffers have moved.

    Args:
        update: makes an update from a batch; must not wait for the device.
        optimizer: whose rates are read at every call.
        module: whose memory the graph uses.
        device: where there are graphs, if it is a CUDA device.
    """

    def __init__(
        self, update: Callable[[Batch], Losses], optimizer: MultiRateOptimizer, module: nn.Module, device: torch.device
    ):
        self._update, self._optimizer, self._module = update, optimizer, module
        self._rates = torch.zeros(len(optimizer.param_groups), device=device)
        self._rate_of_group = self._rates.unbind()
        self._new_graph = graphs(device)
        self.forget()

    def forget(self) -> None:
        """The next call makes an ordinary update, and the one after it is captured: what a step does has changed."""
        self._graph = None
        self._losses: Losses = {}
        self._seen: list[int] | None = None  # where the memory of an ordinary update was

    def __call__(self, batch: Batch) -> Losses:
        if self._new_graph is None:
            return self._update(batch)

        def update() -> Losses:
            with self._rates_on_device():
                return self._update(batch)

        self._send_rates()
        places = self._places()
        if places != self._seen:
            self.forget()
            losses = self._new_graph.beside(update)
            self._seen = places
            return losses
        if self._graph is None:
            self._graph = self._new_graph()
            try:
                self._losses = self._graph.capture(update)
            except Exception as error:
                self._graph = self._new_graph = None
                reason = str(error).strip().partition("\n")[0]
                log.warning(
                    "train.capture: steps are not captured, training goes on without (%s: %s)",
                    type(error).__name__,
                    reason,
                )
                return self._update(batch)
        self._graph.replay()
        return self._losses

    def _send_rates(self) -> None:
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        # from pageable memory, which the driver has read when the call returns
        self._rates.copy_(torch.tensor(rates, device="cpu"), non_blocking=True)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Groups hold the rates as tensors for the block, and as numbers, which schedules change, outside of it."""
        groups = self._optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._rate_of_group, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number

    def _places(self) -> list[int]:
        return [x.data_ptr() for x in (*self._module.parameters(), *self._module.buffers())]


class _CudaGraph:
    """A captured call and what it gave."""

    def __init__(self):
        self._graph = torch.cuda.CUDAGraph()

    @staticmethod
    def beside(call: Callable[[], Losses]) -> Losses:
        """What ``call`` gives now, computed on a stream apart, as what is captured later must have been once."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            losses = call()
        current.wait_stream(side)
        return losses

    def capture(self, call: Callable[[], Losses]) -> Losses:
        """What ``call`` gives at every :meth:`replay`. It computes nothing yet."""
        with torch.cuda.graph(self._graph):
            return call()

    def replay(self) -> None:
        self._graph.replay()


def graphs(device: torch.device) -> type[_CudaGraph] | None:
    """Graphs of the device; None where there are none."""
    return _CudaGraph if device.type == "cuda" else None
