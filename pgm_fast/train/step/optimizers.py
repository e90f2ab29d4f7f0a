"""Optimizers and learning rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from ...errors import ConfigError
from ...methods.base import MONITORS, OPTIMIZERS, SCHEDULES
from ...optim import MultiRateAdamW, MultiRateOptimizer, MultiRateSGD

__all__ = ["Schedule", "build_optimizer", "cosine_factor"]

MOMENTUM = 0.9
FINAL_FACTOR = 0.01  # the cosine ends at this part of the base rate


def _adamw(groups: list[dict], weight_decay: float) -> MultiRateOptimizer:
    return MultiRateAdamW(groups, weight_decay=weight_decay)


def _sgd(groups: list[dict], weight_decay: float) -> MultiRateOptimizer:
    return MultiRateSGD(groups, momentum=MOMENTUM, weight_decay=weight_decay)


_BUILDERS: dict[str, Callable[[list[dict], float], MultiRateOptimizer]] = {"adamw": _adamw, "sgd": _sgd}


def build_optimizer(name: str, groups: list[dict], weight_decay: float) -> MultiRateOptimizer:
    """The optimizer called ``name`` over param groups that bring their own ``lr`` and ``name``.

    ``weight_decay`` holds where a group does not say its own. ``sgd`` has momentum 0.9.

    Raises:
        ConfigError: unknown name, or no parameter to train.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"train.optimizer is {name!r}, must be one of {', '.join(OPTIMIZERS)}")
    if not any(len(group["params"]) for group in groups):
        raise ConfigError("there is no parameter to train in this stage; check the rates and the encoders")
    return _BUILDERS[name]([{**group, "params": list(group["params"])} for group in groups], weight_decay)


def cosine_factor(step: int, total: int, warmup: int) -> float:
    """Part of the base rate at ``step`` of ``total``: linear up over ``warmup`` steps, then half a cosine down to 0.01.

    Loshchilov & Hutter 2017 (SGDR) without restarts; the warm-up as in Goyal et al. 2017.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return FINAL_FACTOR + (1.0 - FINAL_FACTOR) * 0.5 * (1.0 + math.cos(math.pi * done))


class Schedule:
    """The learning rates of one stage.

    Args:
        name: ``constant``; ``cosine`` with warm-up, per step; ``plateau``: times ``factor`` (0.3) after more than
            ``patience`` (5) epochs without a better ``monitor`` of the fused output on validation (``score``: the
            metric that ``train.monitor`` names; ``loss``: the task's loss, which goes on falling where a metric of few
            rows stands still); ``step``: times ``factor`` (0.1) after each ``every`` (30) epochs.
        optimizer: its groups' present rates are the base rates.
        total_steps: steps of the stage.
        warmup_steps: cosine only; at most half of the stage.
        options: in place of those defaults.

    Raises:
        ConfigError: unknown name, or an option that the schedule does not have or take.
    """

    def __init__(
        self,
        name: str,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        options: Mapping[str, float | str] | None = None,
    ):
        if name not in SCHEDULES:
            raise ConfigError(f"train.schedule is {name!r}, must be one of {', '.join(SCHEDULES)}")
        unknown = [key for key in options or {} if key not in SCHEDULES[name]]
        if unknown:
            takes = ", ".join(SCHEDULES[name]) or "none"
            raise ConfigError(f"schedule {name} has no option {', '.join(unknown)}; it takes {takes}")
        numbers = {**SCHEDULES[name], **(options or {})}
        self.monitor = numbers.get("monitor", "score")
        if self.monitor not in MONITORS:
            raise ConfigError(f"monitor of schedule {name} is {self.monitor!r}, must be one of {', '.join(MONITORS)}")
        self._per_step: LambdaLR | None = None
        self._per_epoch: ReduceLROnPlateau | StepLR | None = None
        if name == "cosine":
            warmup = min(warmup_steps, total_steps // 2)
            self._per_step = LambdaLR(optimizer, lambda step: cosine_factor(step, total_steps, warmup))
        elif name == "plateau":
            # Both may be negative (an error, negated), where a relative threshold would call an equal one better.
            self._per_epoch = ReduceLROnPlateau(
                optimizer,
                mode="max",
                factor=numbers["factor"],
                patience=int(numbers["patience"]),
                threshold=1e-6,
                threshold_mode="abs",
            )
        elif name == "step":
            self._per_epoch = StepLR(optimizer, int(numbers["every"]), gamma=numbers["factor"])

    def step(self) -> None:
        """After every training step."""
        if self._per_step is not None:
            self._per_step.step()

    def epoch(self, score: float, loss: float) -> None:
        """After every validation, with the fused output's score (larger is better) and task loss."""
        if isinstance(self._per_epoch, ReduceLROnPlateau):
            self._per_epoch.step(score if self.monitor == "score" else -loss)
        elif self._per_epoch is not None:
            self._per_epoch.step()

    def state_dict(self) -> dict[str, Any]:
        active = self._per_step or self._per_epoch
        return {} if active is None else active.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        active = self._per_step or self._per_epoch
        if active is not None:
            active.load_state_dict(state)
