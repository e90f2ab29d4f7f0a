"""partitioned_linear, one or several problems per launch: gates, masking, both products, bias and activation.

    g = cumsoftmax(z / temperature)
    u = activation(((1 - g) * h) @ w_uni.T + b_uni),  p = activation((g * h) @ w_paired.T + b_paired)

The masked operands are formed in registers where they are multiplied, forward and backward; h and z are read once for
both products. Launches, kernels in :mod:`.masked_products`:

- forward: ``statistics`` (one pass over z), ``project``;
- backward: ``statistics``, ``grad_operands`` (grad_h, and grad_z where a row fits one tile), ``grad_logits`` (grad_z
  otherwise), ``grad_weights`` and, where the batch is split, ``sum_splits``;
- wide products are preceded by one pass that stores the gates, ``store_gates``, or the gradients behind the activation,
  ``grad_pre_activation``.

fp16 and bf16 accumulate in fp32; fp32 products are fp32 throughout unless TF32 is allowed; fp64 has no kernel here.
No atomics, and choices by sizes alone: two runs are equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from .gate_blocks import LOG2_E, ROW_PIECE
from .groups import MAX_GROUP, float_bits, launch, unspecialised
from .masked_products import (
    grad_logits_kernel,
    grad_operands_kernel,
    grad_pre_activation_kernel,
    grad_weights_kernel,
    project_kernel,
    statistics_kernel,
    store_gates_kernel,
)
from .products import FILL, Sums, Tiles, dot_precision, formed_right, product_kind, split_rows, sum_splits

__all__ = ["backward", "forward", "grouped_backward", "grouped_forward"]

# Tiles by product, type and size of the problem: small, large, and large with stored gates where those are others; the
# last two numbers are warps and pipeline stages. Chosen by the assembler's reports: nothing spills on sm_80, sm_89,
# sm_90, sm_100, and all of them fit the 99 KiB of shared memory that a block of sm_86, sm_89 and sm_120 gets at most.
# With two accumulators 128 x 128 spills on sm_90, and gates formed in steps of 64 spill on sm_80 or take 105 KiB.
# Registers per thread of the large tiles in bf16 on sm_90, gates stored and formed: project 118 and 154 (two blocks per
# multiprocessor), grad_operands 174, grad_weights 200 and 212.
_SMALL, _LARGE = 0, 1
_TILES = {
    # rows, columns of u and p, step over d
    "project": {
        "16": (Tiles(32, 32, 32, 4, 3), Tiles(64, 128, 32, 8, 4)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 64, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(32, 64, 32, 8, 3)),
    },
    # rows, columns of h, step over the columns of u and p
    "grad_operands": {
        "16": (Tiles(32, 64, 32, 8, 3), Tiles(64, 128, 64, 8, 3)),
        "tf32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 128, 32, 8, 3)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(64, 64, 32, 8, 3)),
    },
    # rows and columns of the weight, step over the batch
    "grad_weights": {
        "16": (Tiles(32, 64, 16, 8, 3), Tiles(128, 64, 32, 8, 4), Tiles(64, 128, 32, 8, 4)),
        "tf32": (Tiles(32, 32, 16, 8, 3), Tiles(64, 64, 32, 8, 2)),
        "fp32": (Tiles(32, 32, 32, 4, 3), Tiles(32, 32, 32, 8, 3)),
    },
}
# columns of one block of the gates: divides the columns of h in every tile
_GATE_BLOCK = 32


# A gate is formed in about 40 instructions by every program across the width of a product. Past this many programs one
# pass stores the gates first, N * d elements in the type of h: at large tiles more than two would spend longer on gates
# than on products, small problems are bound by their launches.
_FORMED_SMALL, _FORMED_LARGE = 8, 2


class _Problem:
    """Contiguous operands and sizes of one problem."""

    def __init__(self, h: Tensor, z: Tensor, w_uni: Tensor, w_paired: Tensor):
        self.h, self.z, self.w_uni, self.w_paired = h, z, w_uni, w_paired
        self.rows, self.d = h.shape
        self.rows_argument = unspecialised(self.rows)
        self.gates = z.shape[1]
        self.chunk = self.d // self.gates
        self.n_u, self.n_p = w_uni.shape[0], w_paired.shape[0]
        self.n = max(self.n_u, self.n_p)


class _Group:
    """Problems that share their launches, with what every launch over them needs."""

    def __init__(self, problems: list[_Problem], temperature: float):
        self.problems = problems
        first = problems[0].h
        self.dtype, self.device = first.dtype, first.device
        self.dot = dot_precision(self.dtype)
        self.kind = product_kind(self.dtype)
        # finite and above 0: a column past the end is -inf, and -inf * 0 is not 0
        limits = torch.finfo(torch.float32)
        self.scale_bits = float_bits(min(max(LOG2_E / temperature, limits.tiny), limits.max))
        self.chunked = any(x.chunk != 1 for x in problems)
        self.statistics = tuple(self._statistics())

    def tuple(self, *names: str) -> list[tuple]:
        """One argument per name, with one entry per problem."""
        return [tuple(getattr(x, name) for x in self.problems) for name in names]

    def tiles(self, product: str, programs, across) -> tuple[Tiles, bool]:
        """Tiles of a product, and whether it should find its gates stored.

        Args:
            programs: of a problem and tiles; the large tiles are taken where these still fill the device.
            across: the same, those that meet one and the same gate.
        """
        choice = _TILES[product][self.kind]
        large = sum(programs(x, choice[_LARGE]) for x in self.problems) >= FILL
        tiles = choice[_LARGE if large else _SMALL]
        stored = max(across(x, tiles) for x in self.problems) > (_FORMED_LARGE if large else _FORMED_SMALL)
        return (choice[-1] if large and stored else tiles), stored

    def _statistics(self) -> list[Tensor]:
        blocks = [triton.cdiv(x.d, _GATE_BLOCK) for x in self.problems]
        piece = min(triton.next_power_of_2(max(blocks)), ROW_PIECE // _GATE_BLOCK)
        rows = 2 * ROW_PIECE // (piece * _GATE_BLOCK)
        made = [
            torch.empty(x.rows, 2 * count + 2, dtype=torch.float32, device=self.device)
            for x, count in zip(self.problems, blocks, strict=True)
        ]
        launch(
            statistics_kernel,
            [triton.cdiv(x.rows, rows) for x in self.problems],
            *self.tuple("z"),
            tuple(made),
            *self.tuple("rows_argument", "d", "gates", "chunk"),
            self.scale_bits,
            CHUNKED=self.chunked,
            GATE_BLOCK=_GATE_BLOCK,
            PIECE=piece,
            ROWS=rows,
            num_warps=4,
        )
        return made

    def stored_gates(self) -> tuple[Tensor, ...]:
        made = tuple(torch.empty_like(x.h) for x in self.problems)
        rows = 32
        launch(
            store_gates_kernel,
            [triton.cdiv(x.rows, rows) * triton.cdiv(x.d, _GATE_BLOCK) for x in self.problems],
            *self.tuple("z"),
            self.statistics,
            made,
            *self.tuple("rows_argument", "d", "gates", "chunk"),
            self.scale_bits,
            CHUNKED=self.chunked,
            GATE_BLOCK=_GATE_BLOCK,
            ROWS=rows,
            num_warps=4,
        )
        return made


def _run_forward(problems, biases_uni, biases_paired, activation, temperature):
    group = _Group(problems, temperature)
    keep_x = _keeps_pre_activation(activation)
    u = tuple(x.h.new_empty(x.rows, x.n_u) for x in problems)
    p = tuple(x.h.new_empty(x.rows, x.n_p) for x in problems)
    x_uni, x_paired = u, p
    if keep_x:
        x_uni, x_paired = tuple(map(torch.empty_like, u)), tuple(map(torch.empty_like, p))
    tiles, stored = group.tiles(
        "project",
        programs=lambda x, t: triton.cdiv(x.rows, t.m) * triton.cdiv(x.n, t.n),
        across=lambda x, t: triton.cdiv(x.n, t.n),
    )
    launch(
        project_kernel,
        [triton.cdiv(x.rows, tiles.m) * triton.cdiv(x.n, tiles.n) for x in problems],
        *group.tuple("h", "z"),
        group.statistics,
        group.stored_gates() if stored else group.statistics,
        *group.tuple("w_uni"),
        _or_else(biases_uni, u),
        *group.tuple("w_paired"),
        _or_else(biases_paired, p),
        u,
        p,
        x_uni,
        x_paired,
        *group.tuple("rows_argument", "d", "gates", "chunk", "n_u", "n_p"),
        tuple(0 if b is None else b.numel() for b in biases_uni),
        tuple(0 if b is None else b.numel() for b in biases_paired),
        group.scale_bits,
        ACTIVATION=activation or "none",
        KEEP_X=keep_x,
        STORED=stored,
        CHUNKED=group.chunked,
        DOT=group.dot,
        FORMED_RIGHT=formed_right(group.dtype),
        GATE_BLOCK=_GATE_BLOCK,
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        **tiles.options,
    )
    return list(zip(u, p, x_uni, x_paired, strict=True))


def _or_else(tensors: Sequence[Tensor | None], others: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors; where there is none an address that is never read."""
    return tuple(other if x is None else x for x, other in zip(tensors, others, strict=True))


