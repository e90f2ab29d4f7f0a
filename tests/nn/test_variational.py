"""Variational layers side by side are the same layers apart; the gate shuts what is not usable."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64

from pgm_fast.errors import ConfigError
from pgm_fast.nn import InteractionGate, VariationalLayer
from pgm_fast.ops import gated_mixture


def test_layers_that_share_an_input_are_one_product_with_the_numbers_of_each():
    both = VariationalLayer(5, 3, layers=2).double()
    apart = [VariationalLayer(5, 3).double() for _ in range(2)]
    means, logvars = both.linear.weight.chunk(2)[0].chunk(2), both.linear.weight.chunk(2)[1].chunk(2)
    biases = both.linear.bias.chunk(4)
    with torch.no_grad():
        for k, layer in enumerate(apart):
            layer.linear.weight.copy_(torch.cat([means[k], logvars[k]]))
            layer.linear.bias.copy_(torch.cat([biases[k], biases[2 + k]]))
    x = torch.randn(7, 5, dtype=torch.float64)
    joined, (mus, log_variances) = both(x, sample=False), both.moments(x)
    for k, layer in enumerate(apart):
        one = layer(x, sample=False)
        torch.testing.assert_close(joined.z[:, 3 * k : 3 * k + 3], one.mu, rtol=FP64, atol=FP64)
        torch.testing.assert_close(joined.kl[:, k], one.kl[:, 0], rtol=FP64, atol=FP64)
        torch.testing.assert_close(mus[k], one.mu, rtol=FP64, atol=FP64)
        torch.testing.assert_close(log_variances[k], one.logvar, rtol=FP64, atol=FP64)


def test_it_samples_in_training_only_and_leading_dimensions_stay():
    layer = VariationalLayer(5, 3, layers=2)
    x = torch.randn(2, 4, 5)
    q = layer(x)
    assert q.z.shape == q.mu.shape == (2, 4, 6) and q.kl.shape == (2, 4, 2) and not torch.equal(q.z, q.mu)
    assert torch.equal(layer.eval()(x).z, q.mu) and not torch.equal(layer(x, sample=True).z, q.mu)


def test_names_and_shapes_of_parameters_are_fixed():
    shapes = {name: tuple(value.shape) for name, value in VariationalLayer(5, 3, layers=2).state_dict().items()}
    assert shapes == {"linear.weight": (12, 5), "linear.bias": (12,)}
    shapes = {name: tuple(value.shape) for name, value in InteractionGate(4, 3, hidden=6).state_dict().items()}
    assert shapes == {"hidden.weight": (6, 12), "hidden.bias": (6,), "out.weight": (3, 6), "out.bias": (3,)}
    with pytest.raises(ConfigError, match="layers is 0, must be a whole number of at least 1"):
        VariationalLayer(5, 3, layers=0)


def test_what_earlier_versions_saved_is_loaded():
    layer = VariationalLayer(5, 3, layers=2)
    weight, bias = torch.randn(12, 5), torch.randn(12)
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert torch.equal(layer.linear.weight, weight) and torch.equal(layer.linear.bias, bias)


def test_what_is_not_usable_gets_no_weight_and_the_rest_keep_their_proportions():
    gate = InteractionGate(4, 3).double()
    components = [torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]
    usable = torch.tensor([True, False, True, False, True])
    predictions = [torch.randn(5, 2, dtype=torch.float64) for _ in range(3)]
    free = gated_mixture(predictions, gate(components))[1]
    weights = gated_mixture(predictions, gate(components, [None, usable, None]))[1]
    torch.testing.assert_close(weights[usable], free[usable], rtol=FP64, atol=FP64)
    assert not weights[~usable, 1].any()
    ratio, free_ratio = weights[:, 0] / weights[:, 2], free[:, 0] / free[:, 2]
    torch.testing.assert_close(ratio, free_ratio, rtol=FP64, atol=FP64)
