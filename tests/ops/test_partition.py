from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FINITE_DIFFERENCE, FP64, SPLIT_SUM

import pgm_fast
from pgm_fast import backends
from pgm_fast.ops import partition, partition_dual

BACKENDS = [name for name in ("torch", "native") if backends.implementations()["partition"][name] is None]

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


@settings(max_examples=60)
@given(shape=st.lists(st.integers(0, 4), max_size=3), d=st.integers(1, 33), dtype=dtypes, seed=st.integers(0, 9))
def test_the_two_parts_add_up_to_h(shape, d, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    h, z = (torch.randn(*shape, d, generator=generator).to(dtype) for _ in range(2))
    uni, paired = partition(h, z)
    assert uni.shape == h.shape and uni.dtype == paired.dtype == dtype
    bound = SPLIT_SUM[dtype] * h.double().abs()
    assert ((uni.double() + paired.double() - h.double()).abs() <= bound).all()


def test_features_move_from_uni_to_paired_along_the_dimensions():
    h = torch.ones(3, 16)
    uni, paired = partition(h, torch.randn(3, 16))
    assert (uni.diff() <= 0).all() and (paired.diff() >= 0).all()


def test_a_low_temperature_makes_the_boundary_hard():
    z = torch.zeros(1, 8)
    z[0, 3] = 1.0
    uni, paired = partition(torch.ones(1, 8), z, temperature=1e-3)
    assert uni.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] and paired.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


def test_one_logit_per_chunk_equals_the_expanded_gate():
    h, z = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    uni, paired = partition(h, z)
    gate = torch.softmax(z, -1).cumsum(-1).repeat_interleave(3, -1)
    torch.testing.assert_close(paired, gate * h, rtol=FP64, atol=FP64)
    torch.testing.assert_close(uni, h - gate * h, rtol=FP64, atol=FP64)
    assert torch.autograd.gradcheck(partition, (h.requires_grad_(), z.requires_grad_()), rtol=0, atol=FINITE_DIFFERENCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e39, 1e300])
def test_any_positive_temperature_gives_gates_and_gradients(backend, temperature):
    """Also one that fp32 rounds to nothing, or to infinity: all of the mass at the largest logit, or equal parts."""
    h, z = torch.ones(1, 4, requires_grad=True), torch.tensor([[1.0, 2.0, 0.0, -1.0]], requires_grad=True)
    with pgm_fast.backend(backend):
        results = [partition(h, z, temperature), partition_dual(h, z, z, temperature)]
        directions = torch.arange(4.0)
        grads = [torch.autograd.grad(sum((x * directions).sum() for x in parts[1:]), (h, z)) for parts in results]
    sharp = temperature < 1
    gate = torch.tensor([[0.0, 1.0, 1.0, 1.0] if sharp else [0.25, 0.5, 0.75, 1.0]])
    (uni, paired), (uni_only, paired_only, shared) = results
    complement = 1 - gate
    want = complement, gate, complement * (1 - gate), gate * (1 - complement), complement * gate
    for got, parts in zip((uni, paired, uni_only, paired_only, shared), want, strict=True):
        torch.testing.assert_close(got, parts, rtol=SPLIT_SUM[torch.float32], atol=0)
    for by_h, by_z in grads:
        assert by_h.isfinite().all() and by_z.abs().max() <= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("sparse", ["h", "z"])
def test_a_sparse_argument_is_named_with_the_cure(sparse):
    dense = {"h": torch.ones(3, 4), "z": torch.zeros(3, 4)}
    with pytest.raises(TypeError, match=rf"^{sparse} must be a dense tensor, got torch.sparse_coo; .*to_dense\(\)"):
        partition(**{**dense, sparse: dense[sparse].to_sparse()})
