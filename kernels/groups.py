"""One launch over several problems of different sizes.

A kernel takes a tuple per argument, with one entry per problem, and ``tiles``, the number of programs each problem
gets. Programs are numbered through all problems; each finds its problem and its number in it, and picks its arguments.
Everything travels as launch arguments: no table is copied to the device, so a launch can be captured in a graph. With
one problem the choice vanishes at compile time.

Numbers that change with the batch, or with what is chosen of a row, are never specialised on: of a kernel and its tiles
there is one binary for every width, and none is compiled in the middle of an epoch. ``do_not_specialize`` does that for
plain arguments, :func:`unspecialised` for entries of a tuple, which triton specialises in any case.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import triton
import triton.language as tl

__all__ = ["MAX_GROUP", "find_group", "float_bits", "launch", "number", "pick", "unspecialised"]

# problems in one launch: 16 times the 25 arguments of the largest kernel, 8 bytes each, fit in CUDA's 4 KiB for them
MAX_GROUP = 16


def unspecialised(x: int) -> int:
    """A number as an entry of a tuple: odd and above 1, and so neither divisible by 16 nor a constant."""
    return 2 * x + 3


@triton.jit
def number(value):
    """The number that :func:`unspecialised` was given."""
    return (value - 3) >> 1


@triton.jit
def find_group(tiles):
    """``(problem, number in it)`` of this program."""
    tile = tl.program_id(0)
    group = 0
    start = 0
    end = number(tiles[0])
    for i in tl.static_range(1, len(tiles)):
        beyond = tile >= end
        group = tl.where(beyond, i, group)
        start = tl.where(beyond, end, start)
        end += number(tiles[i])
    return group, tile - start


@triton.jit
def pick(values, group):
    """``values[group]``."""
    value = values[0]
    for i in tl.static_range(1, len(values)):
        value = tl.where(group == i, values[i], value)
    return value


def float_bits(value: float) -> int:
    """The bits of ``value`` in fp32. A kernel argument that is a Python float may become fp64; an integer does not."""
    return struct.unpack("i", struct.pack("f", value))[0]


def launch(kernel, programs: int | Sequence[int], *arguments, **constants) -> None:
    """Runs ``kernel`` with ``programs`` programs; or with ``programs[i]`` of them for problem i, which then are the
    kernel's first argument. An empty launch is left out."""
    grid = programs
    if not isinstance(programs, int):
        grid, arguments = sum(programs), (tuple(map(unspecialised, programs)), *arguments)
    if grid:
        # fused multiply-add is asked for by name: its default is not the same in every release of triton
        kernel[(grid,)](*arguments, enable_fp_fusion=True, **constants)
