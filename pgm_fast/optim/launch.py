"""What one kernel launch of a multi-rate optimizer takes: the tensors of one device and one combination of dtypes, as
objects for the reference and as tables of addresses for the kernels.

The tables are those of ``csrc/common/multi_rate.h``: rows of eleven 64-bit words per tensor, two per chunk, thirteen
numbers per group, and the ``Launch`` struct itself as words.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .device_tables import DeviceTables
from .remainder import join_remainder, split_remainder
from .watch import address_of_gradient, beta_columns, local_gradient, local_tensor

__all__ = ["GROUP_COLUMNS", "Entry", "Launch", "Shards", "chunk_size", "group_row", "update_every"]

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
MASTERS = {None: 0, "float32": 1, "remainder": 2}
ALGORITHMS = {"adamw": 0, "sgd": 1}
CLIPS = {"none": 0, "global": 1, "group": 2}
AMSGRAD, NESTEROV, RATE_IS_DOUBLE = 1, 2, 4

GROUP_COLUMNS = {"lr": 0, "weight_decay": 1, "betas": 2, "eps": 7, "momentum": 8}
"""Hyper-parameters that change from step to step, in a group's row: as they are, of ``betas`` what
:func:`~pgm_fast.optim.watch.beta_columns` derives; the others are in :func:`group_row`."""

# words of the Launch struct that change from step to step
WORD_GRADIENTS, WORD_GROUPS, WORD_GRAD_SCALE, WORD_FOUND_INF = 1, 3, 15, 16

SMALLEST_CHUNK, LARGEST_CHUNK = 1 << 10, 1 << 16
CHUNKS_PER_PROCESSOR = 4


@dataclass
class Entry:
    """One parameter that has a gradient, or had one and may have one again.

    Attributes:
        param: the parameter.
        group, group_index: its group.
        state: its state, locally: a DTensor's as shards.
        master: the form of its master weights.
        gradient_dtype: of its gradient.
        moment_names: state that a step rewrites, in the order of the tables; None in the place of one that the group
            does without.
        work: dense memory that stands in for a parameter with gaps during a step; else None.
        gradient_copy: the gradient in the strides and placements of the parameter, where its own are others; else None.
    """

    param: Tensor
    group: dict[str, Any]
    group_index: int
    state: dict[str, Tensor]
    master: str | None
    gradient_dtype: torch.dtype
    moment_names: tuple[str | None, ...]
    work: Tensor | None = None
    gradient_copy: Tensor | None = None

    def local(self) -> Tensor:
        """The memory that a kernel updates."""
        return local_tensor(self.param.detach()) if self.work is None else self.work

    def as_read(self, grad: Tensor) -> Tensor:
        """``grad``, the parameter's own, as a kernel reads it."""
        return local_tensor(grad.detach()) if self.gradient_copy is None else self.gradient_copy

    def gradient_address(self) -> int:
        """0 where there is none: kernels leave the parameter as it is, and do not count the step."""
        grad = self.param.grad
        return 0 if grad is None else address_of_gradient(self.as_read(grad))

    def precise_param(self) -> Tensor:
        """The parameter in the dtype of the computation."""
        if self.master == "float32":
            return self.state["master_param"]
        if self.master == "remainder":
            return join_remainder(self.local(), self.state["param_remainder"])
        local = self.local()
        return local if local.dtype == torch.float64 else local.float()

    def store_param(self, value: Tensor) -> None:
        """Write the parameter, and its master, from a value in the dtype of the computation."""
        if self.master == "remainder":
            high, low = split_remainder(value)
            self.local().copy_(high)
            self.state["param_remainder"].copy_(low)
            return
        if self.master == "float32":
            self.state["master_param"].copy_(value)
        self.local().copy_(value)

    def follow_param(self) -> None:
        """Master weights of a parameter that was written by somebody else: its own value, wherever it is not what they
        round to."""
        master, param = self.state["master_param"], self.local()
        master.copy_(torch.where(master.to(param.dtype) == param, master, param.to(master.dtype)))

    def copy_in(self) -> None:
        """Before a step: what a kernel cannot walk in place."""
        if self.work is not None:
            self.work.copy_(local_tensor(self.param.detach()))
        grad = self.param.grad
        if self.gradient_copy is not None and grad is not None:
            self.gradient_copy.copy_(local_gradient(self.param, grad))

    def copy_out(self) -> None:
        """After it."""
        if self.work is not None:
            local_tensor(self.param.detach()).copy_(self.work)


@dataclass(frozen=True)
class Shards:
    """Over which process groups the sums of squares of DTensor shards are added up."""

    groups: tuple[Any, ...] = ()


