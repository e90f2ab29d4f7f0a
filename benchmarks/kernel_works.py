"""What ``kernel_model.py`` predicts: ops of one size, what they must do, and how often loops of their kernels run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
COPY = {"H100": 3.0e12, "H200": 4.3e12}  # bytes a second, read and written
FLOPS = 790e12

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Floor:
    """What one pass of an op must do."""

    bytes: float
    flop: float = 0

    def seconds(self, device: str) -> float:
        return max(self.bytes / COPY[device], self.flop / FLOPS)


@dataclass(frozen=True)
class Work:
    """An op of one size.

    Attributes:
        call: makes all its launches on tensors of the meta device; the first ``forward`` of them are forward.
        sizes: what trips of loops are made of.
        moved: bytes that each launch moves, by kernel, where its tensors are addresses in a table.
        programs: of the launches of such kernels, as ``call`` may make a smaller problem.
    """

    op: str
    shape: str
    call: Callable[[], object]
    forward: int
    floors: tuple[Floor, ...]
    sizes: Sizes
    moved: Mapping[str, float] | None = None
    programs: Mapping[str, int] | None = None


def _divided(a: float, b: float) -> float:
    return -(-a // b)


# Trips of every loop, in order of their first instructions, from the kernel's constants and the sizes of the work.
TRIPS: dict[str, Callable[[Mapping[str, Any], Sizes, int], Sequence[float]]] = {
    "statistics_kernel": lambda c, s, _: [_divided(s["d"], c["PIECE"] * c["GATE_BLOCK"])] * 3,
    "project_kernel": lambda c, s, _: [s["d"] / c["BLOCK_K"]],
    "grad_operands_kernel": lambda c, s, _: [s["n"] / c["BLOCK_N"]] * 2,
    "grad_logits_kernel": lambda c, s, _: [_divided(s["d"], c["WIDTH"])] * 2,
    "grad_weights_kernel": lambda c, s, programs: [
        s["rows"] / c["BLOCK_R"] * (s["n"] / c["BLOCK_N"]) * (s["d"] / c["BLOCK_D"]) / programs
    ],
    "decode_kernel": lambda c, s, _: [s["n"] / c["BLOCK_K"]] * 2,
    "sum_loss_kernel": lambda c, s, _: [_divided(s["rows"] * s["d"] / 128 / 128, c["BLOCK"])],
    # four splits in a trip, then what is left
    "sum_splits_kernel": lambda c, s, _: [s["splits"] // 4, s["splits"] % 4],
    "grad_features_kernel": lambda c, s, _: [s["d"] / c["BLOCK_K"]],
    "grad_decoder_kernel": lambda c, s, programs: [
        s["rows"] / c["BLOCK_R"] * (s["n"] / c["BLOCK_N"]) * (s["d"] / c["BLOCK_D"]) / programs
    ],
    # teachers of a part, dimensions inside
    "partial_lse_kernel": lambda c, s, _: [s["rows"] / s["parts"] / c["BLOCK_N"], s["k"] / c["BLOCK_K"]],
    "gathered_lse_kernel": lambda c, s, _: [s["rows"] / s["parts"] / c["BLOCK_N"]],
    # of each direction: dimensions that are counted, rows, and parts inside
    "loss_kernel": lambda c, s, _: [1, _divided(s["rows"], c["BLOCK"]), s["parts"]] * 2,
    "grad_kernel": lambda c, s, _: [
        s["rows"] / c["BLOCK_N"],
        s["k"] / c["BLOCK_K"],
        s["d"] / _divided(s["k"], c["BLOCK_D"]) / c["BLOCK_K"],
        s["k"] / c["BLOCK_K"],
    ],
    "gathered_grad_kernel": lambda c, s, _: [s["rows"] / s["parts"] / c["BLOCK_N"]],
    # zeros, chosen dimensions, inside of those parts four at a time, and the rest
    "scatter_grad_kernel": lambda c, s, _: [
        _divided(s["d"], c["BLOCK"]),
        _divided(s["k"], c["BLOCK"]),
        s["parts"] // 4,
        s["parts"] % 4,
    ],
    # whole vectors, what is left of them, and on AMSGrad's account nothing; the last program counts steps
    "multi_rate_step_kernel": lambda c, s, _: [s["chunk"] / c["BLOCK"], 0, 0],
    # whole vectors, the rest; the same in double where squares overflow
    "multi_rate_chunk_squares_kernel": lambda c, s, _: [s["chunk"] / c["BLOCK"], 0, 0, 0],
    "multi_rate_group_squares_kernel": lambda c, s, _: [_divided(s["chunks"], 256)],
}
HALF = 2  # bytes of bf16


def works() -> list[Work]:
    """Every op that has a Triton kernel."""
    import torch

    sys.path.insert(0, str(REPOSITORY / "tests"))
    import kernel_cases as cases

    half, single = torch.bfloat16, torch.float32
    made = []
    rows, d = 65536, 1024
    of_row = rows * d * HALF
    for op, tensors in (("partition", (4, 6)), ("partition_dual", (6, 9)), ("partition_boundary", (3, 4))):
        for share in (False, True):
            by = cases._boundary if op == "partition_boundary" else cases._split
            args = (share, False, d, half, single) if op == "partition_boundary" else (op, share, d, d, half, half)
            floors = tuple(Floor(count * of_row) for count in tensors)
            name = f"{op}, with shares" if share else op
            made.append(Work(name, f"{rows} × {d}", partial(by, *args, rows=rows), 1, floors, {}))

    rows = 32768
    for n, activation, launches in ((1024, None, 3), (128, "gelu", 2)):
        flop = 4 * rows * d * n
        sizes = {"rows": rows, "d": d, "n": n, "splits": 128 // max(n * d // (64 * 128), 1)}
        moved = HALF * (2 * rows * d + 2 * rows * n + 2 * n * d)
        floors = Floor(moved, flop), Floor(2 * moved, 2 * flop)
        linear = partial(cases._linear, [(rows, d, 1, n, n)], activation, half)
        name = f"partitioned_linear, {activation}" if activation else "partitioned_linear"
        made.append(Work(name, f"{rows} × {d} → {n} + {n}", linear, launches, floors, sizes))
        decoder = partial(cases._decoder, rows, d, n, n, False, False, half)
        made.append(Work("reconstruction", f"{rows} × {n} + {n} → {d}", decoder, 2, floors, sizes))

    # columns gathered in a launch of their own, or as they are multiplied
    for rows, launches, parts in ((4096, 3, 2), (128, 2, 1)):
        d = 512
        sizes = {"rows": rows, "d": d, "k": d // 2, "parts": parts}
        floors = tuple(Floor(HALF * (2 + of) * rows * d, 2 * rows * rows * d) for of in (0, 2))
        duc = partial(cases._duc, rows, d, d // 2, False, False, half)
        made.append(Work("duc_loss, both directions", f"{rows} × {d // 2} + {d // 2}", duc, launches, floors, sizes))

    rows, d = 65536, 1024
    for prior in (False, True):
        floors = Floor((3 + 2 * prior) * of_row), Floor((5 + 4 * prior) * of_row)
        gaussian = partial(cases._gaussian, rows, d, 1, prior, True, half)
        name = f"gaussian_sample_kl{', with a prior' * prior}"
        made.append(Work(name, f"{rows} × {d}", gaussian, 1, floors, {}))
    floors = Floor(7 * of_row), Floor(13 * of_row)
    mixture = partial(cases._mixture, rows, d, 4, 2, True, half, half)
    made.append(Work("gated_mixture, 4 of 6", f"{rows} × {d}", mixture, 1, floors, {}))
    floors = Floor(4 * of_row), Floor(7 * of_row), Floor(4 * of_row)
    certainty = partial(cases._certainty, rows, d, 3, False, True, half)
    made.append(Work("certainty_weighted_logits, 3 heads", f"{rows} × {d}", certainty, 1, floors, {}))

    parameters, chunk = 100 << 20, 1 << 16
    chunks = parameters // chunk
    sizes = {"chunk": chunk, "chunks": chunks}
    forms = {"adamw-float32": 28, "adamw-bfloat16": 22, "adamw-bfloat16-remainder": 26, "adamw-float16-master": 32}
    forms |= {"sgd-float32": 20, "sgd-bfloat16-remainder": 18, "adamw-clipped": 28}
    by_name = {case.name.removeprefix("multi_rate-"): case.call for case in cases.CASES}
    for name, count in forms.items():
        squares = 4 * parameters if "clipped" in name else 0
        step = {"multi_rate_step_kernel": count * parameters, "multi_rate_chunk_squares_kernel": squares}
        made.append(
            Work(
                f"optimizer, {name}",
                f"{parameters >> 20} Mi parameters",
                by_name[name],
                1 + 2 * bool(squares),
                (Floor(count * parameters + squares),),
                sizes,
                step | {"multi_rate_group_squares_kernel": 24 * chunks},
                {"multi_rate_step_kernel": chunks, "multi_rate_chunk_squares_kernel": chunks},
            )
        )
    return made
