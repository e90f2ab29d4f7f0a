"""A multi-rate optimizer step and the sums of squares it clips by, on CUDA: one program per chunk of a tensor, whatever
the tensor, its group and its rate.

Formulas, tables and their meaning: ``csrc/common/multi_rate.h``, whose order of operations is kept here. Tensors are
addresses in a table in device memory, so a launch takes any number of them, and no index is of a whole tensor.

Names: ``p_`` pointer, ``a_`` address as a number, ``o_`` offset, ``m_`` mask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import multi_rate_tables as table
from .multi_rate_rules import (
    adamw_scalars,
    adamw_update,
    gradient_factor,
    join_remainder,
    sgd_scalars,
    sgd_update,
    split_remainder,
)

__all__ = ["squares", "step"]

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

THREADS = 256
# fused multiply-add is asked for by name: its default is not the same in every release of triton
OPTIONS = {"num_warps": THREADS // 32, "enable_fp_fusion": True}


def step(launch) -> None:
    """One step of every tensor of a :class:`pgm_fast.optim.launch.Launch`, in one kernel launch.

    Mutates the parameters, their masters and their state; ``step``, ``waited`` and ``skipped``, by the program that
    finishes last; ``launch.finished``, which is 0 before and after.
    """
    at_a_time = 16 // launch.groups.element_size()
    chunks = launch.chunks.shape[0]
    multi_rate_step_kernel[(max(chunks, 1),)](
        launch.tensors,
        launch.gradients,
        launch.chunks,
        launch.groups,
        launch.sums,
        launch.grad_scale,
        launch.found_inf,
        launch.skipped,
        launch.finished,
        launch.tensors.shape[0],
        chunks,
        launch.num_groups,
        launch.chunk_size,
        ALGORITHM=launch.algorithm,
        PARAM_TYPE=TYPES[launch.param_dtype],
        GRADIENT_TYPE=TYPES[launch.gradient_dtype],
        MASTER_FORM=launch.master,
        CLIP=launch.clip,
        CHECK_FINITE=launch.check_finite,
        AT_A_TIME=at_a_time,
        BLOCK=THREADS * at_a_time,
        LAYOUT=table.LAYOUT,
        **OPTIONS,
    )


def squares(launch) -> None:
    """Sums of squares of a launch's gradients as they are in memory: of each group, then of all, into ``launch.sums``;
    of each chunk into ``launch.partials`` on the way. In the same order every time."""
    chunks = launch.chunks.shape[0]
    if chunks:
        at_a_time = 16 // launch.gradient_dtype.itemsize
        multi_rate_chunk_squares_kernel[(chunks,)](
            launch.tensors,
            launch.gradients,
            launch.chunks,
            launch.partials,
            launch.chunk_size,
            GRADIENT_TYPE=TYPES[launch.gradient_dtype],
            AT_A_TIME=at_a_time,
            BLOCK=THREADS * at_a_time,
            LAYOUT=table.LAYOUT,
            **OPTIONS,
        )
    multi_rate_group_squares_kernel[(launch.num_groups + 1,)](
        launch.tensors,
        launch.chunks,
        launch.partials,
        launch.sums,
        chunks,
        launch.num_groups,
        LAYOUT=table.LAYOUT,
        **OPTIONS,
    )


# what changes from one optimizer, or one step, to the next must not compile the kernel anew
@triton.jit(
    do_not_specialize=[
        "p_grad_scale",
        "p_found_inf",
        "p_skipped",
        "num_tensors",
        "num_chunks",
        "num_groups",
        "chunk_size",
    ]
)
def multi_rate_step_kernel(
    p_tensors,
    p_gradients,
    p_chunks,
    p_groups,
    p_sums,
    p_grad_scale,
    p_found_inf,
    p_skipped,
    p_finished,
    num_tensors,
    num_chunks,
    num_groups,
    chunk_size,
    ALGORITHM: tl.constexpr,
    PARAM_TYPE: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    MASTER_FORM: tl.constexpr,
    CLIP: tl.constexpr,
    CHECK_FINITE: tl.constexpr,
    AT_A_TIME: tl.constexpr,
    BLOCK: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """A program owns a chunk, and writes it; the last to finish counts the step."""
    skipped = is_skipped(p_found_inf, p_sums, num_groups, CHECK_FINITE)
    chunk = tl.program_id(0)
    if (chunk < num_chunks) & (skipped == 0):
        tensor = tl.load(p_chunks + 2 * chunk.to(tl.int64))
        start = tl.load(p_chunks + 2 * chunk.to(tl.int64) + 1)
        p_row = p_tensors + tensor * table.TENSOR_WORDS
        group = tl.load(p_row + table.GROUP)
        p_group = p_groups + group * table.GROUP_NUMBERS
        a_gradient = tl.load(p_gradients + tensor)
        if (a_gradient != 0) & is_due(tl.load(p_row + table.WAITED), tl.load(p_group + table.UPDATE_EVERY)):
            factor = gradient_factor(p_group, p_sums, p_grad_scale, group, num_groups, CLIP)
            if ALGORITHM == "adamw":
                scalars = adamw_scalars(p_row, p_group, factor)
            else:
                scalars = sgd_scalars(p_row, p_group, factor)
            length = chunk_length(p_row, start, chunk_size)
            addresses = tl.load(p_row + table.PARAM) | tl.load(p_row + table.MASTER) | a_gradient
            addresses |= (
                tl.load(p_row + table.EXP_AVG)
                | tl.load(p_row + table.EXP_AVG_SQ)
                | tl.load(p_row + table.MAX_EXP_AVG_SQ)
            )
            whole = 0
            if addresses % 16 == 0:
                whole = length // AT_A_TIME * AT_A_TIME
                update(
                    p_row,
                    a_gradient,
                    start,
                    0,
                    whole,
                    scalars,
                    True,
                    ALGORITHM,
                    PARAM_TYPE,
                    GRADIENT_TYPE,
                    MASTER_FORM,
                    BLOCK,
                )
            update(
                p_row,
                a_gradient,
                start,
                whole,
                length,
                scalars,
                False,
                ALGORITHM,
                PARAM_TYPE,
                GRADIENT_TYPE,
                MASTER_FORM,
                BLOCK // AT_A_TIME,
            )
    # every warp has read the counters of steps
    tl.debug_barrier()
    if tl.atomic_add(p_finished, 1) == tl.num_programs(0) - 1:
        tl.store(p_finished, 0)
        if skipped:
            if p_skipped is not None:
                tl.store(p_skipped, tl.load(p_skipped) + 1.0)
        else:
            for first in range(0, num_tensors, table.ROWS):
                advance(p_tensors, p_gradients, p_groups, first, num_tensors)


@triton.jit
def update(
    p_row,
    a_gradient,
    start,
    first,
    end,
    scalars,
    ALIGNED: tl.constexpr,
    ALGORITHM: tl.constexpr,
    PARAM_TYPE: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    MASTER_FORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements ``[first, end)`` of the chunk at ``start``; ALIGNED: all addresses are multiples of 16 bytes."""
    T: tl.constexpr = scalars[0].dtype
    p_gradient = elements(a_gradient, GRADIENT_TYPE, start, ALIGNED)
    a_first, a_second = tl.load(p_row + table.EXP_AVG), tl.load(p_row + table.EXP_AVG_SQ)
    a_largest = tl.load(p_row + table.MAX_EXP_AVG_SQ)
    p_first, p_second = elements(a_first, T, start, ALIGNED), elements(a_second, T, start, ALIGNED)
    p_largest = elements(a_largest, T, start, ALIGNED)
    a_param, a_master = tl.load(p_row + table.PARAM), tl.load(p_row + table.MASTER)
    if MASTER_FORM == "remainder":
        p_param = elements(a_param, tl.int16, start, ALIGNED)
        p_master = elements(a_master, tl.int16, start, ALIGNED)
    else:
        p_param = elements(a_param, PARAM_TYPE, start, ALIGNED)
        p_master = elements(a_master, tl.float32, start, ALIGNED)
    nesterov = (tl.load(p_row + table.FLAGS) & table.NESTEROV) != 0
    largest_end, buffer_end = tl.where(a_largest != 0, end, 0), tl.where(a_first != 0, end, 0)
    for k in range(first, end, BLOCK):
        o = k + tl.arange(0, BLOCK)
        mask = o < end
        grad = tl.load(p_gradient + o, mask).to(T)
        if MASTER_FORM == "remainder":
            param = join_remainder(tl.load(p_param + o, mask), tl.load(p_master + o, mask))
        elif MASTER_FORM == "float32":
            param = tl.load(p_master + o, mask)
        else:
            param = tl.load(p_param + o, mask).to(T)
        if ALGORITHM == "adamw":
            m_largest = o < largest_end
            exp_avg, exp_avg_sq = tl.load(p_first + o, mask), tl.load(p_second + o, mask)
            largest = tl.load(p_largest + o, m_largest)
            param, exp_avg, exp_avg_sq, largest = adamw_update(
                param, grad, exp_avg, exp_avg_sq, largest, a_largest != 0, scalars
            )
            tl.store(p_first + o, exp_avg, mask)
            tl.store(p_second + o, exp_avg_sq, mask)
            tl.store(p_largest + o, largest, m_largest)
        else:
            m_buffer = o < buffer_end
            buffer = tl.load(p_first + o, m_buffer)
            param, buffer = sgd_update(param, grad, buffer, a_first != 0, nesterov, scalars)
            tl.store(p_first + o, buffer, m_buffer)
        if MASTER_FORM == "remainder":
            high, low = split_remainder(param)
            tl.store(p_param + o, high, mask)
            tl.store(p_master + o, low, mask)
        else:
            if MASTER_FORM == "float32":
                tl.store(p_master + o, param, mask)
            tl.store(p_param + o, param.to(PARAM_TYPE), mask)


