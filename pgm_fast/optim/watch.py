"""What has to be looked at before every step: where gradients are, and what changed since tables were made of it.

In Python here, compiled in ``csrc/torch/multi_rate.cpp`` where the host path is built.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..backends import host

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "GRADIENTS",
    "RATES",
    "REBUILD",
    "Watched",
    "address_of_gradient",
    "beta_columns",
    "is_direct",
    "local_gradient",
    "local_tensor",
    "make_watch",
    "placements_of",
    "same_strides",
]

EMPTY = 16  # the address of a gradient without elements, which nobody reads
GRADIENTS, RATES, REBUILD = 1, 2, 4
"""What :meth:`Watch.refresh` reports, as a sum: addresses of gradients, hyper-parameters that are plain numbers, and
everything else, which takes new tables."""


@dataclass(frozen=True)
class Watched:
    """A parameter of the optimizer as it was when the tables were made.

    Attributes:
        param: its ``grad`` is watched.
        local: the memory of it that is here: the parameter itself or a DTensor's shard.
        slot: row of its gradient's address, which is 0 while there is none; -1 where it never had one.
        copied: whether the address is that of a copy in the strides and placements of the parameter.
        versioned: whether a write to it by anybody else takes new tables: master weights are a copy of it.
        gradient: the local gradient, for its dtype.
    """

    param: Tensor
    local: Tensor
    slot: int
    copied: bool
    versioned: bool
    gradient: Tensor | None


def make_watch(
    params: Sequence[Watched],
    state: Mapping[Tensor, dict],
    groups: list[dict],
    columns: Mapping[str, int],
    gradients: array,
    rows: Tensor,
    rows_double: Tensor,
) -> Watch:
    """A compiled watch, or one in Python.

    Args:
        groups: the optimizer's own list.
        columns: name of a hyper-parameter -> its column in the rows, of ``betas`` the first of five.
        gradients: addresses, written by the watch.
        rows, rows_double: hyper-parameters of each group, float32 and float64, written by the watch.
    """
    compiled = host.load_or_none()
    if compiled is None:
        return Watch(params, state, groups, columns, gradients, rows, rows_double)
    listed = [(w.param, w.local, w.slot, w.copied, w.versioned, w.gradient) for w in params]
    addresses = gradients.buffer_info()[0], rows.data_ptr(), rows_double.data_ptr()
    return compiled.Watch(listed, state, groups, dict(columns), *addresses)


def beta_columns(beta1: float, beta2: float) -> list[float]:
    """What the rows hold of betas: 1 - beta1, beta2, 1 - beta2 and both logarithms."""
    logarithms = [math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2)]
    return [1.0 - beta1, beta2, 1.0 - beta2, *logarithms]


class Watch:
    """See :func:`make_watch`."""

    def __init__(self, params, state, groups, columns, gradients, rows, rows_double):
        self.params, self.columns = params, columns
        self.gradients, self.rows, self.rows_double = gradients, rows, rows_double
        self.addresses = [w.local.data_ptr() for w in params]
        self.versions = [_version(w) for w in params]
        self.dicts = [
            (entries, list(entries.items())) for entries in (state, *state.values()) if isinstance(entries, dict)
        ]
        self.groups = [(group, dict(group)) for group in groups]
        self.lists = [(members, list(members)) for members in (groups, *(group["params"] for group in groups))]

    def refresh(self) -> int:
        """What changed since the last call; addresses and numbers are in the tables by then, unless it is
        ``REBUILD``."""
        for entries, known in self.dicts:
            if len(entries) != len(known):
                return REBUILD
            for (key, value), (known_key, known_value) in zip(entries.items(), known, strict=True):
                if key is not known_key or value is not known_value:
                    return REBUILD
        if any(len(now) != len(known) or any(map(operator.is_not, now, known)) for now, known in self.lists):
            return REBUILD
        changes = 0
        for index, (group, known) in enumerate(self.groups):
            if group.keys() != known.keys():
                return REBUILD
            for key, value in group.items():
                if value is not known[key]:
                    if not self._take_in(index, key, known[key], value):
                        return REBUILD
                    known[key] = value
                    changes |= RATES
        for w, address, version in zip(self.params, self.addresses, self.versions, strict=True):
            change = self._look_at(w, address)
            if change == REBUILD or _version(w) != version:
                return REBUILD
            changes |= change
        return changes

    def bump_versions(self) -> None:
        """Tells autograd that the parameters were written: what saved them for a backward pass must not use them any
        more."""
        torch.autograd.graph.increment_version([w.param for w in self.params if w.slot >= 0 and self.gradients[w.slot]])
        self.versions = [_version(w) for w in self.params]

    def _take_in(self, index: int, key: str, old: Any, new: Any) -> bool:
        if key == "betas" and key in self.columns:
            if len(new) != 2 or not all(isinstance(beta, Real) and 0 < float(beta) < 1 for beta in new):
                return False
            values = beta_columns(*map(float, new))
        elif key in self.columns and isinstance(old, Real) and isinstance(new, Real):
            if (old == 0) != (new == 0):  # a momentum that comes or goes brings or takes state
                return False
            values = [float(new)]
        else:
            return False
        first = self.columns[key]
        for rows in (self.rows, self.rows_double):
            rows[index, first : first + len(values)] = torch.tensor(values, dtype=rows.dtype, device="cpu")
        return True

    def _look_at(self, w: Watched, address: int) -> int:
        if w.param.grad is None:
            if w.slot < 0 or not self.gradients[w.slot]:
                return 0
            if w.copied:
                return REBUILD
            self.gradients[w.slot] = 0
            return GRADIENTS
        local, grad = local_tensor(w.param), local_tensor(w.param.grad)
        if w.slot < 0 or w.gradient is None or local.data_ptr() != address:
            return REBUILD
        if grad.layout != torch.strided or grad.dtype != w.gradient.dtype or grad.device != local.device:
            return REBUILD
        if is_direct(w.param, w.param.grad) == w.copied:
            return REBUILD
        if w.copied or self.gradients[w.slot] == address_of_gradient(grad):
            return 0
        self.gradients[w.slot] = address_of_gradient(grad)
        return GRADIENTS


def address_of_gradient(grad: Tensor) -> int:
    """Of a local gradient, never 0, which means that there is none: an empty one, a shard say, has no memory."""
    return grad.data_ptr() or EMPTY


def local_tensor(x: Tensor) -> Tensor:
    """The memory of ``x`` that is in this process: a DTensor's shard, else ``x`` itself."""
    return getattr(x, "_local_tensor", x)


def local_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """The memory of ``param``'s gradient in this process, for the part of the parameter that is here; where a DTensor's
    gradient is placed in another way (``Partial``, say), after the communication that places it so."""
    grad = grad.detach()
    if placements_of(grad) != placements_of(param):
        grad = cast("DTensor", grad).redistribute(placements=placements_of(param))
    return local_tensor(grad)


def placements_of(x: Tensor) -> tuple:
    """How a DTensor is cut, of any other tensor nothing."""
    return getattr(x, "placements", ())


def is_direct(param: Tensor, grad: Tensor) -> bool:
    """Whether a kernel can walk a parameter and its gradient in the order of memory."""
    local = local_tensor(param)
    return (
        placements_of(param) == placements_of(grad)
        and torch.ops.aten.is_non_overlapping_and_dense(local)
        and same_strides(local, local_tensor(grad))
    )


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether elements are in the same places; the stride of a dimension of size 1 says nothing."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    return all(size == 1 or x == y for size, x, y in zip(a.shape, a.stride(), b.stride(), strict=True))


def _version(w: Watched) -> int:
    return w.param._version if w.versioned else 0
