"""gated_mixture_loss: eager PyTorch, torch.compile of it, the reference and the compiled kernel, in one run.

    python benchmarks/bench_gated_mixture.py [--threads 2]

DMIL's six predictions of two modalities: four are mixed, two are only scored; with the mixture seven cross-entropies.
Correctness comes first: a backend whose losses or gradients are not those of the formula in fp64 gets no row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import harness
import torch
import torch.nn.functional as F

from pgm_fast import backends
from pgm_fast.ops import gated_mixture_loss

SHAPES = ((64, 6), (64, 101), (4096, 6), (4096, 101))  # rows, classes
MIXED, OTHERS = 4, 2


def eager(logits, gate, labels, others):
    """As one writes it."""
    weights = torch.softmax(gate, 1)
    fused = sum(weights[:, k : k + 1] * x for k, x in enumerate(logits))
    losses = [F.cross_entropy(x, labels, reduction="none") for x in (fused, *logits, *others)]
    return fused, weights, torch.stack(losses, 1)


def forward_backward(run: Callable, logits: list[torch.Tensor], gate: torch.Tensor, labels: torch.Tensor) -> Callable:
    """Gradients of the mean of all losses with respect to gate and predictions."""
    leaves = [x.detach().requires_grad_() for x in (gate, *logits)]
    weight = torch.full((gate.shape[0], 1 + len(logits)), 1.0 / gate.shape[0], dtype=gate.dtype)

    def call():
        losses = run(leaves[1 : 1 + MIXED], leaves[0], labels, leaves[1 + MIXED :])[2]
        return losses.detach(), torch.autograd.grad(losses, leaves, weight)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    device, rows = torch.device("cpu"), []
    for n, classes in SHAPES:
        torch.manual_seed(0)
        logits = [torch.randn(n, classes) for _ in range(MIXED + OTHERS)]
        gate, labels = torch.randn(n, MIXED), torch.randint(classes, (n,))
        runs = {"eager": eager, "torch.compile": torch.compile(eager), "torch": gated_mixture_loss}
        if backends.implementations()["gated_mixture"]["native"] is None:
            runs["native"] = gated_mixture_loss
        calls = {
            name: harness.on_backend(
                "native" if name == "native" else "torch", forward_backward(run, logits, gate, labels)
            )
            for name, run in runs.items()
        }
        exact = forward_backward(eager, [x.double() for x in logits], gate.double(), labels)()
        for call in calls.values():
            losses, grads = call()
            torch.testing.assert_close(losses.double(), exact[0], rtol=1e-5, atol=1e-6)
            for got, want in zip(grads, exact[1], strict=True):
                torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-7)
        timings = harness.interleaved(calls, device)
        for name, timing in timings.items():
            rows.append(
                harness.as_row(
                    timing,
                    harness.count(calls[name], device),
                    op="gated_mixture_loss",
                    variant=name,
                    dtype="float32",
                    shape={"rows": n, "classes": classes, "mixed": MIXED, "others": OTHERS},
                    kind="forward+backward",
                    times_eager=round(timings["eager"].median / timing.median, 2),
                    times_compile=round(timings["torch.compile"].median / timing.median, 2),
                )
            )
            row = rows[-1]
            print(
                f"{n}x{classes} {name:14} {timing.median:9.4f} ms  {row['times_eager']:.2f}x eager  "
                f"{row['times_compile']:.2f}x compile  {row['ops']} ops  {row['peak_bytes'] / 2**20:.2f} MiB"
            )
    print(harness.write("gated_mixture", device, rows))


if __name__ == "__main__":
    main()
