"""Measures an op that is mostly matrix products, forward and with backward, beside eager, compiled and bare forms."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import harness
import torch
from torch import Tensor

import pgm_fast
from pgm_fast import backends

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
QUICK = (16, 64, 32)  # as many of these as a shape has sizes
# rtol and atol, the latter of the largest entry, against fp64: fp32 sums of thousands of terms; for bf16 a result that
# is rounded once after gates that are
BOUNDS = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (2**-6, 2**-5)}
# plain bf16 rounds every sum of a scan and every step of its derivative: a wrong formula is farther off still
PLAIN_BOUNDS = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (2**-3, 2**-2)}

Draw = Callable[..., Tensor]
"""Normally distributed numbers of a shape, on the device and in the dtype that is measured."""


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        arguments: tensors, all of which get a gradient.
        eager: the op as a user would write it.
        bare: its matrix products alone.
        ours: the op.
        further: name -> other ways to compute the same with this project's ops.
    """

    op: str
    shape: dict[str, int]
    arguments: list[Tensor]
    eager: Callable
    bare: Callable
    ours: Callable
    further: Mapping[str, Callable] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.arguments[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.arguments[0].dtype

    def variants(self) -> dict[str, tuple[Callable, str | None]]:
        """name -> function and the backend to choose while it runs."""
        found = {
            "eager": (self.eager, None),
            "torch.compile": (torch.compile(self.eager), None),
            "bare": (self.bare, None),
            "torch": (self.ours, "torch"),
            **{name: (run, None) for name, run in self.further.items()},
        }
        reasons = backends.implementations(self.device.type, self.dtype)[self.op]
        return found | {name: (self.ours, name) for name in ("native", "triton") if reasons[name] is None}


def main(
    name: str, shapes: Mapping[str, Sequence[tuple[int, ...]]], make: Callable[..., Case], description: str
) -> None:
    """The command line of a benchmark.

    Args:
        shapes: device type -> shapes.
        make: ``make(draw, *shape)`` gives the case of a shape.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(shapes), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a small size, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows: list[dict] = []
    measured = shapes[device.type]
    for shape in [QUICK[: len(measured[0])]] if arguments.quick else measured:
        torch.manual_seed(0)
        rows += measure(make(draw_on(device, DTYPES[device.type]), *shape))
        if not arguments.quick:
            # at every size, so that a run that is stopped leaves what it measured
            print(harness.write(name, device, rows))


def draw_on(device: torch.device, dtype: torch.dtype) -> Draw:
    return lambda *shape: torch.randn(shape, device=device).to(dtype)


def measure(case: Case) -> list[dict]:
    torch.compiler.reset()  # or one shape too many is a recompilation that is refused
    variants = case.variants()
    runs = {name: run for name, (run, _) in variants.items()}
    chosen = {name: backend for name, (_, backend) in variants.items()}
    check(case, runs, chosen)
    rows = []
    for kind, make in (("forward", forward), ("forward+backward", forward_backward)):
        calls, results = {}, {}
        for name, run in runs.items():
            calls[name] = harness.on_backend(chosen[name], make(case, run))
            results[name] = sum(x.numel() * x.element_size() for x in calls[name]())
        timings = harness.interleaved(calls, case.device)
        for name, timing in timings.items():
            counts = harness.count(calls[name], case.device)
            extra = max(0, counts.peak_bytes - results[name])
            row = harness.as_row(
                timing,
                counts,
                op=case.op,
                variant=name,
                dtype=str(case.dtype).removeprefix("torch."),
                shape=case.shape,
                kind=kind,
                extra_bytes=extra,
                times_eager=round(timings["eager"].median / timing.median, 2),
                times_compile=round(timings["torch.compile"].median / timing.median, 2),
                of_bare=round(timing.median / timings["bare"].median, 3),
                percent_of_floor=round(100 * timings["bare"].median / timing.median, 1),
            )
            rows.append(row)
            shape = "x".join(map(str, case.shape.values()))
            print(
                f"{case.op} {shape:18} {kind:17} {name:14} {timing.median:9.4f} ms  {row['times_eager']:.2f}x eager  "
                f"{row['times_compile']:.2f}x compile  {row['of_bare']:.2f} of bare  "
                f"{extra / 2**20:.1f} MiB beyond its results",
                flush=True,
            )
    return rows


def forward(case: Case, run: Callable) -> Callable[[], tuple[Tensor, ...]]:
    def call():
        with torch.no_grad():
            return run(*case.arguments)

    return call


def forward_backward(case: Case, run: Callable) -> Callable[[], tuple[Tensor, ...]]:
    """Returns the gradients, of what the run reads; of the outputs nothing is kept."""
    leaves = [x.detach().requires_grad_() for x in case.arguments]
    directions = [torch.randn_like(x) for x in run(*leaves)]

    def call():
        gradients = torch.autograd.grad(run(*leaves), leaves, directions, allow_unused=True)
        return tuple(x for x in gradients if x is not None)

    return call


def check(case: Case, runs: dict[str, Callable], chosen: dict[str, str | None]) -> None:
    """Outputs and gradients of every variant, the bare products aside, against fp64.

    Raises:
        AssertionError: one is wrong.
    """
    exact = [x.double() for x in case.arguments]
    directions = [torch.randn_like(x) for x in case.eager(*exact)]
    expected = _all_results(case.eager, exact, directions)
    for name, run in runs.items():
        if name == "bare":
            continue
        rtol, atol = (BOUNDS if run is case.ours else PLAIN_BOUNDS)[case.dtype]
        with pgm_fast.backend(chosen[name]):
            for got, want in zip(_all_results(run, case.arguments, directions), expected, strict=True):
                torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol * want.abs().max().item())


def _all_results(run: Callable, arguments: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in arguments]
    results = run(*leaves)
    by = [direction.to(x.dtype) for x, direction in zip(results, directions, strict=True)]
    return [*results, *torch.autograd.grad(results, leaves, by)]
