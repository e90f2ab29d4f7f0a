"""The partitioner's gates keep the identities that their formulas promise."""

from __future__ import annotations

import pytest
import torch
from module_cases import awaken
from tolerances import DIFFERENT, FP64, FRESH_GATE_12, SPLIT_12_FP64

from pgm_fast import ops
from pgm_fast.errors import ConfigError
from pgm_fast.nn import ModalPartitioner
from pgm_fast.nn.partitioner import GATES


def partitioner(gate, **kwargs):
    torch.manual_seed(0)
    return ModalPartitioner(12, gate, **kwargs).double()


def representation(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gate", ["single", "sigmoid", "fixed"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_exhaustive_gates_lose_nothing(gate, chunk):
    h = representation(5, 2, 12)
    uni, paired = partitioner(gate, chunk=chunk)(h)
    torch.testing.assert_close(uni + paired, h, rtol=SPLIT_12_FP64, atol=0)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_that_is_learned_refuses_to_go_without_its_logits(gate):
    h, module = representation(5, 12), partitioner(gate)
    if gate in ("fixed", "none"):
        assert torch.equal(module.shares_of(h, None), module.split(h, None, return_shares=True)[-1])
        return
    for call in (module.split, module.shares_of):
        with pytest.raises(ValueError, match=f"{gate} gate takes logits, got None"):
            call(h, None)


def test_single_gate_ends_paired():
    h = representation(5, 12)
    uni, paired = partitioner("single")(h)
    torch.testing.assert_close(paired[:, -1], h[:, -1], rtol=FP64, atol=FP64)
    assert not uni[:, -1].any()
    assert uni[:, 0].abs().min() > 0


def test_dual_gate_gives_both_learners_what_both_gates_let_through():
    h = representation(5, 12)
    module = partitioner("dual", temperature=0.7)
    z_uni, z_paired = module.logits(h).chunk(2, -1)
    e = 1 - torch.softmax(z_uni / 0.7, -1).cumsum(-1)
    r = torch.softmax(z_paired / 0.7, -1).cumsum(-1)
    uni, paired = module(h)
    torch.testing.assert_close(uni, e * h, rtol=FP64, atol=FP64)
    torch.testing.assert_close(paired, r * h, rtol=FP64, atol=FP64)
    shares = module.shares(h)
    torch.testing.assert_close(shares[..., 2], (e * r).mean(-1), rtol=FP64, atol=FP64)
    torch.testing.assert_close(shares.sum(-1), torch.ones(5, dtype=torch.float64), rtol=FP64, atol=FP64)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_boundaries_are_where_the_parts_end(temperature):
    h, module = representation(5, 12), awaken(partitioner("boundary", temperature=temperature))
    b_uni, b_paired = (0.5 + 1.3 * (torch.sigmoid(module.logits(h)) - 0.5)).unbind(-1)
    x, width = (torch.arange(12, dtype=torch.float64) + 0.5) / 12, 0.12 * temperature**0.5

    def cumsoftmax(centre):
        return torch.softmax(-(x - centre[:, None]).square() / (2 * width**2), -1).cumsum(-1)

    e, r = 1 - cumsoftmax(b_uni), cumsoftmax(1 - b_paired)
    uni, paired, shares = module.split(h, module.logits(h), return_shares=True)
    torch.testing.assert_close(uni, 0.3 * h + 0.7 * e * h, rtol=FP64, atol=FP64)
    torch.testing.assert_close(paired, 0.3 * h + 0.7 * r * h, rtol=FP64, atol=FP64)
    masses = [part.mean(-1) for part in (e * (1 - r), r * (1 - e), e * r, (1 - e) * (1 - r))]
    torch.testing.assert_close(shares, torch.stack(masses, -1), rtol=FP64, atol=FP64)


def test_fresh_boundaries_are_wide_open():
    shares = ModalPartitioner(64, "boundary").shares(torch.randn(5, 64))
    assert shares[..., 2].min() > 0.8


def test_no_gate_gives_the_whole_representation_to_both():
    h = representation(3, 12)
    uni, paired = partitioner("none")(h)
    assert torch.equal(uni, h) and torch.equal(paired, h)
    assert torch.equal(partitioner("none").shares(h), torch.ones(3, 2, dtype=torch.float64))


def test_fixed_gate_halves():
    h = representation(3, 12)
    uni, paired = partitioner("fixed")(h)
    assert torch.equal(uni[:, :6], h[:, :6]) and torch.equal(paired[:, 6:], h[:, 6:])
    assert not uni[:, 6:].any() and not paired[:, :6].any()


@pytest.mark.parametrize("gate", ["single", "sigmoid", "fixed", "dual"])
def test_shares_are_the_mass_that_a_row_of_ones_would_split_into(gate):
    module, h = partitioner(gate, chunk=2), representation(4, 12)
    uni, paired = module.split(torch.ones_like(h), module.logits(h))
    shares = module.shares(h)
    if gate == "dual":
        shares = torch.stack((shares[..., 0] + shares[..., 2], shares[..., 1] + shares[..., 2]), -1)
    torch.testing.assert_close(shares, torch.stack((uni.mean(-1), paired.mean(-1)), -1), rtol=FP64, atol=FP64)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("chunk", [1, 3])
def test_shares_of_the_pass_that_splits_are_the_same_and_train_the_gate_alike(gate, chunk):
    module, h = partitioner(gate, chunk=1 if gate == "boundary" else chunk), representation(4, 2, 12)
    z = module.logits(h)
    uni, paired, shares = module.split(h, z, return_shares=True)
    for a, b in zip((uni, paired, shares), (*module.split(h, z), module.shares_of(h, z)), strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)
    if z is not None:
        direction = representation(*shares.shape)
        both = [torch.autograd.grad((x * direction).sum(), z)[0] for x in (shares, module.shares_of(h, z))]
        torch.testing.assert_close(*both, rtol=FP64, atol=FP64)


def test_a_fresh_single_gate_splits_in_the_middle():
    h = representation(200, 12)
    assert abs(partitioner("single").shares(h)[..., 1].mean() - 0.5) < FRESH_GATE_12


def test_chunked_gate_moves_neighbours_together():
    h = torch.ones(4, 12, dtype=torch.float64)
    _, paired = partitioner("single", chunk=4)(h)
    groups = paired.view(4, 3, 4)
    assert torch.equal(groups, groups[..., :1].expand_as(groups))


def test_context_moves_the_gate_and_its_absence_is_zeros():
    module, h = partitioner("single", condition_on_others=True), representation(4, 12)
    context = representation(4, 12) + 1
    assert not torch.allclose(module.shares(h, context), module.shares(h), rtol=0, atol=DIFFERENT)
    assert torch.equal(module.shares(h, torch.zeros_like(h)), module.shares(h))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.works("AMP", "layers")
def test_empty_batch_and_half_precision_under_autocast(gate):
    module = ModalPartitioner(12, gate)
    uni, paired = module(torch.zeros(0, 12))
    assert uni.shape == paired.shape == (0, 12)
    assert module.shares(torch.zeros(0, 12)).shape == (0, 4 if gate in ("boundary", "dual") else 2)
    with torch.autocast("cpu", torch.bfloat16):
        uni, paired = module(torch.randn(3, 12, dtype=torch.bfloat16))
    assert uni.dtype == paired.dtype == torch.bfloat16


def test_module_agrees_with_the_op():
    module, h = partitioner("single", temperature=2.0), representation(4, 12)
    for mine, op in zip(module(h), ops.partition(h, module.logits(h), 2.0), strict=True):
        assert torch.equal(mine, op)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gate": "singel"}, "'singel'.*single, dual"),
        ({"gate": "single", "chunk": 5}, "chunk is 5.*12"),
        ({"gate": "boundary", "chunk": 2}, "chunk is 2, must be 1 with the boundary gate"),
        ({"gate": "single", "chunk": 0}, "chunk is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        ModalPartitioner(12, **kwargs)
