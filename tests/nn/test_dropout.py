"""Dropout with masks of its own: the right rate, the exact mean, and torch's own wherever it does not draw."""

import pytest
import torch
from tolerances import FP32, FP64, frequency
from torch import nn

from pgm_fast.nn import MLP, Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_values(p, dtype):
    torch.manual_seed(0)
    layer, rows = Dropout(p), 400
    masks = torch.stack([layer(torch.ones(rows, 64, dtype=dtype)) for _ in range(4)])
    kept = round(2**16 * (1 - p)) / 2**16
    assert set(masks.unique().tolist()) == {0.0, torch.tensor(1 / kept, dtype=dtype).item()}
    share = (masks > 0).double().mean().item()
    assert abs(share - kept) < frequency(kept, masks.numel())


def test_numbers_of_a_draw_are_independent():
    """Four numbers come of one draw of 64 bits: neighbours agree as often as any two do."""
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(1000, 64)) > 0).view(-1, 4)
    for distance in (1, 2, 3):
        agree = (kept[:, 0] == kept[:, distance]).double().mean().item()
        assert abs(agree - 0.5) < frequency(0.5, len(kept))


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7, 5), (2, 3, 5)])
def test_shapes_and_gradient(shape):
    torch.manual_seed(2)
    x = torch.randn(shape, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert y.shape == x.shape
    torch.testing.assert_close(y.detach(), x.detach() * x.grad, rtol=FP32, atol=0)


@pytest.mark.parametrize(
    "x",
    [torch.ones(2**17 + 1), torch.ones(64, 8, dtype=torch.bfloat16)],
    ids=["many numbers", "16 bits"],
)
def test_elsewhere_it_is_torchs_own(x):
    torch.manual_seed(3)
    found = Dropout(0.4)(x)
    torch.manual_seed(3)
    assert torch.equal(found, nn.Dropout(0.4)(x))


def test_evaluation_and_seed():
    x, layer = torch.randn(8, 16), Dropout(0.5)
    torch.manual_seed(4)
    first = layer(x)
    torch.manual_seed(4)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)


def test_vmap_draws_as_torchs_own():
    x, layer = torch.ones(3, 64), Dropout(0.5)
    rows = torch.func.vmap(layer, randomness="different")(x)
    assert len({tuple(row) for row in rows.tolist()}) == 3


def test_one_op_and_layer_by_layer_draw_the_same():
    net, x = MLP(12, 16, 4, dropout=0.5).double(), torch.randn(9, 12, dtype=torch.float64)
    torch.manual_seed(5)
    together = net(x)
    torch.manual_seed(5)
    apart = nn.Sequential(*net)(x)
    torch.testing.assert_close(together, apart, rtol=FP64, atol=FP64)
