from __future__ import annotations

import torch
from tolerances import FP64, SCAN_FP32, steps

from pgm_fast.ops import partition, partition_dual, partition_share


def test_masses_sum_to_one_in_every_row():
    for z_paired in (None, torch.randn(7, 5, 33)):
        share = partition_share(torch.randn(7, 5, 33), z_paired)
        assert share.shape == (7, 5, 2 if z_paired is None else 4)
        torch.testing.assert_close(share.sum(-1), torch.ones(7, 5), rtol=0, atol=SCAN_FP32)


def test_shares_are_what_the_partitions_leave_of_ones():
    ones, z_uni, z_paired = torch.ones(6, 11).double(), torch.randn(6, 11).double(), torch.randn(6, 11).double()
    single = torch.stack([part.mean(-1) for part in partition(ones, z_uni)], -1)
    dual = torch.stack([part.mean(-1) for part in partition_dual(ones, z_uni, z_paired)], -1)
    torch.testing.assert_close(partition_share(z_uni), single, rtol=FP64, atol=FP64)
    torch.testing.assert_close(partition_share(z_uni, z_paired)[:, :3], dual, rtol=FP64, atol=FP64)


def test_flat_gates_have_the_stated_shares():
    """1/2, 1/2 for the single gate and 1/3, 1/3, 1/6, 1/6 for the dual one, up to the half step at the ends."""
    d = 256
    flat = torch.zeros(1, d, dtype=torch.float64)
    single = torch.tensor([1 / 2, 1 / 2], dtype=torch.float64)
    dual = torch.tensor([1 / 3, 1 / 3, 1 / 6, 1 / 6], dtype=torch.float64)
    torch.testing.assert_close(partition_share(flat)[0], single, rtol=0, atol=steps(d))
    torch.testing.assert_close(partition_share(flat, flat)[0], dual, rtol=0, atol=steps(d))


def test_a_share_can_be_trained_to_a_target():
    z = torch.zeros(1, 16, requires_grad=True)
    for _ in range(200):
        loss = (partition_share(z)[0, 1] - 0.8).square()
        (gradient,) = torch.autograd.grad(loss, z)
        z = (z - 20 * gradient).detach().requires_grad_()
    assert abs(partition_share(z)[0, 1].item() - 0.8) < SCAN_FP32
