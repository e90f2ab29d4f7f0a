"""gaussian_sample_kl: eager PyTorch, torch.compile of it, the reference and the kernels of a device, in one run.

    python benchmarks/bench_gaussian_sample_kl.py [--device cpu] [--threads 2]

Correctness comes first: a backend whose divergence or gradients are not those of the formula gets no row (noise differs
between eager's generator and ours, so gradients are compared for the noise that was drawn). The floor is the time that
the fastest stream takes to move the bytes that the op must move, over as much memory: 2 N d read and N d written
forward, 3 and 2 backward, with a given prior 4 and 1, 5 and 4.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import floor
import harness
import torch

import pgm_fast
from pgm_fast import backends
from pgm_fast.ops import gaussian_sample_kl

SHAPES = {
    "cpu": ((64, 128), (512, 512), (4096, 512)),
    "cuda": ((64, 128), (4096, 512), (65536, 1024)),  # the last are far larger than any cache
}
MOVED = {"standard": (3, 5), "given": (5, 9)}  # matrices, forward and backward


def eager(mu, logvar, prior_mu=None, prior_logvar=None):
    """As one writes it; torch.compile may fuse it as it likes. Keeps the noise for backward."""
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    if prior_mu is None:
        return z, 0.5 * (torch.exp(logvar) - logvar - 1 + mu.square()).mean()
    ratio = logvar - prior_logvar
    return z, 0.5 * (torch.exp(ratio) - ratio - 1 + (mu - prior_mu).square() * torch.exp(-prior_logvar)).mean()


def variants(device: torch.device) -> dict[str, tuple[Callable, str]]:
    """name -> function of the tensors, and the backend that serves it; this project's are named by theirs."""
    usable = backends.implementations(device.type)["gaussian_sample_kl"]
    ours = {name: (gaussian_sample_kl, name) for name, reason in usable.items() if reason is None}
    return {"eager": (eager, "torch"), "torch.compile": (torch.compile(eager), "torch"), **ours}


def forward_backward(run: Callable, tensors: list[torch.Tensor], direction: torch.Tensor, backend: str) -> Callable:
    """A call that draws, measures, and takes the gradients of both with respect to every tensor."""
    leaves, one = [x.detach().requires_grad_() for x in tensors], torch.ones((), device=direction.device)
    return harness.on_backend(backend, lambda: torch.autograd.grad(run(*leaves), leaves, (direction, one)))


def forward(run: Callable, tensors: list[torch.Tensor], backend: str) -> Callable:
    """A call without gradients."""

    def call():
        with torch.no_grad():
            return run(*tensors)

    return harness.on_backend(backend, call)


def check(run: Callable, tensors: list[torch.Tensor], direction: torch.Tensor) -> None:
    """Divergence and gradients against the formula in fp64, for the noise that this call drew."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    z, kl = run(*leaves)
    got = torch.autograd.grad((z, kl), leaves, (direction, torch.ones_like(kl)))
    wide = [x.detach().double().requires_grad_() for x in tensors]
    noise = (z.detach().double() - wide[0].detach()) / torch.exp(0.5 * wide[1].detach())
    _, exact = eager(*wide)
    sample = wide[0] + torch.exp(0.5 * wide[1]) * noise
    want = torch.autograd.grad((sample, exact), wide, (direction.double(), torch.ones_like(exact)))
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-6)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), []
    for prior, (moved_forward, moved_backward) in MOVED.items():
        for n, d in SHAPES[device.type]:
            torch.manual_seed(0)
            tensors = [(0.5 * torch.randn(n, d)).to(device) for _ in range(2 if prior == "standard" else 4)]
            direction = torch.randn(n, d).to(device)
            runs = variants(device)
            for run, backend in runs.values():
                with pgm_fast.backend(backend):
                    check(run, tensors, direction)
            for kind in ("forward", "forward+backward"):
                calls = {}
                for name, (run, backend) in runs.items():
                    calls[name] = (
                        forward(run, tensors, backend)
                        if kind == "forward"
                        else forward_backward(run, tensors, direction, backend)
                    )
                moved = (moved_forward + (moved_backward if kind != "forward" else 0)) * n * d * 4
                held = len(tensors) + 1 if kind == "forward" else 2 * len(tensors) + 2
                timings, least = floor.interleaved(calls, device, moved, held * n * d * 4)
                for name, timing in timings.items():
                    counts = harness.count(calls[name], device)
                    rows.append(
                        harness.as_row(
                            timing,
                            counts,
                            op="gaussian_sample_kl",
                            variant=name,
                            prior=prior,
                            dtype="float32",
                            shape={"rows": n, "d": d},
                            kind=kind,
                            bytes=moved,
                            **least.of(timing),
                            times_eager=round(timings["eager"].median / timing.median, 2),
                            times_compile=round(timings["torch.compile"].median / timing.median, 2),
                        )
                    )
                    row = rows[-1]
                    print(
                        f"{prior:8} {n}x{d} {kind:17} {name:14} {timing.median:9.4f} ms  "
                        f"{row['percent_of_floor']:5.1f} % of floor  {row['times_eager']:.2f}x eager  "
                        f"{row['times_compile']:.2f}x compile  {counts.peak_bytes / 2**20:.1f} MiB"
                    )
    print(harness.write("gaussian_sample_kl", device, rows))


if __name__ == "__main__":
    main()
