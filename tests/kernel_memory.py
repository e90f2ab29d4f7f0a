"""Holds every access of an interpreted Triton kernel against the memory that its launch was given, and its programs
against each other.

The interpreter computes addresses as a GPU would, and reads and writes whatever is there; and it runs one program after
the other, where a GPU runs them at once in no order. In :func:`watched` an access raises :class:`Fault` where

- its address is of no element of a tensor among the launch's arguments, nor of one whose address is in their tables;
- a program writes what another one reads or writes in the same launch, or reads what another wrote, unless both go
  through one atomic: the one after it touched the place, the other before;
- a program reads what it wrote itself with no barrier or atomic in between: its threads do not wait for each other;
- one store gives an element two values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from pgm_fast.kernels import multi_rate, multi_rate_tables
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, _ir

__all__ = ["Fault", "watched"]

NOBODY, SEVERAL = -1, -2
# what a kind of access of one program collides with in others
COLLIDES = {"load": ("store", "atomic"), "store": ("load", "store", "atomic"), "atomic": ("load", "store")}
ORDERING = {_ir.MEM_SEMANTIC.ACQUIRE_RELEASE}


class Fault(AssertionError):
    """An access that a GPU may answer with what is another tensor's or another program's."""


@dataclass(frozen=True)
class Given:
    """A tensor in memory: its first byte, the bytes of an element, which of the elements from there on are its."""

    start: int
    itemsize: int
    owned: np.ndarray

    @property
    def stop(self) -> int:
        return self.start + self.owned.size * self.itemsize


class Region:
    """Memory of tensors that overlap, in units of the smallest element among them, and who touched it."""

    def __init__(self, given: list[Given]):
        self.start, self.stop = min(x.start for x in given), max(x.stop for x in given)
        self.unit = min(x.itemsize for x in given)
        size = (self.stop - self.start) // self.unit
        self.owned = np.zeros(size, bool)
        for x in given:
            first = (x.start - self.start) // self.unit
            owned = x.owned.repeat(x.itemsize // self.unit)
            self.owned[first : first + owned.size] |= owned
        self.by = {kind: np.full(size, NOBODY, np.int32) for kind in COLLIDES}
        self.stored_in = np.full(size, NOBODY, np.int32)  # the stretch between barriers
        self.touched: dict[int, int] = {}  # program -> when, last


class Watch:
    """One launch, whose programs run one after the other."""

    def __init__(self, kernel: str, given: list[Given]):
        self.kernel = kernel
        self.regions = [Region(group) for group in _overlapping(given)]
        self.starts = np.array([region.start for region in self.regions], np.int64)
        self.program = self.time = self.stretch = 0
        # program -> address of an atomic -> when it went through it, last
        self.passed: dict[int, dict[int, int]] = defaultdict(dict)

    def touch(self, kind: str, addresses: np.ndarray, width: int) -> None:
        """Accesses of ``width`` bytes each."""
        self.time += 1
        place = np.searchsorted(self.starts, addresses, "right") - 1
        for i in np.unique(place):
            self._touch(kind, self.regions[i] if i >= 0 else None, addresses[place == i], width)

    def _touch(self, kind: str, region: Region | None, addresses: np.ndarray, width: int) -> None:
        if region is None or (addresses + width > region.stop).any():
            raise self._fault(kind, "an address that its launch was not given")
        units = ((addresses - region.start) // region.unit)[:, None] + np.arange(max(width // region.unit, 1))
        if not region.owned[units].all():
            raise self._fault(kind, "what lies between the rows of a tensor")
        units = np.unique(units)
        for other in COLLIDES[kind]:
            by = region.by[other][units]
            if ((by != NOBODY) & (by != self.program)).any() and not self._is_ordered(region):
                raise self._fault(kind, f"the place of another program's {other}")
        own = (region.by["store"][units] == self.program) & (region.stored_in[units] == self.stretch)
        if kind == "load" and own.any():
            raise self._fault(kind, "what it stored itself with no barrier in between")
        by = region.by[kind]
        by[units] = np.where((by[units] == NOBODY) | (by[units] == self.program), self.program, SEVERAL)
        if kind == "store":
            region.stored_in[units] = self.stretch
        region.touched[self.program] = self.time

    def _is_ordered(self, region: Region) -> bool:
        """Whether there is an atomic that this program went through, and all that touched the region before it after
        they had."""
        others = [(self.passed[x], time) for x, time in region.touched.items() if x != self.program]
        return any(all(passed.get(at, 0) >= time for passed, time in others) for at in self.passed[self.program])

    def atomic(self, addresses: np.ndarray, width: int, orders: bool) -> None:
        if orders:
            self.passed[self.program] |= dict.fromkeys(addresses.tolist(), self.time + 1)
            self.stretch += 1
        self.touch("atomic", addresses, width)

    def store(self, addresses: np.ndarray, width: int, values: np.ndarray) -> None:
        self.touch("store", addresses, width)
        order = np.argsort(addresses, kind="stable")
        same = np.diff(addresses[order]) == 0
        a, b = values[order][1:][same], values[order][:-1][same]
        if not ((a == b) | ((a != a) & (b != b))).all():
            raise self._fault("store", "an element in two threads with two values")

    def _fault(self, kind: str, what: str) -> Fault:
        return Fault(f"{self.kernel}, program {self.program}: {kind} of {what}")


def _overlapping(given: list[Given]) -> Iterator[list[Given]]:
    group: list[Given] = []
    for x in sorted(given, key=lambda x: x.start):
        if group and x.start >= max(y.stop for y in group):
            yield group
            group = []
        group.append(x)
    if group:
        yield group


def _given(x: object) -> Iterator[Given]:
    if isinstance(x, tuple):
        for entry in x:
            yield from _given(entry)
    elif isinstance(x, torch.Tensor) and x.numel():
        span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        owned = torch.zeros(span, dtype=torch.bool)
        owned.as_strided(x.shape, x.stride()).fill_(True)
        yield Given(x.data_ptr(), x.element_size(), owned.numpy())


def _in_tables(arguments: dict[str, object]) -> Iterator[Given]:
    """What the tables of a multi-rate launch hold the addresses of."""
    size_of = {kind: dtype.itemsize for dtype, kind in multi_rate.TYPES.items()}
    gradient = size_of[arguments["GRADIENT_TYPE"]] if "GRADIENT_TYPE" in arguments else None
    param = size_of[arguments["PARAM_TYPE"]] if "PARAM_TYPE" in arguments else None
    words = {name: x.value for name, x in vars(multi_rate_tables).items() if hasattr(x, "value")}
    for i, row in enumerate(arguments["p_tensors"].tolist()):
        numel, flags = row[words["NUMEL"]], row[words["FLAGS"]]
        sizes = {}
        if gradient:
            yield from _addressed(arguments["p_gradients"].view(-1)[i].item(), numel, gradient)
        if param:
            wide = max(param, 4)
            master = 2 if arguments["MASTER_FORM"] == "remainder" else 4
            sizes = {"PARAM": param, "EXP_AVG": wide, "EXP_AVG_SQ": wide, "MAX_EXP_AVG_SQ": wide, "MASTER": master}
        for name, itemsize in sizes.items():
            yield from _addressed(row[words[name]], numel, itemsize)
        for name in ("STEP", "WAITED"):
            yield from _addressed(row[words[name]], 1, 4)
        rate = 8 if flags & words["RATE_IS_DOUBLE"] else 4
        yield from _addressed(row[words["RATE_ADDRESS"]], 1, rate)


def _addressed(address: int, numel: int, itemsize: int) -> Iterator[Given]:
    if address and numel:
        yield Given(address, itemsize, np.ones(numel, bool))


@contextmanager
def watched() -> Iterator[set[str]]:
    """Watches every launch in the block; gives the names of the kernels, which grow with the launches."""
    kernels: set[str] = set()
    launches: list[Watch] = []
    builder = InterpreterBuilder
    call, set_program, barrier = GridExecutor.__call__, builder.set_grid_idx, builder.create_barrier
    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def watched_call(self, *args, **kwargs):
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        given = [x for argument in arguments.values() for x in _given(argument)]
        if "p_tensors" in arguments:
            given += _in_tables(arguments)
        launches.append(Watch(self.fn.__name__, given))
        kernels.add(self.fn.__name__)
        try:
            return call(self, *args, **kwargs)
        finally:
            launches.pop()

    def watched_program(self, x, y, z):
        set_program(self, x, y, z)
        launch, (nx, ny, _) = launches[-1], self.grid_dim
        launch.program, launch.stretch = x + nx * (y + ny * z), launch.stretch + 1

    def watched_load(self, ptrs, mask, other, cache_policy, is_volatile):
        addresses, _ = _lanes(ptrs, mask)
        launches[-1].touch("load", addresses, _width(ptrs))
        return load(self, ptrs, mask, other, cache_policy, is_volatile)

    def watched_store(self, ptrs, value, mask, cache_policy):
        addresses, lanes = _lanes(ptrs, mask)
        launches[-1].store(addresses, _width(ptrs), np.broadcast_to(value.data, lanes.shape)[lanes])
        return store(self, ptrs, value, mask, cache_policy)

    def watched_rmw(self, op, ptr, val, mask, sem, scope):
        launches[-1].atomic(_lanes(ptr, mask)[0], _width(ptr), sem in ORDERING)
        return rmw(self, op, ptr, val, mask, sem, scope)

    def watched_cas(self, ptr, cmp, val, sem, scope):
        launches[-1].atomic(ptr.data.astype(np.int64).ravel(), _width(ptr), sem in ORDERING)
        return cas(self, ptr, cmp, val, sem, scope)

    def watched_barrier(self):
        launches[-1].stretch += 1
        return barrier(self)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(GridExecutor, "__call__", watched_call))
        for name, function in {
            "set_grid_idx": watched_program,
            "create_masked_load": watched_load,
            "create_masked_store": watched_store,
            "create_atomic_rmw": watched_rmw,
            "create_atomic_cas": watched_cas,
            "create_barrier": watched_barrier,
        }.items():
            patches.enter_context(mock.patch.object(builder, name, function))
        yield kernels


def _lanes(ptrs, mask) -> tuple[np.ndarray, np.ndarray]:
    """Addresses that are not masked out, and where they are among all."""
    lanes = np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)
    return ptrs.data[lanes].astype(np.int64), lanes


def _width(ptrs) -> int:
    return max(ptrs.get_element_ty().primitive_bitwidth // 8, 1)