def _run_backward(problems, grads_u, grads_p, saved_u, saved_p, activation, temperature):
    group = _Group(problems, temperature)
    activation = activation or "none"
    grads_u, grads_p, saved_u, saved_p = map(tuple, (grads_u, grads_p, saved_u, saved_p))
    # here it is the activation's derivative that is formed or stored: it costs about what a gate does
    operands, stored = group.tiles(
        "grad_operands",
        programs=lambda x, t: triton.cdiv(x.rows, t.m) * triton.cdiv(x.d, t.n),
        across=lambda x, t: triton.cdiv(x.d, t.n),
    )
    if activation != "none" and stored:
        grads_u, grads_p = _grad_pre_activation(group, grads_u, saved_u, grads_p, saved_p, activation)
        activation = "none"
    grads = grads_u, saved_u, grads_p, saved_p
    by_operand = _grad_operands(group, grads, activation, operands)
    by_weight = _grad_weights(group, grads, activation)
    return [(h, z, *weights) for (h, z), weights in zip(by_operand, by_weight, strict=True)]


def _grad_pre_activation(group, grads_u, saved_u, grads_p, saved_p, activation):
    made_u, made_p = tuple(map(torch.empty_like, grads_u)), tuple(map(torch.empty_like, grads_p))
    block = 1024
    launch(
        grad_pre_activation_kernel,
        [triton.cdiv(x.rows * x.n, block) for x in group.problems],
        grads_u,
        saved_u,
        grads_p,
        saved_p,
        made_u,
        made_p,
        tuple(unspecialised(x.numel()) for x in grads_u),
        tuple(unspecialised(x.numel()) for x in grads_p),
        ACTIVATION=activation,
        BLOCK=block,
        num_warps=4,
    )
    return made_u, made_p