@dataclass
class Launch:
    """One launch. Addresses in the tables are of device memory.

    Attributes:
        host_gradients, host_groups: the tables of gradients and groups where the host writes them.
        changing: the same on the device.
        tensors: int64 ``[entries, 11]``. chunks: int64 ``[chunks, 2]``.
        sums: float64 ``[num_groups + 1]``, squares of gradients of each group and of all.
        partials: float64 ``[chunks]``, scratch for them.
        skipped: float32 scalar raised by a skipped step, or None where another launch counts it.
        words: the Launch struct of multi_rate.h.
        grad_scale, found_inf: float32 scalars of this step on this device, or None.
        finished: int32 ``[1]``, in which a launch's blocks or programs count themselves; 0 between launches.
    """

    algorithm: str
    device: torch.device
    param_dtype: torch.dtype
    gradient_dtype: torch.dtype
    master: str | None
    shards: Shards
    clip: str
    check_finite: bool
    entries: list[Entry]
    num_groups: int
    chunk_size: int
    max_norm: Callable[[dict], float]
    host_gradients: Tensor
    host_groups: Tensor
    skipped: Tensor | None
    tensors: Tensor = field(init=False)
    chunks: Tensor = field(init=False)
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __post_init__(self):
        rows = [self._tensor_row(entry) for entry in self.entries]
        sizes = [entry.local().numel() for entry in self.entries]
        chunks = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, self.chunk_size)]
        self.changing = DeviceTables(self.host_gradients, self.host_groups, self.device)
        self.tensors = torch.tensor(rows, dtype=torch.int64, device="cpu").to(self.device)
        self.chunks = torch.tensor(chunks, dtype=torch.int64, device="cpu").reshape(-1, 2).to(self.device)
        self.sums = torch.zeros(self.num_groups + 1, dtype=torch.float64, device=self.device)
        self.partials = torch.zeros(len(chunks), dtype=torch.float64, device=self.device)
        self.finished = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.sample = self.entries[0].local()
        known = self.clip != "none" or self.check_finite
        self.words = array(
            "q",
            [
                self.tensors.data_ptr(),
                self.gradients.data_ptr(),
                self.chunks.data_ptr(),
                self.groups.data_ptr(),
                len(rows),
                len(chunks),
                self.num_groups,
                sum(sizes),
                self.chunk_size,
                ALGORITHMS[self.algorithm],
                DTYPES[self.param_dtype],
                DTYPES[self.gradient_dtype],
                MASTERS[self.master],
                CLIPS[self.clip],
                int(self.check_finite),
                0,
                0,
                self.sums.data_ptr() if known else 0,
                0 if self.skipped is None else self.skipped.data_ptr(),
            ],
        )
        self.address = self.words.buffer_info()[0]

    def present(self) -> list[tuple[Entry, Tensor]]:
        """Entries that have a gradient now, with it as kernels read it."""
        grads = ((entry, entry.param.grad) for entry in self.entries)
        return [(entry, entry.as_read(grad)) for entry, grad in grads if grad is not None]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the state and of the arithmetic."""
        return torch.float64 if self.param_dtype == torch.float64 else torch.float32

    @property
    def gradients(self) -> Tensor:
        """Addresses, int64 ``[entries]``."""
        return self.changing.gradients

    @property
    def groups(self) -> Tensor:
        """``[num_groups, 13]``, float64 where parameters are, else float32."""
        return self.changing.groups

    def update_tables(self, gradients: bool, groups: bool, capturing: bool) -> None:
        """See :meth:`DeviceTables.update`."""
        self.changing.update(gradients, groups, capturing)
        self.words[WORD_GRADIENTS], self.words[WORD_GROUPS] = self.gradients.data_ptr(), self.groups.data_ptr()

    def set_scalars(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """What GradScaler, or who plays its part, hands over for this step."""
        self.grad_scale = self._here(grad_scale)
        self.found_inf = self._here(found_inf)
        self.words[WORD_GRAD_SCALE] = 0 if self.grad_scale is None else self.grad_scale.data_ptr()
        self.words[WORD_FOUND_INF] = 0 if self.found_inf is None else self.found_inf.data_ptr()

    def _here(self, value: Tensor | None) -> Tensor | None:
        if value is None or (value.device == self.device and value.dtype == torch.float32):
            return value
        return value.to(self.device, torch.float32, non_blocking=True)

    def _tensor_row(self, entry: Entry) -> list[int]:
        state, group = entry.state, entry.group
        lr, flags = group["lr"], 0
        on_device = isinstance(lr, Tensor) and lr.device == self.device
        if group.get("amsgrad"):
            flags |= AMSGRAD
        if group.get("nesterov"):
            flags |= NESTEROV
        if on_device and lr.dtype == torch.float64:
            flags |= RATE_IS_DOUBLE
        moments = [0 if name is None else _address(state.get(name)) for name in entry.moment_names]
        moments += [0] * (3 - len(moments))
        masters = [_address(state.get(name)) for name in ("master_param", "param_remainder")]
        local = entry.local()
        return [
            local.data_ptr(),
            *moments,
            max(masters),
            _address(state.get("step")),
            _address(state.get("waited")),
            lr.data_ptr() if on_device else 0,
            local.numel(),
            entry.group_index,
            flags,
        ]


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def update_every(group: Mapping[str, Any]) -> int:
    """1 where a group does not say: an optimizer of torch has no such entry, and its checkpoints are ours."""
    return group.get("update_every", 1)


def group_row(group: dict[str, Any], max_norm: float) -> list[float]:
    """A group's row of the table."""
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    return [
        float(group["lr"]) if not isinstance(group["lr"], Tensor) or group["lr"].device.type == "cpu" else 0.0,
        group["weight_decay"],
        *beta_columns(beta1, beta2),
        group.get("eps", 0.0),
        group.get("momentum", 0.0),
        1.0 - group.get("dampening", 0.0),
        -1.0 if group["maximize"] else 1.0,
        max_norm,
        float(update_every(group)),
    ]


def chunk_size(sizes: Sequence[int], processors: int) -> int:
    """The largest power of two in [1 Ki, 64 Ki] that still gives every processor four chunks: large chunks cost less
    bookkeeping, small ones leave no processor idle."""
    size = LARGEST_CHUNK
    while size > SMALLEST_CHUNK and sum(-(-n // size) for n in sizes) < CHUNKS_PER_PROCESSOR * processors:
        size //= 2
    return size