@triton.jit
def is_skipped(p_found_inf, p_sums, num_groups, CHECK_FINITE: tl.constexpr):
    """Whether this step is skipped by all tensors."""
    skipped = tl.full([], 0, tl.int1)
    if p_found_inf is not None:
        skipped |= tl.load(p_found_inf) != 0.0
    if CHECK_FINITE:
        total = tl.load(p_sums + num_groups)
        # infinity or NaN minus itself is NaN
        skipped |= total - total != 0.0
    return skipped


@triton.jit
def is_due(a_waited, update_every):
    """Whether this step, if it is not skipped, updates the tensor: each update_every-th does. Scalars, or one of each
    row."""
    p_waited = a_waited.to(tl.pointer_type(tl.float32), bitcast=True)
    waited = tl.load(p_waited, a_waited != 0, 0.0)
    return (a_waited == 0) | (waited.to(update_every.dtype) + 1.0 >= update_every)


@triton.jit
def advance(p_tensors, p_gradients, p_groups, first, num_tensors):
    """Counts this step of those of table.ROWS tensors that have a gradient."""
    o_tensor = first + tl.arange(0, table.ROWS)
    mask = o_tensor < num_tensors
    mask = mask & (tl.load(p_gradients + o_tensor, mask, 0) != 0)
    p_row = p_tensors + o_tensor.to(tl.int64) * table.TENSOR_WORDS
    group = tl.load(p_row + table.GROUP, mask, 0)
    update_every = tl.load(p_groups + group * table.GROUP_NUMBERS + table.UPDATE_EVERY, mask, 1.0)
    a_waited, a_step = tl.load(p_row + table.WAITED, mask, 0), tl.load(p_row + table.STEP, mask, 0)
    due = is_due(a_waited, update_every)
    p_waited = a_waited.to(tl.pointer_type(tl.float32), bitcast=True)
    p_step = a_step.to(tl.pointer_type(tl.float32), bitcast=True)
    m_waited, m_step = a_waited != 0, due & (a_step != 0)
    waited, count = tl.load(p_waited, m_waited, 0.0), tl.load(p_step, m_step, 0.0)
    tl.store(p_waited, tl.where(due, 0.0, waited + 1.0), m_waited)
    tl.store(p_step, count + 1.0, m_step)


