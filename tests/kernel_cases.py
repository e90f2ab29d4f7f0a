"""One case per way in which a Triton kernel is launched: a call on tensors of the meta device, and what its machine
code must show."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pgm_fast.optim import MultiRateAdamW, MultiRateSGD

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A call to compile.

    Attributes:
        name: kernel file, shape and dtype.
        call: calls wrappers of ``kernels/`` on meta tensors.
        wide: loads and stores 16 bytes per thread.
        matrix: kernels that multiply on the matrix units (wgmma on sm_90), their operands copied 16 bytes at a time.
        gathered: kernels that multiply there, by whichever instruction, what they gather element by element.
        tf32: kernels that multiply fp32 there, in TF32, by whichever of its instructions.
        double: computes in fp64.
        double_scalars: takes rates that may be fp64, converted once per program, and computes in fp32.
        double_norm: forms sums of squares in fp64, or what to clip by from them, once per program.
        rare: code that another case of its kernels nearly has: ``make test`` leaves it to ``make test-all``.
    """

    name: str
    call: Callable[[], object]
    wide: bool = False
    matrix: tuple[str, ...] = ()
    gathered: tuple[str, ...] = ()
    tf32: tuple[str, ...] = ()
    double: bool = False
    double_scalars: bool = False
    double_norm: bool = False
    rare: bool = False


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _split(
    op: str, share: bool, gates: int, d: int, dtype: torch.dtype, z_dtype: torch.dtype, rows: int = 4096
) -> None:
    kernels = importlib.import_module(f"pgm_fast.kernels.{op}")
    count = 1 if op == "partition" else 2
    h, logits = _meta(rows, d, dtype=dtype), [_meta(rows, gates, dtype=z_dtype) for _ in range(count)]
    grad_share = None
    if share:
        *_, grad_share = kernels.forward_with_share(h, *logits, 0.5)
    else:
        kernels.forward(h, *logits, 0.5)
    kernels.backward(*[h] * (count + 1), grad_share, h, *logits, 0.5)


def _split_cases(op: str, share: bool) -> list[Case]:
    """A row kept whole, several rows per program, the longest row kept whole, blocks, chunks, an odd width, mixed and
    double precision."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    shapes = [
        (1024, 1024, half, half, True, share),
        (256, 256, single, single, True, True),
        (768, 768, torch.float16, single, True, True),
        (4096, 4096, half, half, True, True),
        (8192, 8192, single, single, True, True),
        (20000, 20000, half, half, True, not share),
        (64, 256, half, half, False, True),
        (3, 4098, single, single, False, share),
        (77, 77, single, half, False, True),
        (96, 96, double, double, False, True),
    ]
    return [
        Case(
            f"{op}{'-share' * share}-{gates}x{d // gates}-{str(dtype)[6:]}-{str(z_dtype)[6:]}",
            partial(_split, op, share, gates, d, dtype, z_dtype),
            wide=wide,
            double=dtype == double,
            rare=rare,
        )
        for gates, d, dtype, z_dtype, wide, rare in shapes
    ]


def _boundary(share: bool, detached: bool, d: int, dtype: torch.dtype, b_dtype: torch.dtype, rows: int = 4096) -> None:
    kernels = importlib.import_module("pgm_fast.kernels.partition_boundary")
    h, places = _meta(rows, d, dtype=dtype), [_meta(rows, 1, dtype=b_dtype) for _ in range(2)]
    numbers = 0.12, 0.1, detached
    grad_share = None
    if share:
        *_, grad_share = kernels.forward_with_share(h, *places, *numbers)
    else:
        kernels.forward(h, *places, *numbers)
    kernels.backward(h, h, grad_share, h, *places, *numbers)


def _boundary_cases() -> list[Case]:
    """Several rows per program, rows kept whole, blocks, an odd width, gates that only the share trains, mixed and
    double precision."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    shapes = [
        (False, 256, single, single, True, True),
        (False, 1024, half, single, True, True),
        (False, 2048, single, single, True, True),
        (False, 4096, half, half, True, True),
        (False, 20000, half, half, True, False),
        (False, 77, single, half, False, False),
        (False, 96, double, double, False, True),
        (True, 768, torch.float16, single, True, False),
    ]
    return [
        Case(
            f"partition_boundary{'-share' * share}{'-detached' * detached}-{d}-{str(dtype)[6:]}-{str(b_dtype)[6:]}",
            partial(_boundary, share, detached, d, dtype, b_dtype),
            wide=wide,
            double=dtype == double,
            rare=rare or not share,
        )
        for detached, d, dtype, b_dtype, wide, rare in shapes
        for share in (False, True)
    ]


