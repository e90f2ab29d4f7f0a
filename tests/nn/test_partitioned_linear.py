"""The fused split projections equal a partition followed by two linear layers."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64

from pgm_fast.errors import ConfigError
from pgm_fast.nn import ModalPartitioner, PartitionedLinear


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_and_separate_forms_agree_in_value_and_gradient(activation, bias):
    torch.manual_seed(0)
    partitioner = ModalPartitioner(8, "single", temperature=0.5, chunk=2).double()
    layer = PartitionedLinear(8, 5, 3, bias=bias, activation=activation, temperature=0.5).double()
    h = torch.randn(4, 3, 8, dtype=torch.float64, requires_grad=True)
    inputs = [h, *partitioner.parameters(), *layer.parameters()]
    z = partitioner.logits(h)
    fused = layer(h, z)
    separate = layer.from_parts(*partitioner.split(h, z))
    assert fused[0].shape == (4, 3, 5) and fused[1].shape == (4, 3, 3)
    weights = [torch.randn_like(x) for x in fused]
    grads = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(pair, weights, strict=True)), inputs, retain_graph=True)
        for pair in (fused, separate)
    ]
    torch.testing.assert_close(fused, separate, rtol=FP64, atol=FP64)
    torch.testing.assert_close(grads[0], grads[1], rtol=FP64, atol=FP64)


def test_unknown_activation_is_named():
    with pytest.raises(ConfigError, match="'tanh'.*relu"):
        PartitionedLinear(4, 2, 2, activation="tanh")
