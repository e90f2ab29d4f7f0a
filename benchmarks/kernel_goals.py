"""What was wanted of the kernels, beside what the model of their machine code predicts on an H200 and what is known of
the rest of the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kernel_model import predicted_rows

# kernels; what was wanted; backend and op whose predictions are shown, and which number; what limits, what was tried
GOALS: Sequence[tuple[str, str, tuple[str, str], str, str]] = (
    (
        "compiled `partition_dual`",
        "at most 0.5 instructions a clock and scheduler",
        ("native", "partition_dual"),
        "instructions_per_clock_needed",
        "Exchanges between lanes and the additions around them. Done: sums on both sides in one scan of five "
        "exchanges, sums that run on into gates, exponentials of one rounding, maxima in one instruction, no clamp for "
        "gradients. Both softmaxes kept for the last pass spilled, so one is formed again.",
    ),
    (
        "Triton's `partition`",
        "no narrow loads; 85 and 80 % of a copy",
        ("triton", "partition"),
        "of the floor",
        "Bandwidth, if 80 % of the issue slots are reached. The narrow loads are still there: the complement's scan "
        "reads the logits one place on. A scan that carries both sums would exchange twice as much; not tried.",
    ),
    (
        "`partitioned_linear`",
        "at most 1.25 times the bare products",
        ("triton", "partitioned_linear"),
        "times_floor",
        "Traffic between the second cache and tiles of 64 × 128; in the weights' gradients, one block at a time. "
        "Done: biases are summed after the loop, so that warps do not wait in every step. Not tried: tiles shared by "
        "clusters. Wide products are left to the vendor's by an estimate.",
    ),
    (
        "`reconstruction`",
        "backward at most 1.15 times the bare products",
        ("triton", "reconstruction"),
        "times_floor",
        "The same. The bias is summed after the loop here too. Tried by the model: tiles of 128 × 256 for decode (390 "
        "µs of now 404 at 32768 rows: one block at a time waits as long as two read) and two sums of 128 × 128 in the "
        "backward kernels (429 µs of 480, 456 of 604), which spill on sm_80 and sm_89, and on sm_90 where columns are "
        "odd. Not tried: the residual's gradient formed where decode ends.",
    ),
    (
        "`duc_loss` at 4096 rows",
        "chosen columns gathered once, then a pipelined product",
        ("triton", "duc_loss, both directions"),
        "times_floor",
        "Forward, traffic between the second cache and tiles of 64 × 64; backward, shared memory, from which both "
        "products read, and the products that are made again, twice this floor. Done: a launch gathers columns, and "
        "up to 256 of them are in one block that both products of the gradient share (it was 13 and 43 times the "
        "floor). Tried by the model: 128 rows a block (forward 66 µs of now 45, backward 104 of 59); blocks of 64 "
        "columns, each product pipelined by itself (94 and 187 µs), which serve more than 256 columns.",
    ),
)


def table() -> str:
    """Markdown."""
    lines = [
        "| kernels | wanted | predicted, forward and backward | what limits, what was tried |",
        "|---|---|---|---|",
    ]
    for name, wanted, (backend, op), number, text in GOALS:
        rows = [row for row in predicted_rows(backend) if row["op"] == op and row["pass"] in ("forward", "backward")]
        # the first size of an op is the large one
        cells = [_number(row["H200"], number) for row in rows[:2]]
        lines.append(f"| {name} | {wanted} | {', '.join(cells)} | {text} |")
    return "\n".join(lines)


def _number(of: Mapping[str, Any], number: str) -> str:
    if number == "of the floor":
        return f"{100 / of['times_floor']:.0f} %"
    return f"{of[number]:.2f}" + "×" * (number == "times_floor")
