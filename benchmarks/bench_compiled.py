"""Ops inside of code that torch.compile makes, forward and backward: the formula as one writes it in plain PyTorch,
compiled; the op as a call, and as its own plain formula, compiled. One run.

    python benchmarks/bench_compiled.py [--ops NAME ...]     # rows of other ops stay in the result file as they are
    python benchmarks/bench_compiled.py --table      # pgm_fast/ops/routes.py from the result file, nothing is measured

Correctness comes first: loss and gradients of every variant are those of the plain formula in fp64, or it gets no row.
A call is timed by what the process takes of the processor, one thread, so that other work of the machine does not
decide.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import bench_duc_loss
import bench_gated_mixture
import bench_gaussian_sample_kl
import bench_info_nce
import bench_mlp
import bench_partition
import bench_partitioned_linear
import bench_reconstruction
import harness
import products
import torch
from clocks import ProcessorClock
from recorded import CALL, FORMULA, PLAIN, write_table
from torch import Tensor

from pgm_fast import ops
from pgm_fast.ops import routes
from pgm_fast.train.run.json_files import read_json

CHOICES = {PLAIN: None, CALL: "call", FORMULA: "formula"}
RTOL, ATOL = 1e-3, 1e-4  # of the largest entry, against fp64


@dataclass(frozen=True)
class Case:
    """An op at a size: functions of the same tensors, which all get a gradient, that return tensors.

    Attributes:
        registered: the op's name at torch.
        leaves: the tensors.
        plain, ours: the formula, the op.
        draws: it draws random numbers, which differ between the two.
    """

    registered: str
    shape: dict[str, int]
    leaves: list[Tensor]
    plain: Callable
    ours: Callable
    draws: bool = False


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape)


def certainty(*logits: Tensor) -> tuple[Tensor, Tensor]:
    """As one writes it."""
    sure = torch.stack([z.softmax(-1).max(-1).values for z in logits], -1)
    weights = sure.softmax(-1)
    return sum(z * weights[:, k : k + 1] for k, z in enumerate(logits)), weights


def boundary(h: Tensor, b_uni: Tensor, b_paired: Tensor, width: float = 0.12) -> tuple[Tensor, Tensor]:
    """As one writes it."""
    x = (torch.arange(h.shape[-1], device=h.device, dtype=h.dtype) + 0.5) / h.shape[-1]
    opens = [torch.softmax(-((x - place) ** 2) / (2 * width**2), -1).cumsum(-1) for place in (b_uni, 1 - b_paired)]
    return (1 - opens[0]) * h, opens[1] * h


def share(z: Tensor) -> Tensor:
    """As one writes it."""
    paired = torch.softmax(z, -1).cumsum(-1).mean(-1)
    return torch.stack([1 - paired, paired], -1)


def dual_share(z_uni: Tensor, z_paired: Tensor) -> Tensor:
    """As one writes it."""
    e, r = 1 - torch.softmax(z_uni, -1).cumsum(-1), torch.softmax(z_paired, -1).cumsum(-1)
    return torch.stack([mass.mean(-1) for mass in (e - e * r, r - e * r, e * r, (1 - e) * (1 - r))], -1)


def duc_cases() -> list[Case]:
    found, temperature = [], bench_duc_loss.TEMPERATURE
    for rows, d in bench_duc_loss.CASES[:2]:
        dims = torch.randperm(d)[: d // 2].sort().values
        teacher = drawn(rows, d)
        found.append(
            Case(
                "duc_loss",
                {"rows": rows, "d": d},
                [drawn(rows, d)],
                lambda x, teacher=teacher, dims=dims: bench_duc_loss.eager(x, teacher.to(x.dtype), dims),
                lambda x, teacher=teacher, dims=dims: ops.duc_loss(x, teacher.to(x.dtype), dims, temperature),
            )
        )
    return found


def info_nce_cases() -> list[Case]:
    return [
        Case(
            "info_nce",
            {"rows": rows, "d": d},
            [drawn(rows, d), drawn(rows, d)],
            bench_info_nce.eager,
            bench_info_nce.ours,
        )
        for rows, d in bench_info_nce.CASES[:2]
    ]


def certainty_cases() -> list[Case]:
    return [
        Case(
            "certainty_weighted_logits",
            {"rows": rows, "classes": classes, "heads": 3},
            [drawn(rows, classes) for _ in range(3)],
            certainty,
            lambda *z: ops.certainty_weighted_logits(z),
        )
        for rows, classes in ((64, 6), (4096, 101))
    ]


def mixture_cases() -> list[Case]:
    mixed, others = bench_gated_mixture.MIXED, bench_gated_mixture.OTHERS
    found = []
    for rows, classes in bench_gated_mixture.SHAPES:
        labels = torch.randint(classes, (rows,))

        def by(run: Callable, labels: Tensor = labels) -> Callable:
            return lambda gate, *x: run(x[:mixed], gate, labels, x[mixed:])[2]

        found.append(
            Case(
                "gated_mixture",
                {"rows": rows, "classes": classes, "mixed": mixed, "others": others},
                [drawn(rows, mixed), *(drawn(rows, classes) for _ in range(mixed + others))],
                by(bench_gated_mixture.eager),
                by(ops.gated_mixture_loss),
            )
        )
    return found


def share_cases() -> list[Case]:
    sizes = (64, 256), (8192, 768)
    return [
        Case(
            f"partition{kind}_share",
            {"rows": rows, "d": d},
            [drawn(rows, d) for _ in range(gates)],
            plain,
            ops.partition_share,
        )
        for rows, d in sizes
        for kind, gates, plain in (("", 1, share), ("_dual", 2, dual_share))
    ]


def partition_cases() -> list[Case]:
    sizes = (64, 256), (8192, 768)
    found = [
        Case(
            op.name,
            {"rows": rows, "d": d},
            [drawn(rows, d) for _ in range(1 + op.gates)],
            bench_partition.eager(op),
            op.run,
        )
        for rows, d in sizes
        for op in bench_partition.OPS
    ]
    return found + [
        Case(
            "partition_boundary",
            {"rows": rows, "d": d},
            [drawn(rows, d), torch.rand(rows, 1), torch.rand(rows, 1)],
            boundary,
            partial(ops.partition_boundary, width=0.12),
        )
        for rows, d in sizes
    ]


def gaussian_cases() -> list[Case]:
    return [
        Case(
            "gaussian_sample_kl",
            {"rows": rows, "d": d},
            [0.5 * drawn(rows, d) for _ in range(4)],
            bench_gaussian_sample_kl.eager,
            ops.gaussian_sample_kl,
            draws=True,
        )
        for rows, d in ((64, 128), (4096, 512))
    ]


def product_cases() -> list[Case]:
    found = []
    for module, sizes in (
        (bench_partitioned_linear, ((64, 128, 128), (4096, 512, 128))),
        (bench_reconstruction, ((64, 128, 128), (4096, 512, 128))),
        (bench_mlp, ((64, 128, 128), (1024, 256, 256))),
    ):
        for size in sizes:
            case = module.case(products.draw_on(torch.device("cpu"), torch.float32), *size)
            found.append(Case(case.op, case.shape, case.arguments, case.eager, case.ours))
    return found


CASES: dict[str, Callable[[], list[Case]]] = {
    "duc_loss": duc_cases,
    "info_nce": info_nce_cases,
    "certainty_weighted_logits": certainty_cases,
    "gated_mixture_loss": mixture_cases,
    "partition_share": share_cases,
    "partition": partition_cases,
    "gaussian_sample_kl": gaussian_cases,
    "products": product_cases,
}


def outputs(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def training(run: Callable, leaves: list[Tensor], directions: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Outputs and the gradients of a fixed projection of them."""

    def call() -> list[Tensor]:
        made = outputs(run(*leaves))
        return [*(x.detach() for x in made), *torch.autograd.grad(made, leaves, directions)]

    return call


