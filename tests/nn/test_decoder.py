"""The decoder is linear in both features, and its loss is the weighted squared error."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64

from pgm_fast.errors import ConfigError
from pgm_fast.nn import UniPairedDecoder


@pytest.mark.parametrize("widths", [(3, 4), (3, 0), (0, 4)])
@pytest.mark.parametrize("weighted", [True, False])
def test_decodes_and_scores_what_is_there(widths, weighted):
    torch.manual_seed(0)
    decoder = UniPairedDecoder(6, *widths).double()
    uni, paired = (torch.randn(5, 2, w, dtype=torch.float64) if w else None for w in widths)
    target = torch.randn(5, 2, 6, dtype=torch.float64)
    weight = torch.rand(5, 2, dtype=torch.float64) if weighted else None
    decoded, loss = decoder(uni, paired, target, weight)
    expected = decoder.uni.bias if paired is None else decoder.paired.bias
    if uni is not None:
        expected = expected + uni @ decoder.uni.weight.T
    if paired is not None:
        expected = expected + paired @ decoder.paired.weight.T
    torch.testing.assert_close(decoded, expected, rtol=FP64, atol=FP64)
    rows = (expected - target).square().mean(-1)
    torch.testing.assert_close(loss, (rows * weight).sum() if weighted else rows.mean(), rtol=FP64, atol=FP64)


@pytest.mark.parametrize("widths", [(3, 4), (3, 0)])
def test_empty_batch_has_zero_loss_and_gradients(widths):
    decoder = UniPairedDecoder(6, *widths)
    uni, paired = (torch.zeros(0, w) if w else None for w in widths)
    decoded, loss = decoder(uni, paired, torch.zeros(0, 6))
    loss.backward()
    assert decoded.shape == (0, 6) and loss == 0
    assert all(not p.grad.any() for p in decoder.parameters())


def test_needs_some_feature():
    with pytest.raises(ConfigError, match="both widths are 0"):
        UniPairedDecoder(6, 0, 0)


@pytest.mark.parametrize(("widths", "bias"), [((3, 4), "paired"), ((3, 0), "uni"), ((0, 4), "paired")])
def test_what_earlier_versions_saved_is_loaded(widths, bias):
    decoder = UniPairedDecoder(6, *widths)
    state = {name: value.clone() for name, value in decoder.state_dict().items()}
    before = {f"{side}_weight": state[f"{side}.weight"] + 1 for side in ("uni", "paired") if f"{side}.weight" in state}
    decoder.load_state_dict({**before, "bias": state[f"{bias}.bias"] + 1})
    assert all(torch.equal(now, state[name] + 1) for name, now in decoder.state_dict().items())
