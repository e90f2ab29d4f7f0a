"""Encoders: shapes, and padding that never influences a result or a gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import DIFFERENT, FP64

from pgm_fast.errors import ConfigError
from pgm_fast.nn import make_encoder
from pgm_fast.nn.resnet import PICTURES

KINDS = ("mlp", "gru", "transformer")


def encoder(kind, per_step, layers=2):
    torch.manual_seed(0)
    return make_encoder(kind, 3, 6, hidden=8, layers=layers, heads=2, per_step=per_step, dtype=torch.float64)


def result_and_gradients(module, x, lengths, weight):
    out = module(x, lengths)
    if out.dim() == 3:
        valid = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
        out = torch.where(valid.unsqueeze(-1), out, 0.0)[:, : int(lengths.max())]
        weight = weight.unsqueeze(1)
    return out, torch.autograd.grad((out * weight).sum(), list(module.parameters()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_step", [False, True])
@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    extra=st.integers(0, 4),
    garbage=st.sampled_from([0.0, 1e6, float("nan"), float("inf")]),
)
def test_padding_never_matters(kind, per_step, lengths, extra, garbage):
    module = encoder(kind, per_step)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor(lengths)
    x = torch.randn(len(lengths), int(lengths.max()), 3, dtype=torch.float64, generator=generator)
    weight = torch.randn(len(lengths), 6, dtype=torch.float64, generator=generator)
    longer = torch.cat((x, torch.zeros(len(lengths), extra, 3, dtype=torch.float64)), 1)
    beyond = torch.arange(longer.shape[1]) >= lengths.unsqueeze(-1)
    longer[beyond] = garbage
    out, grads = result_and_gradients(module, x.masked_fill(beyond[:, : x.shape[1], None], 0.0), lengths, weight)
    out_longer, grads_longer = result_and_gradients(module, longer, lengths, weight)
    torch.testing.assert_close(out_longer, out, rtol=FP64, atol=FP64)
    torch.testing.assert_close(grads_longer, grads, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_step", [False, True])
def test_a_sample_does_not_depend_on_its_batch(kind, per_step):
    module = encoder(kind, per_step)
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    lengths = torch.tensor([2, 5, 4])
    together = module(x, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = module(x[i : i + 1, :length], lengths[i : i + 1])[0]
        torch.testing.assert_close(together[i, :length] if per_step else together[i], alone, rtol=FP64, atol=FP64)


def picture_encoder(values):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return make_encoder("resnet18", 27, 6, values=values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "per_step"),
    [(k, p) for k in ("gru", "transformer") for p in (False, True)] + [(k, False) for k in PICTURES],
)
def test_one_sequence_needs_no_batch(kind, per_step):
    module = (picture_encoder(kind) if kind in PICTURES else encoder(kind, per_step)).eval()
    x = torch.randn(2, 5, 27 if kind in PICTURES else 3, dtype=torch.float64)
    lengths = torch.tensor([3, 5])
    batch = module(x, lengths)
    for i, length in enumerate(lengths):
        valid = slice(int(length)) if per_step else slice(None)
        torch.testing.assert_close(module(x[i], length)[valid], batch[i][valid], rtol=FP64, atol=FP64)


@pytest.mark.parametrize("kind", KINDS)
def test_full_length_needs_no_lengths_and_all_steps_are_read(kind):
    module = encoder(kind, per_step=False)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(module(x), module(x, torch.tensor([4, 4])), rtol=FP64, atol=FP64)
    assert (torch.autograd.grad(module(x).square().sum(), x)[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_shapes_with_any_depth_and_an_empty_batch(kind, per_step, layers):
    module = encoder(kind, per_step, layers)
    for batch in (0, 1, 2):
        out = module(torch.randn(batch, 4, 3, dtype=torch.float64), torch.full((batch,), 3))
        assert out.shape == ((batch, 4, 6) if per_step else (batch, 6))


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_order_of_steps_matters_to_sequence_encoders(kind):
    module = encoder(kind, per_step=False)
    x = torch.randn(1, 4, 3, dtype=torch.float64)
    assert not torch.allclose(module(x), module(x.flip(1)), rtol=0, atol=DIFFERENT)


def test_vectors_go_through_the_mlp():
    assert encoder("mlp", per_step=False)(torch.randn(5, 3, dtype=torch.float64)).shape == (5, 6)


def test_wrong_kind_and_heads_are_named():
    with pytest.raises(ConfigError, match="'lstm'.*auto, mlp, gru, transformer"):
        make_encoder("lstm", 3, 6)
    with pytest.raises(ConfigError, match="model.heads is 3.*128"):
        make_encoder("transformer", 3, 6, heads=3)


def test_without_projection_resnet_ends_in_its_pooled_features():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    make = {"values": "spectrogram"}
    with pytest.raises(
        ConfigError, match="model.projection=none leaves resnet18's features 512 wide.*set model.dim=512"
    ):
        make_encoder("resnet18", 16, 64, projection=False, **make)
    encoder = make_encoder("resnet18", 16, 512, projection=False, **make).eval()
    assert not any(name.startswith("out") for name, _ in encoder.named_parameters())
    out = encoder(torch.randn(2, 20, 16))
    assert out.shape == (2, 512) and (out >= 0).all() and out.any()