def _grad_operands(group, grads, activation, tiles) -> list[tuple[Tensor, Tensor]]:
    problems = group.problems
    grad_h = tuple(torch.empty_like(x.h) for x in problems)
    grad_z = tuple(torch.empty_like(x.z) for x in problems)
    whole_row = all(x.d <= tiles.n for x in problems)
    grad_gate = group.statistics if whole_row else tuple(torch.empty_like(x, dtype=torch.float32) for x in grad_h)
    launch(
        grad_operands_kernel,
        [triton.cdiv(x.rows, tiles.m) * triton.cdiv(x.d, tiles.n) for x in problems],
        *grads,
        *group.tuple("h", "z"),
        group.statistics,
        *group.tuple("w_uni", "w_paired"),
        grad_h,
        grad_gate,
        grad_z,
        *group.tuple("rows_argument", "d", "gates", "chunk", "n_u", "n_p"),
        group.scale_bits,
        ACTIVATION=activation,
        WHOLE_ROW=whole_row,
        CHUNKED=group.chunked,
        DOT=group.dot,
        GATE_BLOCK=_GATE_BLOCK,
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.k,
        BLOCK_D=tiles.n,
        **tiles.options,
    )
    if not whole_row:
        width = min(max(triton.next_power_of_2(max(x.d for x in problems)), 16), ROW_PIECE)
        rows = ROW_PIECE // width
        launch(
            grad_logits_kernel,
            [triton.cdiv(x.rows, rows) for x in problems],
            grad_gate,
            *group.tuple("z"),
            group.statistics,
            grad_z,
            *group.tuple("rows_argument", "d", "gates", "chunk"),
            group.scale_bits,
            CHUNKED=group.chunked,
            GATE_BLOCK=_GATE_BLOCK,
            WIDTH=width,
            ROWS=rows,
            num_warps=4,
        )
    return list(zip(grad_h, grad_z, strict=True))


