"""Split projections against the plain formula in fp64: every size class, and every way in which gates are formed.

bf16 is left to the compiled lane: the interpreter multiplies the bit patterns of bf16 as integers.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_cases import forward_and_gradients
from pgm_fast.kernels import partitioned_linear as kernels
from pgm_fast.kernels import products
from tolerances import EPS, NATIVE_TIMES_EPS

import pgm_fast
from pgm_fast import ops

ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@pytest.fixture(autouse=True)
def _triton():
    with pgm_fast.backend("triton"):
        yield


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Tiles of large problems on small ones."""
    if request.param == "large":
        monkeypatch.setattr(kernels, "FILL", 1)
    return request.param


def _tensors(rows, d, chunk, n_u, n_p, dtype=torch.float32):
    shapes = [(rows, d), (rows, d // chunk), (n_u, d), (n_u,), (n_p, d), (n_p,)]
    made = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for i in (2, 4):
        made[i] /= d**0.5
    return [x.to(dtype) for x in made]


def _plain(activation, temperature):
    def run(h, z, w_uni, b_uni, w_paired, b_paired):
        g = torch.softmax(z / temperature, -1).cumsum(-1).repeat_interleave(h.shape[1] // z.shape[1], 1)
        act = ACTIVATIONS[activation]
        return act(F.linear(h - g * h, w_uni, b_uni)), act(F.linear(g * h, w_paired, b_paired))

    return run


def _compare(tensors, activation=None, temperature=0.7):
    got = forward_and_gradients(lambda *x: ops.partitioned_linear(*x, activation, temperature), tensors)
    want = forward_and_gradients(_plain(activation, temperature), [x.double() for x in tensors])
    for a, b in zip(sum(got, []), sum(want, []), strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ("small", torch.float32),
        ("large", torch.float32),
        ("large", torch.float16),
        pytest.param("small", torch.float16, marks=pytest.mark.slow),
    ],
    indirect=["size"],
    ids=str,
)
@pytest.mark.parametrize(
    ("rows", "d", "chunk", "n_u", "n_p"),
    [
        (5, 7, 1, 3, 4),  # less than a tile of anything
        (37, 150, 1, 33, 71),  # several blocks of gates, different widths
        (270, 60, 3, 20, 5),  # chunks across blocks, a split batch
        (9, 140, 70, 6, 270),  # two gates; wide enough for stored gates
        (1, 1, 1, 1, 1),
        (0, 6, 2, 3, 4),
    ],
)
def test_equals_the_plain_formula(size, dtype, rows, d, chunk, n_u, n_p):
    _compare(_tensors(rows, d, chunk, n_u, n_p, dtype))


@pytest.mark.parametrize("activation", ["relu", "gelu", pytest.param("silu", marks=pytest.mark.slow)])
def test_activations(size, activation):
    """With 300 columns, past which the large class stores the gradients behind the activation."""
    _compare(_tensors(20, 50 if size == "small" else 300, 1, 9, 21), activation)


def _by_allow_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True


def _by_precision():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def _by_matmul_precision():
    torch.set_float32_matmul_precision("high")


@pytest.mark.parametrize("setter", [_by_allow_tf32, _by_precision, _by_matmul_precision])
def test_every_way_to_ask_for_tf32_is_heard(setter):
    if setter is _by_precision and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no fp32_precision")
    assert products.dot_precision(torch.float32) == "ieee"
    setter()
    try:
        assert products.dot_precision(torch.float32) == "tf32"
        assert products.dot_precision(torch.bfloat16) == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert products.dot_precision(torch.float32) == "ieee"


def test_products_in_tf32_tiles(size):
    """The interpreter multiplies in fp32 whatever the precision asked for: only the tiles are on trial."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        _compare(_tensors(40, 70, 1, 300, 20), "silu")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_biases_are_optional_and_logits_may_be_of_another_dtype(size):
    h, z, w_uni, b_uni, w_paired, _ = _tensors(6, 40, 1, 5, 7, torch.float16)
    z = z.float().requires_grad_()
    u, p = ops.partitioned_linear(h, z, w_uni, b_uni, w_paired, None)
    uni, paired = _plain(None, 1.0)(*[x.double() for x in (h, z, w_uni, b_uni, w_paired, torch.zeros(7))])
    torch.testing.assert_close(u.double(), uni, rtol=0, atol=NATIVE_TIMES_EPS * EPS[torch.float16])
    torch.testing.assert_close(p.double(), paired, rtol=0, atol=NATIVE_TIMES_EPS * EPS[torch.float16])
    (gradient,) = torch.autograd.grad(u.float().sum() + p.float().sum(), z)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()


@pytest.mark.parametrize("width", [100, 400])
def test_complement_keeps_its_digits_where_the_gate_is_near_one(size, width):
    """The identity as weights shows the gates themselves, at 400 columns the stored ones."""
    z = torch.cat([torch.full((1, 1), 60.0), torch.randn(1, width - 1)], 1)
    u, p = ops.partitioned_linear(torch.ones(1, width), z, torch.eye(width), None, torch.eye(width), None)
    softmax = torch.softmax(z.double(), -1)
    complement = softmax.flip(-1).cumsum(-1).flip(-1)[:, 1:]
    bound = NATIVE_TIMES_EPS * EPS[torch.float32]
    torch.testing.assert_close(u[:, :-1].double(), complement, rtol=bound, atol=0)
    assert u[0, -1] == 0
    torch.testing.assert_close(p.double(), softmax.cumsum(-1), rtol=bound, atol=0)
    rising = z.flip(-1)
    _, p = ops.partitioned_linear(torch.ones(1, width), rising, torch.eye(width), None, torch.eye(width), None)
    torch.testing.assert_close(p.double(), torch.softmax(rising.double(), -1).cumsum(-1), rtol=bound, atol=0)


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_extreme_logits_and_temperatures_stay_finite(temperature):
    h, z = torch.ones(2, 3), torch.tensor([[1e30, -1e30, 0.0], [-1e30, 1e30, 1e30]])
    weights = (torch.ones(2, 3), None, torch.ones(2, 3), None)
    for logits, value in ((z, 1.0), (z * 1e-30, temperature)):
        assert all(x.isfinite().all() for x in ops.partitioned_linear(h, logits, *weights, temperature=value))


def test_nan_stays_in_its_row():
    h, z, *weights = _tensors(3, 70, 1, 4, 5)
    z[1, 69] = float("nan")
    u, p = ops.partitioned_linear(h, z, *weights)
    for x in (u, p):
        assert x[[0, 2]].isfinite().all() and x[1].isnan().all()


def test_what_lies_around_the_tensors_is_neither_read_nor_written(size):
    whole = [torch.full((x.shape[0] + 4, *x.shape[1:]), float("nan")) for x in _tensors(5, 37, 1, 6, 9)]
    inner = [x[2:-2] for x in whole]
    for x in inner:
        x.normal_()
    result, gradients = forward_and_gradients(ops.partitioned_linear, inner)
    assert all(x.isfinite().all() for x in result + gradients)
    assert all(x[:2].isnan().all() and x[-2:].isnan().all() for x in whole)


@pytest.mark.parametrize(
    ("activation", "count"),
    [("relu", 2), (None, 18), *(pytest.param(kind, 3, marks=pytest.mark.slow) for kind in ("gelu", None))],
)
def test_a_group_gives_what_its_problems_give(size, activation, count):
    """18 problems are more than one launch takes; one has no rows, some lack a bias, one is split alone."""
    shapes = [(5, 70, 1, 3, 4), (150, 24, 2, 9, 2), (0, 8, 8, 2, 2), *[(2, 6, 1, 2, 3)] * 15][:count]
    problems = [_tensors(*shape) for shape in shapes]
    problems[0][3] = problems[-1][5] = None
    leaves = [[None if x is None else x.requires_grad_() for x in problem] for problem in problems]
    u, p = ops.grouped_partitioned_linear(*map(list, zip(*leaves, strict=True)), activation, 0.7)
    directions = [(torch.randn_like(a), torch.randn_like(b)) for a, b in zip(u, p, strict=True)]
    inputs = [x for problem in leaves for x in problem if x is not None]
    scalar = sum((a * x).sum() + (b * y).sum() for a, b, (x, y) in zip(u, p, directions, strict=True))
    got = [*u, *p, *torch.autograd.grad(scalar, inputs)]
    alone = [_plain(activation, 0.7)(*[None if x is None else x.double() for x in problem]) for problem in leaves]
    scalar = sum((a * x).sum() + (b * y).sum() for (a, b), (x, y) in zip(alone, directions, strict=True))
    want = [*(a for a, _ in alone), *(b for _, b in alone), *torch.autograd.grad(scalar, inputs)]
    for a, b in zip(got, want, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=NATIVE_TIMES_EPS * EPS[a.dtype] * scale)


def test_logits_of_different_types_are_no_group():
    first, second = _tensors(2, 6, 1, 2, 2), _tensors(2, 6, 1, 2, 2)
    second[1] = second[1].half()
    lists = [list(pair) for pair in zip(first, second, strict=True)]
    with pytest.raises(pgm_fast.PgmFastError, match="does not mix gate logits of torch.float16 and torch.float32"):
        ops.grouped_partitioned_linear(*lists)


def test_splits_cover_every_row_once():
    for rows in range(0, 700, 13):
        for tiles in (1, 5, 200):
            splits, size = products.split_rows(rows, tiles, 32)
            assert (splits - 1) * size < max(rows, 1) <= splits * size
