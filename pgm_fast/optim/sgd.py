"""SGD for any number of param groups at the cost of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .launch import Entry
from .multi_rate import MultiRateOptimizer

__all__ = ["MultiRateSGD"]


class MultiRateSGD(MultiRateOptimizer):
    """:class:`torch.optim.SGD`, every tensor of every param group in one kernel launch.

    Sutskever et al. 2013, in the form of ``torch.optim.SGD``.

    Args:
        params: parameters, or groups of them, each with any of the following that are marked so.
        lr: learning rate; float or 0-dim tensor (per group).
        momentum: (per group).
        dampening: of the momentum's gradient, after the first step (per group).
        weight_decay: added to the gradient (per group).
        nesterov: needs a momentum and no dampening (per group).
        maximize, update_every, max_norm, clip, skip_nonfinite, master_weights, foreach, capturable, differentiable,
            fused: as :class:`~pgm_fast.optim.MultiRateAdamW` has them.

    State, with momentum: ``momentum_buffer``, zeros before the first step, and ``step``, which torch does not have and
    does not mind.

    Raises:
        ValueError: a hyper-parameter out of its range.
        TypeError: a complex parameter, or one of a dtype without a kernel.
    """

    algorithm = "sgd"

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        update_every: int = 1,
        max_norm: float | None = None,
        clip: str = "global",
        skip_nonfinite: bool = False,
        master_weights: str | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, update_every, max_norm, clip, skip_nonfinite, master_weights)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov takes a momentum > 0 and no dampening, got momentum={group['momentum']}, "
                f"dampening={group['dampening']}"
            )

    def _moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",)

    def _needed_moments(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self._moments() if group["momentum"] != 0 else ()

    def _make_state(self, entry: Entry) -> None:
        if entry.group["momentum"] != 0:
            # a buffer that torch saved has taken its first gradient; torch has no count
            state = self.state[entry.param]
            state.setdefault("step", 0.0 if state.get("momentum_buffer") is None else 1.0)
        super()._make_state(entry)

    def _counters(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return (*(("step",) if group["momentum"] != 0 else ()), *super()._counters(group))
