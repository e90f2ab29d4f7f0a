"""Multi-rate optimizers in every form of storage, stepped by any backend: what each kernel is held against the
reference on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import pgm_fast
from pgm_fast.optim import MultiRateAdamW, MultiRateOptimizer, MultiRateSGD

__all__ = ["OPTIMIZERS", "STORAGE", "stepped"]

OPTIMIZERS = {
    "adamw": (MultiRateAdamW, {}),
    "amsgrad": (MultiRateAdamW, {"amsgrad": True, "maximize": True}),
    "clipped": (MultiRateAdamW, {"max_norm": 0.5}),
    "clipped by group": (MultiRateAdamW, {"max_norm": 0.5, "clip": "group"}),
    "every second": (MultiRateAdamW, {"update_every": 2}),
    "sgd": (MultiRateSGD, {}),
    "momentum": (MultiRateSGD, {"momentum": 0.9, "dampening": 0.5, "maximize": True}),
    "nesterov": (MultiRateSGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
}
STORAGE = [
    (torch.float32, None),
    (torch.float64, None),
    (torch.bfloat16, None),
    (torch.float16, None),
    (torch.bfloat16, "float32"),
    (torch.float16, "float32"),
    (torch.bfloat16, "remainder"),
]
SIZES = [(3, 5), (1,), (), (0, 4), (257,), (2050,), (64, 33)]


def stepped(
    backend: str | None,
    name: str,
    dtype: torch.dtype,
    master: str | None,
    *,
    device: str = "cpu",
    sizes: list[tuple[int, ...]] = SIZES,
    steps: int = 4,
    on_gradient: Callable[[int, torch.Tensor], None] = lambda step, gradient: None,
    **options,
) -> tuple[list[nn.Parameter], MultiRateOptimizer]:
    """Parameters in three groups and their optimizer after some steps; a tensor that is not aligned among them.

    Args:
        backend: None for that of the moment.
        name: of :data:`OPTIMIZERS`; ``options`` go on top of its own.
        on_gradient: is given each step's number and each gradient, to change it.
    """
    build, own = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    made.append(torch.randn(71, generator=generator).to(device, dtype)[1:])
    made = [nn.Parameter(x) for x in made]
    groups = [{"params": made[k::3], "lr": 0.1 / (k + 1)} for k in range(3)]
    options = own | options | ({"master_weights": master} if master else {})
    with pgm_fast.backend(backend):
        running = build(groups, **options)
        for step in range(steps):
            for k, p in enumerate(made):
                p.grad = torch.randn(p.shape, generator=generator).to(device, dtype)
                on_gradient(step, p.grad)
                if step == 2 and k % 3 == 1:  # gradients come and go
                    p.grad = None
            running.step()
    return made, running