def chosen(choice: str | None, run: Callable) -> Callable:
    """``run`` under a choice, which it keeps: what was compiled under it is found again."""

    def call():
        if routes._choice != choice:
            routes.choose(choice)
        return run()

    return call


def measure(name: str, case: Case) -> list[dict]:
    """Rows of a case: a variant each, those that are right."""
    torch.compiler.reset()
    leaves = [x.detach().requires_grad_() for x in case.leaves]
    wide = [x.detach().double().requires_grad_() for x in case.leaves]
    directions = [torch.randn_like(x) for x in outputs(case.plain(*leaves))]
    exact = training(case.plain, wide, [x.double() for x in directions])()
    calls = {}
    for variant, choice in CHOICES.items():
        if variant == FORMULA and case.registered in routes.ALWAYS_CALLS or variant == FORMULA and case.draws:
            continue
        # functions apart, so that each is compiled for itself
        run = partial(case.plain if variant == PLAIN else case.ours)
        call = chosen(choice, training(torch.compile(lambda *x, run=run: run(*x), dynamic=False), leaves, directions))
        wrong = None if case.draws else _wrong(call(), exact)
        if wrong:
            print(f"{name} {case.shape} {variant}: {wrong}", flush=True)
        else:
            calls[variant] = call
    timings = harness.interleaved(calls, torch.device("cpu"), ProcessorClock())
    shape = " x ".join(map(str, case.shape.values()))
    print(name, shape, {variant: f"{timing.median:.4f} ms" for variant, timing in timings.items()}, flush=True)
    return [
        harness.as_row(
            timing,
            of=name,
            registered=case.registered,
            variant=variant,
            dtype="float32",
            shape=case.shape,
            kind="forward+backward",
        )
        for variant, timing in timings.items()
    ]


def _wrong(got: list[Tensor], exact: list[Tensor]) -> str | None:
    for k, (a, b) in enumerate(zip(got, exact, strict=True)):
        try:
            torch.testing.assert_close(a.double(), b.detach(), rtol=RTOL, atol=ATOL * b.abs().max().item())
        except AssertionError:
            return f"result {k} is off by {(a - b).abs().max().item():.3g}, its largest is {b.abs().max().item():.3g}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(read_json(harness.RESULTS / "cpu" / "compiled.json")["rows"])
        return
    torch.set_num_threads(1)
    device, facts = torch.device("cpu"), {"clock": "time of the processor"}
    kept = harness.earlier("compiled", device, **facts) if len(arguments.ops) < len(CASES) else []
    rows = [row for row in kept if row["of"] not in arguments.ops]
    for name in arguments.ops:
        torch.manual_seed(0)
        for case in CASES[name]():
            rows += measure(name, case)
            # at every size, so that a run that is stopped leaves what it measured
            harness.write("compiled", device, rows, **facts)
    print(harness.write("compiled", device, rows, **facts))


if __name__ == "__main__":
    main()
