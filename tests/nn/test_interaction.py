"""Interaction sees all present modalities together and nothing of the absent ones."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64

from pgm_fast.errors import ConfigError
from pgm_fast.nn import PairedInteraction

KINDS = ("attention", "concat")


def make(kind, modalities=3):
    torch.manual_seed(0)
    return PairedInteraction(modalities, 8, kind, heads=2).double()


@pytest.mark.parametrize("kind", KINDS)
def test_absent_modalities_have_no_influence(kind):
    module = make(kind)
    features = [torch.randn(5, 8, dtype=torch.float64) for _ in range(3)]
    absent = torch.tensor([True, True, False, False, True])
    presence = [torch.ones(5, dtype=torch.bool), ~absent, torch.ones(5, dtype=torch.bool)]
    garbage = features[1].masked_fill(absent.unsqueeze(-1), 1e9)
    out = module([features[0], features[1].masked_fill(absent.unsqueeze(-1), 0.0), features[2]], presence)
    assert torch.equal(module([features[0], garbage, features[2]], presence), out)
    assert not out.view(5, 3, 8)[absent, 1].any()


def test_with_attention_an_absent_token_is_as_if_it_were_not_there():
    features = [torch.randn(5, 8, dtype=torch.float64) for _ in range(3)]
    three, two = make("attention", 3), make("attention", 2)
    here = torch.ones(5, dtype=torch.bool)
    out = three(features, [here, here, ~here]).view(5, 3, 8)[:, :2].flatten(1)
    torch.testing.assert_close(out, two(features[:2]), rtol=FP64, atol=FP64)


def test_attention_carries_information_across_modalities_and_presence_of_all_changes_nothing():
    module = make("attention")
    features = [torch.randn(5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    out = module(features)
    first = out.view(5, 3, 8)[:, 0].square().sum()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(first, features))
    torch.testing.assert_close(module(features, [torch.ones(5, dtype=torch.bool)] * 3), out, rtol=FP64, atol=FP64)


def test_a_row_without_any_modality_stays_finite():
    module = make("attention")
    features = [torch.randn(2, 8, dtype=torch.float64) for _ in range(3)]
    out = module(features, [torch.zeros(2, dtype=torch.bool)] * 3)
    out.sum().backward()
    assert not out.any() and all(torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(0,), (4,), (2, 3)])
def test_any_leading_dimensions(kind, leading):
    assert make(kind)([torch.randn(*leading, 8, dtype=torch.float64)] * 3).shape == (*leading, 24)


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="'mean'.*attention, concat"):
        PairedInteraction(2, 8, "mean")
    with pytest.raises(ConfigError, match="model.heads is 3.*8"):
        PairedInteraction(2, 8, "attention", heads=3)
