"""What is computed again is computed as the first time, and buffers move once."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pgm_fast.nn.recompute import recomputed


def test_gradients_and_buffers_are_those_of_a_plain_pass():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3))
    again = copy.deepcopy(plain)
    x = torch.randn(8, 4)
    calls = []
    again[0].register_forward_hook(lambda *_: calls.append(1))
    outputs = []
    for run in (lambda: plain(x), lambda: recomputed(again, x)):
        torch.manual_seed(1)
        outputs.append(run())
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs) and len(calls) == 2
    for (name, a), (_, b) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), (_, b) in zip(plain.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(a, b), name
