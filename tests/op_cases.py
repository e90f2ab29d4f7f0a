"""One case per op: how to make its arguments, the op as a function of tensors, and the same formula in plain torch.

The plain formulas are written apart from the references, with nothing shared, so that agreement means something.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from noise import normals

from pgm_fast import backends, ops
from pgm_fast.backends import selection

SEED = torch.tensor([0x0123456789ABCDEF])
# op -> the function that calls it, and of how many gates it takes logits
PARTITIONS = {
    "partition": (ops.partition, 1),
    "partition_with_share": (partial(ops.partition, return_share=True), 1),
    "partition_dual": (ops.partition_dual, 2),
    "partition_dual_with_share": (partial(ops.partition_dual, return_share=True), 2),
}
# b ~ N(0, 1) in the cases: edges wide enough that most of them are still in the row
EDGE = {"width": 0.5, "floor": 0.25}
BOUNDARIES = {
    "partition_boundary": partial(ops.partition_boundary, **EDGE),
    "partition_boundary_with_share": partial(ops.partition_boundary, **EDGE, return_share=True),
}


@dataclass(frozen=True)
class Case:
    """An op on one backend, and the formula that it is held against.

    Attributes:
        name: the op, and after a dash which of its forms.
        shapes: shapes of its tensors, from rows and features.
        run, plain: functions of those tensors; where there is a temperature it is a keyword with a default.
        batch_axis: of each tensor, whether its first dimension is the rows.
        smooth: its derivative has no jumps: errors of gradients can be judged.
        has_temperature: whether it takes ``temperature``.
        backend, device: who computes, and where.
    """

    name: str
    shapes: Callable[[int, int], list[tuple[int, ...]]]
    run: Callable
    plain: Callable
    batch_axis: tuple[bool, ...]
    smooth: bool = True
    has_temperature: bool = True
    backend: str = "torch"
    device: str = "cpu"

    @property
    def id(self) -> str:
        return f"{self.name}-{self.backend}" + ("" if self.device == "cpu" else f"-{self.device}")

    def skip_unless_served(self, dtype: torch.dtype) -> None:
        reason = backends.implementations(self.device, dtype)[self.name.partition("-")[0]][self.backend]
        if reason is not None:
            pytest.skip(f"{self.backend} {reason}")

    def tensors(self, rows: int, d: int, dtype=torch.float32, scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made = [torch.randn(shape, generator=generator, dtype=torch.float64) * scale for shape in self.shapes(rows, d)]
        return [x.to(self.device, dtype) for x in made]


def _gate(z, temperature):
    return torch.softmax(z / temperature, -1).cumsum(-1)


def _plain_partition(h, z, temperature=1.0):
    g = _gate(z, temperature)
    return h - g * h, g * h


def _plain_dual(h, z_uni, z_paired, temperature=1.0):
    e, r = 1 - _gate(z_uni, temperature), _gate(z_paired, temperature)
    return (e - e * r) * h, (r - e * r) * h, e * r * h


def _plain_share(z, temperature=1.0):
    g = _gate(z, temperature).mean(-1)
    return torch.stack([1 - g, g], -1)


def _plain_dual_share(z_uni, z_paired, temperature=1.0):
    e, r = 1 - _gate(z_uni, temperature), _gate(z_paired, temperature)
    return torch.stack([(e - e * r).mean(-1), (r - e * r).mean(-1), (e * r).mean(-1), ((1 - e) * (1 - r)).mean(-1)], -1)


def _plain_partition_with_share(h, z, temperature=1.0):
    return *_plain_partition(h, z, temperature), _plain_share(z, temperature)


def _plain_dual_with_share(h, z_uni, z_paired, temperature=1.0):
    return *_plain_dual(h, z_uni, z_paired, temperature), _plain_dual_share(z_uni, z_paired, temperature)


def _plain_boundary_gates(d, b_uni, b_paired, width):
    x = torch.linspace(0.5 / d, 1 - 0.5 / d, d, dtype=torch.float64, device=b_uni.device).to(b_uni.dtype)
    return (_gate(-0.5 * ((x - center) / width) ** 2, 1.0) for center in (b_uni, 1 - b_paired))


def _plain_boundary(h, b_uni, b_paired, width=EDGE["width"], floor=EDGE["floor"]):
    closed, r = _plain_boundary_gates(h.shape[-1], b_uni, b_paired, width)
    return h - (1 - floor) * closed * h, h - (1 - floor) * (1 - r) * h


def _plain_boundary_with_share(h, b_uni, b_paired):
    closed, r = _plain_boundary_gates(h.shape[-1], b_uni, b_paired, EDGE["width"])
    masses = ((1 - closed) * (1 - r), closed * r, (1 - closed) * r, closed * (1 - r))
    return *_plain_boundary(h, b_uni, b_paired), torch.stack([mass.mean(-1) for mass in masses], -1)


def _plain_linear(h, z, w_uni, b_uni, w_paired, b_paired, temperature=1.0, activation=None):
    uni, paired = _plain_partition(h, z, temperature)
    act = {None: lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}[activation]
    return act(F.linear(uni, w_uni, b_uni)), act(F.linear(paired, w_paired, b_paired))


def _plain_reconstruction(u, p, w_uni, w_paired, bias, target):
    decoded = F.linear(torch.cat([u, p], -1), torch.cat([w_uni, w_paired], -1), bias)
    return decoded, (decoded - target).square().sum() / max(decoded.numel(), 1)


def _plain_info_nce(a, b, temperature=0.1):
    if a.shape[0] == 0:
        return a.sum() + b.sum()
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).t() / temperature
    labels = torch.arange(a.shape[0], device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


def _plain_stacked_info_nce(a, b, temperature=0.1):
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(1, 2) / temperature
    own = (logits.log_softmax(1) + logits.log_softmax(2)).diagonal(dim1=1, dim2=2)
    return -own.mean(1) / 2


def _plain_gaussian(mu, logvar, prior_mu=None, prior_logvar=None, sample=True, layers=None):
    """Written with the two variances, as the textbook has it; the noise from another implementation."""
    prior_mu = torch.zeros_like(mu) if prior_mu is None else prior_mu
    prior_logvar = torch.zeros_like(mu) if prior_logvar is None else prior_logvar
    z = mu
    if sample:
        noise = torch.from_numpy(normals(SEED.item(), *mu.shape)).to(mu)
        z = mu + logvar.exp().sqrt() * noise
    squares = (logvar.exp() + (mu - prior_mu).square()) / prior_logvar.exp()
    kl = 0.5 * (prior_logvar - logvar + squares - 1)
    if layers is not None:
        return z, torch.stack([part.mean(-1) for part in kl.chunk(layers, -1)], -1)
    return z, kl.sum() / max(kl.numel(), 1)


def _gaussian(name, count, width=1, **kwargs):
    return Case(
        name,
        lambda n, d: [(n, width * d)] * count,
        lambda *x: ops.gaussian_sample_kl(*x, seed=SEED.to(getattr(x[0], "device", "cpu")), **kwargs),
        lambda *x: _plain_gaussian(*x, **kwargs),
        (True,) * count,
        has_temperature=False,
    )


def _plain_mixture(gate, *logits, scored=False):
    mixed, weights = gate.shape[1], torch.softmax(gate, 1)
    fused = sum(weights[:, k : k + 1] * logits[k] for k in range(mixed))
    if not scored:
        return fused, weights
    labels = _labels(fused)
    entropies = [F.cross_entropy(x, labels, reduction="none") for x in (fused, *logits)]
    return fused, weights, torch.stack(entropies, 1)


def _labels(*logits):
    """A class per row; of arguments that are wrong on purpose the first that holds something is asked."""
    tensors = [x for x in logits if isinstance(x, torch.Tensor)]
    asked = next((x for x in tensors if x.numel()), tensors[0])
    rows, classes = asked.shape
    return (7 * torch.arange(rows, device=asked.device)) % classes


def _teacher(student):
    """Features that depend on nothing but their place: a detached teacher has no part in finite differences."""
    like = torch.atleast_2d(torch.as_tensor(student))  # a wrong argument, too, is to reach the op
    places = torch.arange(like.numel(), dtype=torch.float64).reshape(like.shape)
    return (2 * places).sin().to(like)


def _duc(student, temperature=1.0):
    teacher = _teacher(student)
    return ops.duc_loss(student, teacher, torch.arange(0, teacher.shape[1], 2, device=teacher.device), temperature)


def _plain_duc(student, temperature=1.0):
    if student.shape[0] == 0:
        return student.sum()
    logits = student[:, ::2] @ _teacher(student)[:, ::2].t() / temperature
    return F.cross_entropy(logits, torch.arange(student.shape[0], device=student.device))


def _plain_certainty(*logits, temperature=1.0):
    certainty = torch.stack([z.softmax(-1).max(-1).values for z in logits], -1)
    weights = (certainty / temperature).softmax(-1)
    return sum(z * weights[:, k : k + 1] for k, z in enumerate(logits)), weights


def _odd_widths(d):
    """Two different widths for the two learners, of no convenient size."""
    return max(min(d // 2, 70), 1), min(d + 1, 71)


def _reconstruction_shapes(rows, d):
    n_u, n_p = _odd_widths(d)
    return [(rows, n_u), (rows, n_p), (d, n_u), (d, n_p), (d,), (rows, d)]


def _linear_shapes(rows, d):
    n_u, n_p = _odd_widths(d)
    return [(rows, d), (rows, d), (n_u, d), (n_u,), (n_p, d), (n_p,)]


def _linear(activation):
    return Case(
        f"partitioned_linear-{activation}",
        _linear_shapes,
        lambda *x, temperature=1.0: ops.partitioned_linear(*x, activation=activation, temperature=temperature),
        lambda *x, temperature=1.0: _plain_linear(*x, temperature=temperature, activation=activation),
        (True, True, False, False, False, False),
        smooth=activation != "relu",
    )


def _grouped_shapes(rows, d):
    """A problem of the size asked for and a smaller one with one gate for two neighbours."""
    small = [(rows + 1, 4), (rows + 1, 2), (3, 4), (3,), (2, 4), (2,)]
    return [shape for pair in zip(_linear_shapes(rows, d), small, strict=True) for shape in pair]


def _lists(tensors):
    """h0 h1 z0 z1 ... to lists, one per argument."""
    return [list(tensors[i : i + 2]) for i in range(0, 12, 2)]


def _run_grouped(*x, temperature=1.0):
    u, p = ops.grouped_partitioned_linear(*_lists(x), activation="gelu", temperature=temperature)
    return *u, *p


def _plain_grouped(*x, temperature=1.0):
    made = []
    for h, z, w_uni, b_uni, w_paired, b_paired in zip(*_lists(x), strict=True):
        g = _gate(z, temperature).repeat_interleave(h.shape[1] // z.shape[1], 1)
        made.append((F.gelu(F.linear(h - g * h, w_uni, b_uni)), F.gelu(F.linear(g * h, w_paired, b_paired))))
    return *(u for u, _ in made), *(p for _, p in made)


def _plain_mlp(x, w_in, b_in, w_out, b_out, *keep):
    hidden = F.gelu(F.linear(x, w_in, b_in))
    return F.linear(hidden * keep[0] if keep else hidden, w_out, b_out)


def _keep_like(x, weight):
    """Factors of hidden features such as dropout draws; none for arguments that are wrong on purpose."""
    if not all(isinstance(y, torch.Tensor) and y.is_floating_point() and y.ndim == 2 for y in (x, weight)):
        return None
    places = torch.arange(x.shape[0] * weight.shape[0], device=x.device).reshape(x.shape[0], weight.shape[0])
    return (places % 3 != 0).to(x.dtype) * 1.5


def _mlp_shapes(rows, d):
    hidden, features = _odd_widths(d)
    return [(rows, d), (hidden, d), (hidden,), (features, hidden), (features,)]


_OPS = [
    *(
        Case(name, lambda n, d, count=count: [(n, d)] * (count + 1), run, plain, (True,) * (count + 1))
        for (name, (run, count)), plain in zip(
            PARTITIONS.items(),
            (_plain_partition, _plain_partition_with_share, _plain_dual, _plain_dual_with_share),
            strict=True,
        )
    ),
    *(
        Case(name, lambda n, d: [(n, d), (n, 1), (n, 1)], run, plain, (True,) * 3, has_temperature=False)
        for (name, run), plain in zip(BOUNDARIES.items(), (_plain_boundary, _plain_boundary_with_share), strict=True)
    ),
    Case(
        "partition_share",
        lambda n, d: [(n, d)],
        lambda z, temperature=1.0: ops.partition_share(z, None, temperature),
        _plain_share,
        (True,),
    ),
    Case("partition_share-dual", lambda n, d: [(n, d)] * 2, ops.partition_share, _plain_dual_share, (True, True)),
    *(_linear(activation) for activation in (None, "relu", "gelu", "silu")),
    Case(
        "grouped_partitioned_linear",
        _grouped_shapes,
        _run_grouped,
        _plain_grouped,
        (True,) * 4 + (False,) * 8,
    ),
    Case(
        "reconstruction",
        _reconstruction_shapes,
        ops.reconstruction,
        _plain_reconstruction,
        (True, True, False, False, False, True),
        has_temperature=False,
    ),
    Case(
        "gated_mixture",
        lambda n, d: [(n, 3), *[(n, d)] * 3],
        lambda gate, *logits: ops.gated_mixture(list(logits), gate),
        _plain_mixture,
        (True,) * 4,
        has_temperature=False,
    ),
    Case(
        "gated_mixture-loss",
        lambda n, d: [(n, 3), *[(n, d)] * 5],
        lambda gate, *logits: ops.gated_mixture_loss(list(logits[:3]), gate, _labels(*logits), logits[3:]),
        lambda *x: _plain_mixture(*x, scored=True),
        (True,) * 6,
        has_temperature=False,
    ),
    _gaussian("gaussian_sample_kl", 2),
    _gaussian("gaussian_sample_kl-prior", 4),
    _gaussian("gaussian_sample_kl-layers", 2, width=3, layers=3),
    _gaussian("gaussian_sample_kl-still", 4, sample=False),
    Case("duc_loss", lambda n, d: [(n, d)], _duc, _plain_duc, (True,)),
    Case(
        "certainty_weighted_logits",
        lambda n, d: [(n, d)] * 3,
        lambda *z, temperature=1.0: ops.certainty_weighted_logits(z, temperature),
        _plain_certainty,
        (True,) * 3,
    ),
    Case("mlp", _mlp_shapes, ops.mlp, _plain_mlp, (True,) + (False,) * 4, has_temperature=False),
    Case(
        "mlp-dropout",
        _mlp_shapes,
        lambda *x: ops.mlp(*x, _keep_like(x[0], x[1])),
        lambda *x: _plain_mlp(*x, _keep_like(x[0], x[1])),
        (True,) + (False,) * 4,
        has_temperature=False,
    ),
    Case("info_nce", lambda n, d: [(n, d), (n, d)], ops.info_nce, _plain_info_nce, (True, True)),
    Case("info_nce-stacked", lambda n, d: [(n, 4, d)] * 2, ops.info_nce, _plain_stacked_info_nce, (True, True)),
]


def interpret_triton() -> None:
    """Under triton's interpreter its kernels take CPU tensors, which no user's call gets to do."""
    for op, implementations in selection._implementations.items():
        for kernel in list(implementations.get("triton", {}).values()):
            backends.register(
                op, "triton", kernel.load, devices=("cpu",), dtypes=tuple(kernel.dtypes), refuse=kernel.refuse
            )
    # nor is anything for a CPU's cache kept
    sys.modules["pgm_fast.ops.duc_loss"]._KEPT_PRODUCTS.clear()


if os.environ.get("TRITON_INTERPRET") == "1":
    interpret_triton()


DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _on_every_backend(case: Case, device: str) -> list[Case]:
    op = case.name.partition("-")[0]
    usable = [name for name, reason in backends.implementations(device)[op].items() if reason is None]
    return [replace(case, backend=name, device=device) for name in usable]


CASES = [variant for device in DEVICES for case in _OPS for variant in _on_every_backend(case, device)]


def boundary_call(op: str, rows: int, d: int, dtype, b_dtype, width: float, floor: float, detached: bool, seed: int):
    """A function of tensors, and tensors whose boundaries lie within a row and a little outside of it."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, d, generator=generator).to(dtype)
    places = [(1.4 * torch.rand(rows, 1, generator=generator) - 0.2).to(b_dtype) for _ in range(2)]
    return partial(BOUNDARIES[op], width=width, floor=floor, detach_gates=detached), [h, *places]


def outputs(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def forward_and_gradients(function, tensors, seed: int = 1, **kwargs):
    """Outputs and the gradients of a fixed random projection of them, with respect to every tensor; 0 where there is
    none. Tensors are handed over where they lie: what is odd about an address stays so."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    result = outputs(function(*leaves, **kwargs))
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in result]
    scalar = sum((x.double() * direction.double()).sum() for x, direction in zip(result, directions, strict=True))
    gradients = torch.autograd.grad(scalar, leaves, materialize_grads=True)
    return [x.detach() for x in result], list(gradients)


TEMPERATURES = (0.5, math.pi)
