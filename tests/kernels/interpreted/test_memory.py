"""The watch over memory sees what it is for, and has seen every kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from kernel_memory import watched
from op_cases import CASES, forward_and_gradients, interpret_triton
from pgm_fast.kernels import duc_loss
from torch import nn
from triton.runtime.errors import InterpreterError

import pgm_fast
from pgm_fast import ops
from pgm_fast.optim import MultiRateAdamW

interpret_triton()

ROWS, COLUMNS = 3, 5
OTHERS = None, "relu", "silu"


@pytest.fixture(autouse=True)
def kernels() -> Iterator[set[str]]:
    """Names of those that were launched."""
    with watched() as names:
        yield names


@triton.jit
def copy_kernel(p_x, p_out, columns, end, BLOCK: tl.constexpr):
    o = tl.program_id(0) * columns + tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o, o < end), o < end)


@triton.jit
def shift_kernel(p_x, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_x + o, o)
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_x + BLOCK + o, tl.load(p_x + (o + 1) % BLOCK))


@triton.jit
def count_kernel(p_x, p_sum, p_finished, ORDERED: tl.constexpr):
    """The last program adds up what all wrote."""
    program = tl.program_id(0)
    tl.store(p_x + program, program)
    if ORDERED:
        last = tl.atomic_add(p_finished, 1) == tl.num_programs(0) - 1
    else:
        last = tl.atomic_add(p_finished, 1, sem="relaxed") == tl.num_programs(0) - 1
    if last:
        tl.store(p_sum, tl.load(p_x) + tl.load(p_x + 1))


@triton.jit
def same_place_kernel(p_x, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_x + o // 2, o)


def _rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices with a row of others' memory before and after."""
    whole = torch.ones(2, ROWS + 2, COLUMNS)
    return whole[0, 1:-1], whole[1, 1:-1]


def test_what_is_right_passes():
    x, out = _rows()
    copy_kernel[(1,)](x, out, 0, x.numel(), BLOCK=16)
    shift_kernel[(1,)](torch.zeros(8, dtype=torch.int32), True, BLOCK=4)
    numbers = [torch.zeros(n, dtype=torch.int32) for n in (2, 1, 1)]
    count_kernel[(2,)](*numbers, True)


@pytest.mark.parametrize("operand", [0, 1])
def test_a_mask_off_by_one(operand):
    """Past the end of either lies memory of the same storage, which a sanitizer of allocations does not tell apart."""
    operands = list(_rows())
    operands[operand] = operands[operand].flatten()[:-1]
    with pytest.raises(InterpreterError, match="that its launch was not given"):
        copy_kernel[(1,)](*operands, 0, ROWS * COLUMNS, BLOCK=16)


def test_what_lies_between_rows():
    x, out = torch.ones(ROWS, 2 * COLUMNS)[:, :COLUMNS], torch.ones(ROWS, 2 * COLUMNS)
    with pytest.raises(InterpreterError, match="between the rows"):
        copy_kernel[(1,)](x, out, 0, COLUMNS + 1, BLOCK=8)


def test_two_programs_write_the_same_place():
    x, out = _rows()
    with pytest.raises(InterpreterError, match="copy_kernel, program 1: store of the place of another program's store"):
        copy_kernel[(ROWS,)](x, out, COLUMNS, x.numel(), BLOCK=8)


def test_a_program_reads_what_another_writes():
    x = torch.ones(ROWS * 8)
    with pytest.raises(InterpreterError, match="program 1: load of the place of another program's store"):
        copy_kernel[(2,)](x, x[8:], 8, 16, BLOCK=8)


def test_a_program_writes_what_another_reads():
    x = torch.ones(ROWS * 8)
    with pytest.raises(InterpreterError, match="program 1: store of the place of another program's load"):
        copy_kernel[(2,)](x[8:], x, 8, 16, BLOCK=8)


def test_an_atomic_that_orders_nothing():
    numbers = [torch.zeros(n, dtype=torch.int32) for n in (2, 1, 1)]
    with pytest.raises(InterpreterError, match="program 1: load of the place of another program's store"):
        count_kernel[(2,)](*numbers, False)


def test_threads_of_one_program_do_not_wait_for_each_other():
    with pytest.raises(InterpreterError, match="no barrier in between"):
        shift_kernel[(1,)](torch.zeros(8, dtype=torch.int32), False, BLOCK=4)


def test_one_store_gives_an_element_two_values():
    with pytest.raises(InterpreterError, match="two values"):
        same_place_kernel[(1,)](torch.zeros(4, dtype=torch.int32), BLOCK=4)


def _launch_every_op() -> None:
    for case in CASES:
        # one activation stands for all
        if case.backend == "triton" and not case.id.startswith(tuple(f"partitioned_linear-{x}" for x in OTHERS)):
            forward_and_gradients(case.run, case.tensors(5, 37))
        if case.id == "reconstruction-triton":
            # rows enough to be summed in parts
            forward_and_gradients(case.run, case.tensors(257, 3))
    # columns gathered first, as of large batches: in one block, and in more
    with mock.patch.object(duc_loss, "_GATHERED_ROWS", 0):
        for d in (37, 530):
            forth, back = torch.arange(0, d, 2), torch.arange(1, d, 2)
            run = partial(ops.duc_loss, dims=forth, reverse_dims=back, rows=(1, 5))
            forward_and_gradients(run, [torch.randn(7, d, dtype=torch.float16) for _ in range(2)])
    # more tiles beside each other than form the same gates, and derivatives, themselves
    for d, n in ((33, 290), (290, 33)):
        shapes = [(3, d), (3, d), (n, d), (n,), (5, d), (5,)]
        run = partial(ops.partitioned_linear, activation="gelu")
        forward_and_gradients(run, [torch.randn(shape) for shape in shapes])


def _launch_an_optimizer() -> None:
    owned = [nn.Parameter(torch.randn(size)) for size in (1030, 7)]
    optimizer = MultiRateAdamW([{"params": owned[:1]}, {"params": owned[1:], "update_every": 2}], max_norm=1.0)
    for p in owned:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()


def test_every_kernel_keeps_to_its_memory(kernels, repository):
    with pgm_fast.backend("triton"):
        _launch_every_op()
        _launch_an_optimizer()
    sources = [path.read_text(encoding="utf-8") for path in (repository / "kernels").glob("*.py")]
    assert {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)} == kernels