def _linear(sizes: list[tuple[int, int, int, int, int]], activation: str | None, dtype: torch.dtype) -> None:
    """Forward and backward of problems of rows, d, chunk, n_u, n_p."""
    kernels = importlib.import_module("pgm_fast.kernels.partitioned_linear")
    shapes = [[(n, d), (n, d // c), (n_u, d), (n_u,), (n_p, d), (n_p,)] for n, d, c, n_u, n_p in sizes]
    h, z, w_uni, b_uni, w_paired, b_paired = (
        [_meta(*shape, dtype=dtype) for shape in same] for same in zip(*shapes, strict=True)
    )
    u, p, x_uni, x_paired = kernels.grouped_forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, 0.5)
    saved = (x_uni, x_paired) if x_uni else (u, p)
    kernels.grouped_backward(u, p, *saved, h, z, w_uni, w_paired, activation, 0.5)


def _decoder(rows: int, d: int, n_u: int, n_p: int, weighted: bool, target_grad: bool, dtype: torch.dtype) -> None:
    kernels = importlib.import_module("pgm_fast.kernels.reconstruction")
    shapes = [(rows, n_u), (rows, n_p), (d, n_u), (d, n_p), (d,), (rows, d)]
    *inputs, bias, target = (_meta(*shape, dtype=dtype) for shape in shapes)
    weight = _meta(rows, dtype=torch.float32) if weighted else None
    decoded, loss = kernels.forward(*inputs, bias, target, weight)
    kernels.backward(decoded, loss, *inputs, decoded, target, weight, target_grad)


def _in_tf32(call: Callable[[], object]) -> None:
    """A call where fp32 products are in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        call()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def _product_cases() -> list[Case]:
    """Gates and gradients stored and formed on the fly, the small tiles of 16 and 32 bits, several problems at once."""
    half, single = torch.bfloat16, torch.float32
    linear = ("project_kernel", "grad_operands_kernel", "grad_weights_kernel")
    decoder = ("decode_kernel", "grad_features_kernel", "grad_decoder_kernel")
    two = [(64, 128, 1, 128, 128), (64, 96, 4, 64, 80)]
    return [
        Case("linear-wide", partial(_linear, [(32768, 1024, 1, 1024, 1024)], None, half), matrix=linear),
        Case("linear-narrow", partial(_linear, [(32768, 1024, 1, 128, 128)], "gelu", half), matrix=linear, rare=True),
        Case("linear-float32", partial(_linear, [(32768, 512, 1, 128, 128)], "silu", single)),
        Case(
            "linear-tf32-wide",
            partial(_in_tf32, partial(_linear, [(32768, 1024, 1, 1024, 1024)], None, single)),
            tf32=linear,
            rare=True,
        ),
        Case(
            "linear-tf32-narrow",
            partial(_in_tf32, partial(_linear, [(32768, 512, 1, 128, 128)], "gelu", single)),
            tf32=linear,
            rare=True,
        ),
        Case(
            "linear-tf32-small",
            partial(_in_tf32, partial(_linear, [(64, 128, 2, 128, 96)], "gelu", single)),
            tf32=linear,
            rare=True,
        ),
        Case(
            "decoder-tf32",
            partial(_in_tf32, partial(_decoder, 32768, 1024, 512, 256, True, False, single)),
            tf32=decoder,
        ),
        Case(
            "decoder-tf32-small",
            partial(_in_tf32, partial(_decoder, 64, 128, 128, 96, True, False, single)),
            tf32=decoder,
            rare=True,
        ),
        Case("linear-odd", partial(_linear, [(77, 99, 3, 33, 31)], "relu", torch.float16), rare=True),
        Case("linear-grouped", partial(_linear, two, "gelu", half), rare=True),
        Case("decoder-wide", partial(_decoder, 32768, 1024, 1024, 1024, False, True, half), matrix=decoder),
        Case("decoder-narrow", partial(_decoder, 32768, 1024, 128, 128, True, False, half), matrix=decoder, rare=True),
        Case("decoder-float32", partial(_decoder, 64, 128, 128, 96, True, False, single), rare=True),
    ]


def _optimizer(
    build: Callable, dtype: torch.dtype, gradient_dtype: torch.dtype | None = None, scaled: bool = False, **options
) -> None:
    """The launches of a step, and of its norm where it clips, of two groups."""
    kernels = importlib.import_module("pgm_fast.kernels.multi_rate")
    params = [nn.Parameter(_meta(size, dtype=dtype)) for size in (2**20, 77)]
    optimizer = build([{"params": [p]} for p in params], **options)
    for p in params:
        p.grad = torch.empty_like(p)
    (launch,) = optimizer._current_plan().launches
    launch.gradient_dtype = gradient_dtype or dtype
    if scaled:
        launch.set_scalars(_meta(dtype=torch.float32), _meta(dtype=torch.float32))
    if optimizer._current_plan().settings.measures:
        kernels.squares(launch)
    kernels.step(launch)


def _optimizer_cases() -> list[Case]:
    """Every form of storage, both algorithms, scaled and clipped."""
    half, single = torch.bfloat16, torch.float32
    adamw, sgd = MultiRateAdamW, partial(MultiRateSGD, momentum=0.9)
    plain = [
        ("adamw-float32", partial(_optimizer, adamw, single, scaled=True)),
        ("adamw-bfloat16", partial(_optimizer, adamw, half)),
        ("adamw-bfloat16-remainder", partial(_optimizer, adamw, half, master_weights="remainder")),
        ("adamw-float16-master", partial(_optimizer, adamw, torch.float16, single, master_weights="float32")),
        ("sgd-float32", partial(_optimizer, sgd, single)),
        ("sgd-bfloat16-remainder", partial(_optimizer, sgd, half, scaled=True, master_weights="remainder")),
    ]
    clipped = [
        ("adamw-clipped", partial(_optimizer, adamw, single, scaled=True, max_norm=1.0, skip_nonfinite=True)),
        ("sgd-clipped", partial(_optimizer, sgd, half, single, max_norm=1.0, clip="group")),
    ]
    return [
        *(
            Case(
                f"multi_rate-{name}",
                call,
                wide=True,
                double_scalars=True,
                rare=name in ("adamw-bfloat16", "sgd-float32"),
            )
            for name, call in plain
        ),
        *(Case(f"multi_rate-{name}", call, double_norm=True) for name, call in clipped),
        Case("multi_rate-float64", partial(_optimizer, adamw, torch.float64, max_norm=1.0), double=True, rare=True),
    ]


def _duc(rows: int, d: int, k: int, mask: bool, weighted: bool, dtype: torch.dtype) -> None:
    """Both directions, on k dimensions and the rest."""
    kernels = importlib.import_module("pgm_fast.kernels.duc_loss")
    student, teacher = (_meta(rows, d, dtype=dtype) for _ in range(2))
    dims = [_meta(d, dtype=torch.bool)] * 2 if mask else [_meta(n, dtype=torch.int64) for n in (k, d - k)]
    weight = _meta(rows, dtype=torch.float32) if weighted else None
    loss, *lse = kernels.forward(student, teacher, *dims, weight, 0, -1, 10.0, False)
    kernels.backward(loss, student, teacher, *dims, weight, *lse, 0, -1, 10.0)


def _duc_cases() -> list[Case]:
    half, single = torch.bfloat16, torch.float32
    direct, kernels = ("partial_lse_kernel", "grad_kernel"), ("gathered_lse_kernel", "gathered_grad_kernel")
    return [
        Case("duc-small", partial(_duc, 64, 512, 256, False, False, half), gathered=direct, rare=True),
        Case("duc-large", partial(_duc, 4096, 512, 256, False, True, half), matrix=kernels),
        Case("duc-narrow", partial(_duc, 4096, 200, 100, False, False, half), matrix=kernels, rare=True),
        Case("duc-mask", partial(_duc, 4096, 512, 0, True, False, half), matrix=kernels, rare=True),
        Case("duc-odd", partial(_duc, 4097, 515, 131, False, True, torch.float16), matrix=kernels, rare=True),
        Case(
            "duc-tf32-large",
            partial(_in_tf32, partial(_duc, 4096, 512, 256, False, True, single)),
            tf32=kernels,
            rare=True,
        ),
        Case(
            "duc-tf32-small",
            partial(_in_tf32, partial(_duc, 64, 512, 256, False, False, single)),
            tf32=direct,
            rare=True,
        ),
        Case("duc-float32", partial(_duc, 64, 512, 256, False, False, single), rare=True),
        Case("duc-float32-odd", partial(_duc, 4097, 515, 131, False, True, single), rare=True),
        Case("duc-float32-mask", partial(_duc, 4096, 512, 0, True, False, single), rare=True),
    ]


def _gaussian(rows: int, d: int, layers: int, prior: bool, sample: bool, dtype: torch.dtype) -> None:
    """Means and log-variances in one matrix, as a layer makes them."""
    kernels = importlib.import_module("pgm_fast.kernels.gaussian_sample_kl")
    operands = [*_meta(rows, 2 * d, dtype=dtype).chunk(2, 1), *[_meta(rows, d, dtype=dtype) if prior else None] * 2]
    seed = _meta(1, dtype=torch.int64) if sample else None
    z, kl = kernels.forward(*operands, seed, layers)
    kernels.backward(z, kl.expand(rows, layers), *operands, seed)


def _gaussian_cases() -> list[Case]:
    """Either prior, with and without a sample, wide, narrow and odd layers, more than one, the longest."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    shapes = [
        (4096, 512, 1, False, True, single, True, True),
        (4096, 512, 1, True, True, half, True, True),
        (64, 1024, 2, False, True, half, True, True),
        (64, 32, 1, True, False, torch.float16, False, True),
        (64, 8192, 1, True, True, half, True, True),
        (5, 99, 3, True, True, half, False, False),
        (5, 24, 1, True, True, half, False, True),
        (5, 1, 1, True, True, single, False, True),
        (5, 96, 1, True, True, double, False, True),
    ]
    return [
        Case(
            f"gaussian-{d // layers}x{layers}{'-prior' * prior}{'-still' * (not sample)}-{str(dtype)[6:]}",
            partial(_gaussian, rows, d, layers, prior, sample, dtype),
            wide=wide,
            double=dtype == double,
            rare=rare,
        )
        for rows, d, layers, prior, sample, dtype, wide, rare in shapes
    ]


def _mixture(
    rows: int, classes: int, mixed: int, others: int, labelled: bool, gate_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    kernels = importlib.import_module("pgm_fast.kernels.gated_mixture")
    gate = _meta(rows, mixed, dtype=gate_dtype)
    logits = [_meta(rows, classes, dtype=dtype) for _ in range(mixed + others)]
    labels = _meta(rows, dtype=torch.int64) if labelled else None
    grads = kernels.forward(gate, logits, labels)
    kernels.backward(*grads, gate, logits, labels)


def _mixture_cases() -> list[Case]:
    """Few classes, many, more than a program holds at once, without losses, as many predictions as there may be."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    shapes = [
        (64, 10, 4, 2, True, single, single, False, True),
        (4096, 1024, 4, 2, True, half, half, True, False),
        (64, 8192, 3, 0, True, single, single, True, True),
        (64, 512, 4, 0, False, single, half, True, True),
        (77, 101, 2, 1, True, single, torch.float16, False, True),
        (64, 310, 8, 8, True, half, half, False, True),
        (5, 1, 1, 1, True, single, single, False, True),
        (5, 10, 1, 1, True, double, double, False, True),
    ]
    return [
        Case(
            f"mixture-{classes}-{mixed}of{mixed + others}{'-bare' * (not labelled)}-{str(dtype)[6:]}",
            partial(_mixture, rows, classes, mixed, others, labelled, gate_dtype, dtype),
            wide=wide,
            double=dtype == double,
            rare=rare,
        )
        for rows, classes, mixed, others, labelled, gate_dtype, dtype, wide, rare in shapes
    ]


def _certainty(rows: int, classes: int, heads: int, masked: bool, labelled: bool, dtype: torch.dtype) -> None:
    kernels = importlib.import_module("pgm_fast.kernels.certainty_weighted_logits")
    logits = [_meta(rows, classes, dtype=dtype) for _ in range(heads)]
    present = _meta(rows, heads, dtype=torch.bool) if masked else None
    grads = kernels.forward(logits, present, 0.5)
    kernels.backward(*grads, logits, present, 0.5)
    kernels.predict(logits, present, _meta(rows, dtype=torch.int64) if labelled else None, 0.5)


def _certainty_cases() -> list[Case]:
    """Few classes and many, absent heads, with a count and without, as many heads as there may be."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    shapes = [
        (64, 10, 3, True, True, single, False, True),
        (4096, 1024, 3, False, True, half, True, False),
        (64, 8192, 2, True, False, single, True, True),
        (77, 101, 8, True, True, torch.float16, False, True),
        (5, 1, 1, True, True, single, False, True),
        (5, 10, 2, True, True, double, False, True),
    ]
    return [
        Case(
            f"certainty-{classes}x{heads}-{str(dtype)[6:]}",
            partial(_certainty, rows, classes, heads, masked, labelled, dtype),
            wide=wide,
            double=dtype == double,
            rare=rare,
        )
        for rows, classes, heads, masked, labelled, dtype, wide, rare in shapes
    ]


CASES: list[Case] = [
    *_duc_cases(),
    *_gaussian_cases(),
    *_mixture_cases(),
    *_certainty_cases(),
    *_split_cases("partition", False),
    *_split_cases("partition", True),
    *_split_cases("partition_dual", False),
    *_split_cases("partition_dual", True),
    *_boundary_cases(),
    *_product_cases(),
    *_optimizer_cases(),
]