def _grad_weights(group, grads, activation) -> list[tuple[Tensor, ...]]:
    problems = group.problems
    tiles, stored = group.tiles(
        "grad_weights",
        programs=lambda x, t: triton.cdiv(x.n, t.m) * triton.cdiv(x.d, t.n) * (x.rows // (4 * t.k)),
        across=lambda x, t: triton.cdiv(x.n, t.m),
    )
    counts = [triton.cdiv(x.n, tiles.m) * triton.cdiv(x.d, tiles.n) for x in problems]
    splits = [split_rows(x.rows, sum(counts), tiles.k) for x in problems]
    partial = any(count > 1 for count, _ in splits)
    sums = [
        Sums([(x.n_u, x.d), (x.n_u,), (x.n_p, x.d), (x.n_p,)], count, partial, group.dtype, group.device)
        for x, (count, _) in zip(problems, splits, strict=True)
    ]
    launch(
        grad_weights_kernel,
        [count * split for count, (split, _) in zip(counts, splits, strict=True)],
        *grads,
        *group.tuple("h", "z"),
        group.statistics,
        group.stored_gates() if stored else group.statistics,
        *(tuple(x.targets[i] for x in sums) for i in range(4)),
        *group.tuple("rows_argument"),
        tuple(unspecialised(size) for _, size in splits),
        tuple(x.stride for x in sums),
        *group.tuple("d", "gates", "chunk", "n_u", "n_p"),
        group.scale_bits,
        ACTIVATION=activation,
        STORED=stored,
        CHUNKED=group.chunked,
        DOT=group.dot,
        GATE_BLOCK=_GATE_BLOCK,
        BLOCK_N=tiles.m,
        BLOCK_D=tiles.n,
        BLOCK_R=tiles.k,
        **tiles.options,
    )
    return sum_splits(sums)


def forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
    """``(u, p, x_uni, x_paired)`` of contiguous 2-D inputs; pre-activations are empty unless backward needs them."""
    u, p, *kept = grouped_forward([h], [z], [w_uni], [b_uni], [w_paired], [b_paired], activation, temperature)
    x_uni, x_paired = (x[0] if x else h.new_empty(0) for x in kept)
    return u[0], p[0], x_uni, x_paired


def backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
    """Gradients of h, z, w_uni, b_uni, w_paired, b_paired. ``saved``: pre-activations, outputs for relu."""
    lists = ([x] for x in (grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired))
    return tuple(x[0] for x in grouped_backward(*lists, activation, temperature))


def grouped_forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature):
    """As :func:`forward` of lists with one entry per problem, in as many launches as for one: four lists, those of the
    pre-activations empty unless backward needs them."""
    problems = [_Problem(*x) for x in zip(h, z, w_uni, w_paired, strict=True)]
    made = []
    for at in _launched_together(problems):
        made += _run_forward(problems[at], b_uni[at], b_paired[at], activation, temperature)
    u, p, x_uni, x_paired = map(list, zip(*made, strict=True))
    return (u, p, x_uni, x_paired) if _keeps_pre_activation(activation) else (u, p, [], [])


def grouped_backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature):
    """As :func:`backward` of lists with one entry per problem: six lists. Without activation nothing need be saved."""
    problems = [_Problem(*x) for x in zip(h, z, w_uni, w_paired, strict=True)]
    saved_u, saved_p = (saved_u, saved_p) if activation else (grad_u, grad_p)
    made = []
    for at in _launched_together(problems):
        lists = (grad_u[at], grad_p[at], saved_u[at], saved_p[at])
        made += _run_backward(problems[at], *lists, activation, temperature)
    return tuple(map(list, zip(*made, strict=True)))


def _keeps_pre_activation(activation: str | None) -> bool:
    return activation in ("gelu", "silu")


def _launched_together(problems: list[_Problem]) -> list[slice]:
    return [slice(start, start + MAX_GROUP) for start in range(0, len(problems), MAX_GROUP)]
