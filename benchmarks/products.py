"""Measures an op that is mostly matrix products, forward and with backward, beside eager, compiled and bare forms."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import harness
import torch
from torch import Tensor

import pgm_fast
from pgm_fast import backends

DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        arguments: tensors, all of which get a gradient.
        eager: the op as a user would write it.
        bare: its matrix products alone.
        ours: the op.
    """

    op: str
    shape: dict[str, int]
    arguments: list[Tensor]
    eager: Callable
    bare: Callable
    ours: Callable

    def variants(self) -> dict[str, tuple[Callable, str | None]]:
        """name -> function and the backend to choose while it runs."""
        found = {
            "eager": (self.eager, None),
            "torch.compile": (torch.compile(self.eager), None),
            "bare": (self.bare, None),
            "torch": (self.ours, "torch"),
        }
        if backends.implementations()[self.op]["native"] is None:
            found["native"] = (self.ours, "native")
        return found


def main(name: str, cases: Sequence[Callable[[], Case]], description: str) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    rows: list[dict] = []
    for make in cases:
        torch.manual_seed(0)
        rows += measure(make())
    print(harness.write(name, DEVICE, rows))


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
        timings = harness.interleaved(calls, DEVICE)
        for name, timing in timings.items():
            counts = harness.count(calls[name], DEVICE)
            extra = max(0, counts.peak_bytes - results[name])
            row = harness.as_row(
                timing,
                counts,
                op=case.op,
                variant=name,
                dtype="float32",
                shape=case.shape,
                kind=kind,
                extra_bytes=extra,
                times_eager=round(timings["eager"].median / timing.median, 2),
                times_compile=round(timings["torch.compile"].median / timing.median, 2),
                of_bare=round(timing.median / timings["bare"].median, 3),
            )
            rows.append(row)
            shape = "x".join(map(str, case.shape.values()))
            print(
                f"{case.op} {shape:18} {kind:17} {name:14} {timing.median:9.4f} ms  {row['times_eager']:.2f}x eager  "
                f"{row['times_compile']:.2f}x compile  {row['of_bare']:.2f} of bare  "
                f"{extra / 2**20:.1f} MiB beyond its results"
            )
    return rows


def forward(case: Case, run: Callable) -> Callable[[], tuple[Tensor, ...]]:
    def call():
        with torch.no_grad():
            return run(*case.arguments)

    return call


def forward_backward(case: Case, run: Callable) -> Callable[[], tuple[Tensor, ...]]:
    """Returns the gradients; of the outputs nothing is kept."""
    leaves = [x.detach().requires_grad_() for x in case.arguments]
    directions = [torch.randn_like(x) for x in run(*leaves)]

    def call():
        return torch.autograd.grad(run(*leaves), leaves, directions)

    return call


def check(case: Case, runs: dict[str, Callable], chosen: dict[str, str | None]) -> None:
    expected = case.eager(*(x.double() for x in case.arguments))
    for name, run in runs.items():
        if name == "bare":
            continue
        with pgm_fast.backend(chosen[name]):
            for got, want in zip(run(*case.arguments), expected, strict=True):
                torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
