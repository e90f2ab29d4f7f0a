"""Linear layers that begin as something simple, and begin so again when they are reset."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["IdentityLinear", "QuietLinear", "rename_loaded"]


class QuietLinear(nn.Linear):
    """Starts as zero weights and a constant bias: what reads it begins without it.

    Args:
        in_features, out_features: widths.
        start: the bias.
        device, dtype: of the parameters.
    """

    def __init__(self, in_features: int, out_features: int, start: float = 0.0, *, device=None, dtype=None):
        self.start = start
        super().__init__(in_features, out_features, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, self.start)


class IdentityLinear(nn.Linear):
    """Starts as ``scale`` times the identity, and a bias of zero.

    Args:
        features: width in and out.
        scale: what it multiplies by at first.
        bias: as in ``nn.Linear``.
        device, dtype: of the parameters.
    """

    def __init__(self, features: int, scale: float = 1.0, bias: bool = True, *, device=None, dtype=None):
        self.scale = scale
        super().__init__(features, features, bias, device=device, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        weight = self.weight
        identity = torch.eye(self.in_features, dtype=weight.dtype, device=weight.device).mul_(self.scale)
        if hasattr(weight, "placements"):
            # a DTensor takes values from another alone; every rank has them all, so nothing is sent
            from torch.distributed.tensor import distribute_tensor

            cut = cast("DTensor", weight)
            identity = distribute_tensor(identity, cut.device_mesh, cut.placements, src_data_rank=None)
        weight.copy_(identity)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def rename_loaded(module: nn.Module, names: Mapping[str, str]) -> None:
    """Let ``module`` load what earlier versions saved: parameter name then -> name now."""
    module.register_load_state_dict_pre_hook(partial(_rename, dict(names)))


def _rename(names: Mapping[str, str], module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for before, now in names.items():
        if prefix + before in state_dict:
            state_dict[prefix + now] = state_dict.pop(prefix + before)
