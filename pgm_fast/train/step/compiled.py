"""Losses and gradients of a batch as one program of torch.compile, in place of a forward pass and a walk over its
graph."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from ...data.batch import Batch
from ...methods.base import Method
from ..config import TrainConfig
from ..distributed import Ranks

__all__ = ["CompiledStep", "why_not_compiled"]

log = logging.getLogger(__name__)


def why_not_compiled(method: Method, ranks: Ranks, settings: TrainConfig) -> str | None:
    """What stands against a program for the method's steps; None where nothing does."""
    if ranks.device.type != "cpu":
        return f"it is for CPUs, this run is on {ranks.device.type}"
    if ranks.world > 1:
        return f"it is for one process, this run has {ranks.world}"
    if settings.accumulate > 1 or settings.precision == "fp16":
        return "gradients are added up or scaled (train.accumulate, train.precision=fp16)"
    if method.turns > 1 or type(method).backward is not Method.backward:
        return f"method {method.name} takes its gradients in a way of its own"
    if any(s.sequence for s in method.spec.modalities.values()):
        return "batches of sequences change their length, and every length would be another program"
    if not _traces_gradients():
        return f"torch {torch.__version__} does not trace torch.autograd.grad, which torch 2.11 and later do"
    return None


class CompiledStep:
    """Calls give a batch's losses, with the gradients of ``total`` in ``.grad``.

    The program is made at the first batch of full size, which takes a minute or two, and less where torch's cache on
    disk knows it. Random numbers are those of the compiled program, not of the eager pass: a run repeats itself, and is
    taken up again, to the bit with the same setting.

    Args:
        method: in training mode at every call.
        parameters: those that are trained; the others have no gradient.
        rows: of a batch of full size.
        precision: ``fp32``, ``bf16``.
    """

    def __init__(self, method: Method, parameters: Iterable[Tensor], rows: int, precision: str):
        import torch._dynamo.config  # seconds, which only a run that compiles spends

        self._parameters = list(parameters)
        self._rows = rows
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

        def losses_and_gradients(batch: Batch) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
            with autocast:
                losses = method(batch).losses
            gradients = torch.autograd.grad(losses["total"], self._parameters, allow_unused=True)
            return {name: loss.detach() for name, loss in losses.items()}, gradients

        self._tracing = torch._dynamo.config.patch(trace_autograd_ops=True)
        # a step is a hundred short kernels: no Python between them
        self._program = torch.compile(
            losses_and_gradients, fullgraph=True, dynamic=False, options={"cpp_wrapper": True}
        )

    def __call__(self, batch: Batch) -> dict[str, Tensor] | None:
        """The losses; None where the batch is of another size, or nothing could be compiled, which is logged once."""
        if self._program is None or len(batch.weight) != self._rows:
            return None
        try:
            with self._tracing:
                losses, gradients = self._program(batch)
        except Exception as error:
            self._program = None
            reason = str(error).strip().partition("\n")[0]
            log.warning(
                "train.compile: steps are not compiled, training goes on without (%s: %s)", type(error).__name__, reason
            )
            return None
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return losses


def _traces_gradients() -> bool:
    import torch._dynamo.config

    return hasattr(torch._dynamo.config, "trace_autograd_ops")
