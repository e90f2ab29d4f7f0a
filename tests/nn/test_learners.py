"""Each learner reads its own part only."""

from __future__ import annotations

import pytest
import torch
from module_cases import awaken
from tolerances import FP64

from pgm_fast.errors import ConfigError
from pgm_fast.nn import ResidualLearners, UniPairedLearners


def part(seed):
    return torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("uni", "paired"), [(True, True), (True, False), (False, True)])
def test_features_are_two_layers_on_the_part(uni, paired):
    torch.manual_seed(0)
    learners = UniPairedLearners(8, 5, uni=uni, paired=paired).eval().double()
    parts = {"uni": part(1), "paired": part(2)}
    found = dict(zip(parts, learners(**parts), strict=True))
    for side, wanted in (("uni", uni), ("paired", paired)):
        assert (found[side] is not None) == wanted
        if wanted:
            first = learners.split[side] if uni and paired else learners.first
            second, norm = getattr(learners, side), getattr(learners, f"{side}_norm")
            expected = norm(second(torch.nn.functional.gelu(first(parts[side]))))
            torch.testing.assert_close(found[side], expected, rtol=FP64, atol=FP64)


@pytest.mark.parametrize(("uni", "paired"), [(True, True), (True, False), (False, True)])
def test_residual_learners_start_as_nothing_and_add_two_layers(uni, paired):
    torch.manual_seed(0)
    learners = ResidualLearners(8, 5, uni=uni, paired=paired).eval().double()
    parts = {"uni": part(1), "paired": part(2)}
    start = dict(zip(parts, learners(**parts), strict=True))
    found = dict(zip(parts, awaken(learners)(**parts), strict=True))
    for side, wanted in (("uni", uni), ("paired", paired)):
        assert (found[side] is not None) == wanted
        if wanted:
            assert torch.equal(start[side], parts[side])
            mlp, norm = getattr(learners, side), getattr(learners, f"{side}_norm")
            expected = parts[side] + mlp[3](torch.nn.functional.gelu(mlp[0](norm(parts[side]))))
            torch.testing.assert_close(found[side], expected, rtol=FP64, atol=FP64)


def test_one_learner_must_remain():
    with pytest.raises(ConfigError, match="keep at least one"):
        UniPairedLearners(8, 5, uni=False, paired=False)
