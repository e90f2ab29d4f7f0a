"""AdamW for any number of param groups at the cost of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .multi_rate import MultiRateOptimizer

__all__ = ["MultiRateAdamW"]


class MultiRateAdamW(MultiRateOptimizer):
    """:class:`torch.optim.AdamW`, every tensor of every param group in one kernel launch.

    Loshchilov & Hutter 2019 (arXiv 1711.05101); a rate of its own per modality and part: PgM (arXiv 2507.11661), see
    :func:`pgm_fast.optim.multi_rate_groups`. ``update_every``, clipping within the step and the forms of master weights
    are extensions.

    Args:
        params: parameters, or groups of them, each with any of the following that are marked so.
        lr: learning rate; float or 0-dim tensor (per group).
        betas: decay of the first and the second moment (per group).
        eps: added to the root of the second moment (per group).
        weight_decay: decoupled from the gradient (per group).
        amsgrad: divide by the largest second moment so far (per group).
        maximize: climb instead of descend (per group).
        update_every: a step updates the group only each time it is the k-th since the last update (per group). The
            gradients of the steps between are not looked at: accumulate them (no ``zero_grad``) or drop them, as you
            like.
        max_norm: gradients are scaled down to this norm as they are loaded; ``grad`` itself keeps its values. None: not
            at all.
        clip: ``"global"``, one norm over all groups, or ``"group"``, ``max_norm`` per group and its own norm each.
        skip_nonfinite: whether a NaN or an infinity in any gradient skips the step, as ``found_inf`` does; it is
            counted in ``skipped_steps``.
        master_weights: of 16-bit parameters: None; ``"float32"``, a float32 copy; ``"remainder"``, the 16 bits that a
            bfloat16 lacks of a float32, half of that memory, to the same updates. No process group gathers 16-bit
            integers: checkpoint shards of that form as shards, without ``full_state_dict``.
        foreach, fused, capturable: taken as torch takes them, and without effect: a step is one kernel in any case,
            with its state on the device; any instance can be captured, with ``lr`` as a tensor there if it is to
            change between replays.
        differentiable: must be False.

    State: ``step`` (float32 scalar), ``exp_avg``, ``exp_avg_sq``, with amsgrad ``max_exp_avg_sq``, and ``waited``,
    ``master_param`` or ``param_remainder`` where they are asked for.

    Raises:
        ValueError: a hyper-parameter out of its range.
        TypeError: a complex parameter, or one of a dtype without a kernel.
    """

    algorithm = "adamw"

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
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
            "betas": _checked_betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": True,
        }
        super().__init__(params, defaults, update_every, max_norm, clip, skip_nonfinite, master_weights)

    def _check_group(self, group: dict[str, Any]) -> None:
        group["betas"] = _checked_betas(group["betas"])
        super()._check_group(group)

    def _moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def _needed_moments(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self._moments() if group["amsgrad"] else self._moments()[:2]

    def _counters(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("step", *super()._counters(group))


def _checked_betas(betas: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(beta) for beta in betas)
    except (TypeError, ValueError):
        found = ()
    if len(found) != 2 or not all(0.0 <= beta < 1.0 for beta in found):
        raise ValueError(f"betas are {betas!r}, must be two numbers in [0, 1)")
    return found
