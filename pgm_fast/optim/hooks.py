"""What torch puts around an optimizer's step (hooks, the profiler's record, the compiler) at less cost to the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["hooked", "leave_uncompiled"]

WHY_NOT_COMPILED = "a step is one kernel launch already; a graph of it would check every parameter before each call"


def hooked(step: Callable) -> Callable:
    """``step`` with the hooks and the profiler's record that torch.optim puts around it, where there are any: looking
    for them otherwise takes longer than all else that the host does for a step of a few parameters."""
    observed = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def call(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateImportUsage]
        ):
            return observed(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    # so that torch leaves it as it is
    call.hooked = True  # pyright: ignore[reportAttributeAccessIssue]
    return call


@functools.cache
def leave_uncompiled(optimizer: type[Optimizer]) -> None:
    """``torch.compile`` runs ``step`` and ``total_norm`` of a class as they are.

    To be called at its first instance, not at import: it loads torch._dynamo, as torch's own constructor does.
    """
    for name in ("step", "total_norm"):
        setattr(optimizer, name, torch.compiler.disable(getattr(optimizer, name), reason=WHY_NOT_COMPILED))
