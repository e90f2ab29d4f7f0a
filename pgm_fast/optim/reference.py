"""The mathematics of the multi-rate optimizers in plain PyTorch: the definition that every kernel is held against.

AdamW: Loshchilov & Hutter 2019 (arXiv 1711.05101); amsgrad: Reddi et al. 2018. SGD: Sutskever et al. 2013, as
``torch.optim.SGD`` writes it. Everything is computed in the dtype of the state, and nothing is read by the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .launch import Entry, Launch, update_every

__all__ = ["adamw", "run_squares", "run_step", "sgd"]


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    **group: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of AdamW; ``step`` counts this one. The group brings lr, betas, eps and weight_decay.

    Returns:
        The new ``(param, exp_avg, exp_avg_sq, max_exp_avg_sq)``.
    """
    beta1, beta2 = group["betas"]
    exp_avg = exp_avg + (1.0 - beta1) * (grad - exp_avg)
    exp_avg_sq = beta2 * exp_avg_sq + (1.0 - beta2) * grad * grad
    if max_exp_avg_sq is not None:
        max_exp_avg_sq = torch.maximum(max_exp_avg_sq, exp_avg_sq)
    root = (exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq).sqrt()
    denominator = root / _bias_correction(beta2, step).sqrt() + group["eps"]
    decayed = param * (1.0 - group["lr"] * group["weight_decay"])
    param = decayed - group["lr"] / _bias_correction(beta1, step) * exp_avg / denominator
    return param, exp_avg, exp_avg_sq, max_exp_avg_sq


def sgd(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor | None, step: Tensor | None, **group: Any
) -> tuple[Tensor, Tensor | None]:
    """One step of SGD; ``step`` counts this one. The group brings lr, momentum, dampening, nesterov and weight_decay.

    Returns:
        The new ``(param, momentum_buffer)``.
    """
    grad = grad + group["weight_decay"] * param
    if momentum_buffer is None:
        return param - group["lr"] * grad, None
    # the first gradient is taken whole; the buffer is 0 before it
    part = 1.0 - group["dampening"] * (step != 1).to(grad.dtype)
    momentum_buffer = group["momentum"] * momentum_buffer + part * grad
    direction = grad + group["momentum"] * momentum_buffer if group["nesterov"] else momentum_buffer
    return param - group["lr"] * direction, momentum_buffer


UPDATES: dict[str, Callable[..., tuple[Any, ...]]] = {"adamw": adamw, "sgd": sgd}


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step; ``powf(beta, step)`` in its place is off by up to 2e-4."""
    return -torch.expm1(step * (math.log(beta) if beta > 0.0 else -math.inf))


@torch.no_grad()
def run_squares(launch: Launch) -> None:
    """Sums of squares of the gradients as they are: of each group, then of all, into ``launch.sums``."""
    sums = [torch.zeros((), dtype=torch.float64, device=launch.device) for _ in range(launch.num_groups)]
    for entry, grad in launch.present():
        sums[entry.group_index] = sums[entry.group_index] + grad.double().square().sum()
    launch.sums.copy_(torch.stack([*sums, torch.stack(sums).sum()]))


@torch.no_grad()
def run_step(launch: Launch) -> None:
    """What one launch does: every entry updated, unless the step is skipped or not due."""
    skip = torch.zeros((), dtype=torch.bool, device=launch.device)
    if launch.found_inf is not None:
        skip = skip | (launch.found_inf != 0).reshape(())
    if launch.check_finite:
        skip = skip | ~launch.sums[-1].isfinite()
    if launch.skipped is not None:
        launch.skipped.add_(skip)
    for entry, grad in launch.present():
        _step_entry(launch, entry, grad, skip)


def _step_entry(launch: Launch, entry: Entry, grad: Tensor, skip: Tensor) -> None:
    group, state = entry.group, entry.state
    due = ~skip
    if "waited" in state:
        due = due & (state["waited"] + 1 >= update_every(group))
        state["waited"].copy_(torch.where(skip, state["waited"], torch.where(due, 0.0, state["waited"] + 1)))
    dtype = launch.compute_dtype
    grad = grad.to(dtype) * gradient_factor(launch, entry)
    param = entry.precise_param()
    step = None if "step" not in state else (state["step"] + 1).to(dtype)
    lr = group["lr"].to(launch.device, dtype) if isinstance(group["lr"], Tensor) else group["lr"]
    moments = [None if name is None else state.get(name) for name in entry.moment_names]
    new_param, *new_moments = UPDATES[launch.algorithm](param, grad, *moments, step=step, **{**group, "lr": lr})
    for old, new in zip(moments, new_moments, strict=True):
        if old is not None:
            old.copy_(torch.where(due, new, old))
    entry.store_param(torch.where(due, new_param, param))
    if step is not None:
        state["step"].copy_(torch.where(due, state["step"] + 1, state["step"]))


def gradient_factor(launch: Launch, entry: Entry) -> Tensor:
    """What a gradient is multiplied by: sign, clipping (the rule of ``clip_grad_norm_``) and gradient scale in one."""
    factor = torch.ones((), dtype=torch.float64, device=launch.device)
    scale = factor if launch.grad_scale is None else launch.grad_scale.double().reshape(())
    if launch.clip != "none":
        norm = launch.sums[-1 if launch.clip == "global" else entry.group_index].sqrt() / scale
        factor = (launch.max_norm(entry.group) / (norm + 1e-6)).clamp(max=1.0)
    return ((-1.0 if entry.group["maximize"] else 1.0) * factor / scale).to(launch.compute_dtype)
