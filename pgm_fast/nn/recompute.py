"""Activation checkpointing of a module whose buffers must not be counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


def recomputed(module: nn.Module, *inputs: Tensor | None) -> Tensor:
    """``module(*inputs)`` whose activations are not kept: backward computes them again (Chen et al. 2016).

    Random numbers are drawn again as they were. Running statistics move in the first pass alone: the second works on
    copies, which are thrown away.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _on_copies(module)

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _on_copies(module: nn.Module) -> Iterator[None]:
    places = [(owner._buffers, name) for owner in module.modules() for name in owner._buffers]
    kept = [buffers[name] for buffers, name in places]
    for (buffers, name), value in zip(places, kept, strict=True):
        buffers[name] = None if value is None else value.detach().clone()
    try:
        yield
    finally:
        for (buffers, name), value in zip(places, kept, strict=True):
            buffers[name] = value
