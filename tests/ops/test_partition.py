from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import FINITE_DIFFERENCE, FP64, SPLIT_SUM

from pgm_fast.ops import partition

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


@settings(deadline=None, max_examples=60)
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
