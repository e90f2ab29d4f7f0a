"""Each learner reads its own part only."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64

from pgm_fast.errors import ConfigError
from pgm_fast.nn import ModalPartitioner, UniPairedLearners

GATES = ("single", "dual", "sigmoid", "fixed", "none")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("uni", "paired"), [(True, True), (True, False), (False, True)])
def test_features_are_two_layers_on_the_part(gate, uni, paired):
    torch.manual_seed(0)
    partitioner = ModalPartitioner(8, gate).double()
    learners = UniPairedLearners(8, 5, uni=uni, paired=paired).eval().double()
    h = torch.randn(4, 8, dtype=torch.float64)
    z = partitioner.logits(h)
    f_uni, f_paired = learners(h, z, partitioner)
    assert (f_uni is not None) == uni and (f_paired is not None) == paired
    with_shares = learners(h, z, partitioner, return_shares=True)
    for a, b in zip(with_shares, (f_uni, f_paired, partitioner.shares_of(h, z)), strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)
    part_uni, part_paired = partitioner.split(h, z)
    if uni:
        first = learners.split.uni if paired else learners.first
        torch.testing.assert_close(
            f_uni, learners.uni_norm(learners.uni(torch.nn.functional.gelu(first(part_uni)))), rtol=FP64, atol=FP64
        )
        torch.testing.assert_close(f_uni, learners.uni_alone(h, z, partitioner), rtol=FP64, atol=FP64)
    if paired:
        first = learners.split.paired if uni else learners.first
        torch.testing.assert_close(
            f_paired,
            learners.paired_norm(learners.paired(torch.nn.functional.gelu(first(part_paired)))),
            rtol=FP64,
            atol=FP64,
        )


def test_fixed_gate_isolates_the_learners():
    torch.manual_seed(0)
    partitioner, learners = ModalPartitioner(8, "fixed"), UniPairedLearners(8, 5)
    h = torch.randn(4, 8, requires_grad=True)
    f_uni, f_paired = learners(h, None, partitioner)
    assert not torch.autograd.grad(f_uni.sum(), h)[0][:, 4:].any()
    assert not torch.autograd.grad(f_paired.sum(), h)[0][:, :4].any()


def test_one_learner_must_remain():
    with pytest.raises(ConfigError, match="keep at least one"):
        UniPairedLearners(8, 5, uni=False, paired=False)
