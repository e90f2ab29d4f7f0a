"""effective_dimensions against the form that compares every value with every centroid, and on its own where that form
does not fit.

    python benchmarks/bench_effective_dimensions.py [--device cpu|cuda] [--threads 2] [--quick]

Correctness comes first: both give the same dimensions. The floor is the time that the fastest stream takes to move
the 2 N d s + C d bytes of two passes, over as much memory as the features take. Peak memory is counted beyond the
features.
"""

from __future__ import annotations

import argparse

import floor
import harness
import torch

from pgm_fast import ops

CASES = ((9537, 512, 101, True), (170_000, 512, 309, False))  # rows, d, classes, whether the broadcast form is run
QUICK = ((500, 64, 20, True), (5000, 64, 300, False))


def broadcast(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As the released code: ``[N, C, d]`` distances."""
    centroids = torch.stack([features[labels == c].mean(0) for c in range(classes)])
    nearest = (features.unsqueeze(1) - centroids).abs().argmin(1)
    accuracy = (nearest == labels.unsqueeze(1)).float().mean(0)
    return accuracy, accuracy > accuracy.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rows = torch.device(arguments.device), []
    for n, d, classes, compared in QUICK if arguments.quick else CASES:
        torch.manual_seed(0)
        labels = torch.randint(classes, (n,))
        labels[:classes] = torch.arange(classes)
        features = torch.randn(n, d) + 0.01 * labels.unsqueeze(1)
        features, labels = features.to(device), labels.to(device)
        calls = {"torch": lambda x=features, y=labels, c=classes: ops.effective_dimensions(x, y, c)}
        if compared:
            calls["broadcast"] = lambda x=features, y=labels, c=classes: broadcast(x, y, c)
            # means in fp32 and fp64 differ in the last bit, which moves a value or two across a boundary
            torch.testing.assert_close(calls["torch"]()[0], calls["broadcast"]()[0], rtol=0, atol=2 / n)
        moved = 2 * n * d * 4 + 4 * classes * d
        timings, least = floor.interleaved(calls, device, moved, 4 * n * d)
        for name, timing in timings.items():
            counts = harness.count(calls[name], device)
            times = round(timings["broadcast"].median / timing.median, 2) if compared else None
            rows.append(
                harness.as_row(
                    timing,
                    counts,
                    op="effective_dimensions",
                    variant=name,
                    dtype="float32",
                    shape={"rows": n, "d": d, "classes": classes},
                    kind="forward",
                    bytes=moved,
                    **least.of(timing),
                    times_broadcast=times,
                )
            )
            print(
                f"{n}x{d}, {classes} classes  {name:10} {timing.median:9.1f} ms  {counts.peak_bytes / 1e6:8.1f} MB  "
                f"{times or '-'}x broadcast"
            )
    if not arguments.quick:
        print(harness.write("effective_dimensions", device, rows))


if __name__ == "__main__":
    main()
