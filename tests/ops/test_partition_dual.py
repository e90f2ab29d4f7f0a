from __future__ import annotations

import torch
from tolerances import FP64, SCAN_FP32

from pgm_fast.ops import partition_dual


def test_opposite_ends_meet_in_the_shared_part():
    """Both gates open: all is shared but the last entry, where e is always 0. Both closed: only that one is taken."""
    h, low, high = torch.ones(1, 6), torch.zeros(1, 6), torch.zeros(1, 6)
    low[0, 0] = high[0, 5] = 100.0
    opened = torch.stack([part.sum() for part in partition_dual(h, high, low)])
    torch.testing.assert_close(opened, torch.tensor([0.0, 1.0, 5.0]), rtol=0, atol=SCAN_FP32)
    closed = torch.stack([part.sum() for part in partition_dual(h, low, high)])
    torch.testing.assert_close(closed, torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=SCAN_FP32)


def test_learner_inputs_are_each_gate_times_h():
    h, z_uni, z_paired = (torch.randn(4, 9, dtype=torch.float64) for _ in range(3))
    uni_only, paired_only, shared = partition_dual(h, z_uni, z_paired, temperature=2.0)
    e = 1 - torch.softmax(z_uni / 2, -1).cumsum(-1)
    r = torch.softmax(z_paired / 2, -1).cumsum(-1)
    torch.testing.assert_close(uni_only + shared, e * h, rtol=FP64, atol=FP64)
    torch.testing.assert_close(paired_only + shared, r * h, rtol=FP64, atol=FP64)