@triton.jit
def chunk_length(p_row, start, chunk_size):
    """Elements of the chunk at ``start``."""
    return tl.minimum(tl.load(p_row + table.NUMEL) - start, chunk_size).to(tl.int32)


@triton.jit
def elements(address, TYPE: tl.constexpr, start, ALIGNED: tl.constexpr):
    """Pointer to element ``start`` of a tensor.

    Alignment is a property of the pointer that is made here: said of one that the other accesses share, it would widen
    those too.
    """
    p = address.to(tl.pointer_type(TYPE), bitcast=True) + start
    if ALIGNED:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit(do_not_specialize=["chunk_size"])
def multi_rate_chunk_squares_kernel(
    p_tensors,
    p_gradients,
    p_chunks,
    p_partials,
    chunk_size,
    GRADIENT_TYPE: tl.constexpr,
    AT_A_TIME: tl.constexpr,
    BLOCK: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """A program owns a chunk. Writes the sum of the squares of its gradients."""
    chunk = tl.program_id(0).to(tl.int64)
    tensor, start = tl.load(p_chunks + 2 * chunk), tl.load(p_chunks + 2 * chunk + 1)
    a_gradient = tl.load(p_gradients + tensor)
    length = chunk_length(p_tensors + tensor * table.TENSOR_WORDS, start, chunk_size)
    if a_gradient == 0:
        length = 0
    T: tl.constexpr = tl.float64 if GRADIENT_TYPE == tl.float64 else tl.float32
    total = chunk_squares(a_gradient, start, length, T, GRADIENT_TYPE, AT_A_TIME, BLOCK)
    if total - total != 0.0:
        # the squares overflow in fp32, and perhaps not in fp64
        total = chunk_squares(a_gradient, start, length, tl.float64, GRADIENT_TYPE, AT_A_TIME, BLOCK)
    tl.store(p_partials + chunk, total)


@triton.jit
def chunk_squares(
    a_gradient,
    start,
    length,
    T: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    AT_A_TIME: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum in fp64, of at most 64 squares at a time in T."""
    whole = 0
    total = tl.full([], 0.0, tl.float64)
    if a_gradient % 16 == 0:
        whole = length // AT_A_TIME * AT_A_TIME
        total = part_squares(a_gradient, start, 0, whole, True, T, GRADIENT_TYPE, BLOCK)
    return total + part_squares(a_gradient, start, whole, length, False, T, GRADIENT_TYPE, BLOCK // AT_A_TIME)


@triton.jit
def part_squares(
    a_gradient,
    start,
    first,
    end,
    ALIGNED: tl.constexpr,
    T: tl.constexpr,
    GRADIENT_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p_gradient = elements(a_gradient, GRADIENT_TYPE, start, ALIGNED)
    sums = tl.zeros([BLOCK], T)
    for k in range(first, end, BLOCK):
        o = k + tl.arange(0, BLOCK)
        x = tl.load(p_gradient + o, o < end, 0.0).to(T)
        sums = tl.fma(x, x, sums)
    return tl.sum(sums.to(tl.float64))


@triton.jit(do_not_specialize=["num_chunks", "num_groups"])
def multi_rate_group_squares_kernel(
    p_tensors, p_chunks, p_partials, p_sums, num_chunks, num_groups, LAYOUT: tl.constexpr
):
    """A program owns a group, the last one all of them. Writes the sum of its partials."""
    program = tl.program_id(0)
    sums = tl.zeros([table.ROWS], tl.float64)
    for first in range(0, num_chunks, table.ROWS):
        o_chunk = (first + tl.arange(0, table.ROWS)).to(tl.int64)
        mask = o_chunk < num_chunks
        tensor = tl.load(p_chunks + 2 * o_chunk, mask, 0)
        group = tl.load(p_tensors + tensor * table.TENSOR_WORDS + table.GROUP, mask, 0)
        mine = tl.where(program == num_groups, group, program)
        sums += tl.load(p_partials + o_chunk, mask & (group == mine), 0.0)
    tl.store(p_sums + program, tl.sum(sums))
