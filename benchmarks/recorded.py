"""Which ops torch.compile is to record as plain formulas, from what bench_compiled.py measured."""

from __future__ import annotations

from pathlib import Path

import torch

from pgm_fast.ops import routes
from pgm_fast.ops.routes import Route
from pgm_fast.train.run.files import atomic_write

VARIANTS = PLAIN, CALL, FORMULA = "plain", "call", "formula"
NOISE = 0.05  # a formula that is faster by less is taken for as fast
TABLE = Path(routes.__file__)
BEGIN, END = "# begin measured\n", "# end measured\n"


def by_case(rows: list[dict]) -> dict[str, dict[tuple, dict[str, float]]]:
    """registered op -> sizes, the number of rows first, in ascending order -> variant -> milliseconds."""
    found: dict[str, dict[tuple, dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: list(row["shape"].values())):
        sizes = found.setdefault(row["registered"], {})
        sizes.setdefault(tuple(row["shape"].items()), {})[row["variant"]] = row["ms"]["median"]
    return found


def routes_of(rows: list[dict]) -> list[Route]:
    """Ops whose formula is faster than the call, up to the number of rows at which it last was at every width: at more
    it may be slower, or hold a matrix of rows by rows."""
    found = []
    for op, sizes in by_case(rows).items():
        speeds = [(shape[0][1], ms[CALL] / ms[FORMULA] if FORMULA in ms else 0.0) for shape, ms in sizes.items()]
        end = min((count for count, speed in speeds if speed <= 1 + NOISE), default=None)
        won = [(count, speed) for count, speed in speeds if end is None or count < end]
        if won:
            most = max(count for count, _ in won)
            found.append(Route(op, "cpu", torch.float32, most, round(min(speed for _, speed in won), 2)))
    return sorted(found, key=lambda route: route.op)


def table(rows: list[dict]) -> str:
    """The rows of pgm_fast/ops/routes.py."""
    lines = [f'    Route("{r.op}", "{r.device}", {r.dtype}, {r.rows}, {r.speed}),\n' for r in routes_of(rows)]
    return f"ROUTES: tuple[Route, ...] = (\n{''.join(lines)})\n"


def write_table(rows: list[dict]) -> None:
    """Puts them there."""
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
    with atomic_write(TABLE, "w") as file:
        file.write(f"{before}{BEGIN}{table(rows)}{END}{rest.partition(END)[2]}")
