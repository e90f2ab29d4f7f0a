"""Log-density of a KNIFE mixture and its gradient: a batched product against copies of the coupling per row.

    python benchmarks/bench_knife.py [--threads 2]

Correctness comes first: both must agree with each other in values and gradients, or there is no row. Peak memory is
what a call holds above its arguments, gradients included; the copying form is measured where it needs less than 4 GiB.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import harness
import torch
from torch import Tensor

from pgm_fast.interactions.density import COMPONENTS, knife_log_density

SHAPES = ((64, 512), (1024, 512))
COPYING_LIMIT = 4 << 30  # bytes


def copying(x: Tensor, means: Tensor, scale: Tensor, coupling: Tensor, logits: Tensor) -> Tensor:
    """The same for one member, a product of matrix and vector per row and component: N copies of the coupling."""
    bounded = scale[0].tanh()
    y = (x[0].unsqueeze(1) - means[0]) * bounded.exp()
    y = y + torch.matmul(torch.tril(coupling[0], -1).expand(len(y), -1, -1, -1), y.unsqueeze(-1)).squeeze(-1)
    weight = torch.log_softmax(logits[0], -1) + bounded.sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)
    return torch.logsumexp(weight - 0.5 * (y * y).sum(-1), -1).unsqueeze(0)


def arguments(rows: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    """Rows, and the parameters of a mixture."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, size: float) -> Tensor:
        return size * torch.randn(*shape, generator=generator, dtype=dtype)

    parameters = [
        draw(1, COMPONENTS, dim, size=0.5),
        draw(1, COMPONENTS, dim, size=0.3),
        draw(1, COMPONENTS, dim, dim, size=dim**-0.5),
        draw(1, COMPONENTS, size=0.3),
    ]
    return draw(1, rows, dim, size=1.0), [p.requires_grad_() for p in parameters]


def gradient(function: Callable[..., Tensor], x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Values, and the gradient of their mean to the parameters."""
    values = function(x, *parameters)
    return values.detach(), torch.autograd.grad(values.mean(), parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    device, rows = torch.device("cpu"), []
    check()
    for count, dim in SHAPES:
        variants = {"batched product": knife_log_density}
        if 3 * 4 * count * COMPONENTS * dim * dim <= COPYING_LIMIT:
            variants["copying"] = copying
        x, parameters = arguments(count, dim)
        calls = {
            name: lambda function=function, x=x, parameters=parameters: gradient(function, x, parameters)
            for name, function in variants.items()
        }
        timings = harness.interleaved(calls, device)
        for name, timing in timings.items():
            slower = timings["copying"].median / timing.median if "copying" in timings else None
            rows.append(
                harness.as_row(
                    timing,
                    harness.count(calls[name], device),
                    op="knife_log_density",
                    variant=name,
                    dtype="float32",
                    shape={"rows": count, "d": dim, "components": COMPONENTS},
                    kind="forward+backward",
                    times_copying=slower and round(slower, 1),
                )
            )
            against = f"{slower:.1f}x copying" if slower else "copying not run"
            print(f"{count}x{dim} {name:15} {timing.median:10.3f} ms {rows[-1]['peak_bytes'] / 1e6:9.1f} MB  {against}")
    print(harness.write("knife", device, rows))


def check() -> None:
    """Raises AssertionError where the two forms differ."""
    x, parameters = arguments(16, 24, torch.float64)
    torch.testing.assert_close(
        gradient(knife_log_density, x, parameters), gradient(copying, x, parameters), rtol=1e-9, atol=1e-9
    )


if __name__ == "__main__":
    main()
