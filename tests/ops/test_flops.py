"""torch's FLOP counter sees the products inside of the ops."""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, outputs
from torch.utils.flop_counter import FlopCounterMode

import pgm_fast
from pgm_fast.nn import PgMBlock

# the products of their forward pass are made again in backward, not kept
MADE_AGAIN = ("info_nce", "info_nce-stacked")


def _counted(function, case) -> tuple[int, int]:
    """Of the forward pass, and of both."""
    leaves = [x.requires_grad_() for x in case.tensors(16, 12)]
    with FlopCounterMode(display=False) as counter:
        result = outputs(function(*leaves))
        forward = counter.get_total_flops()
        sum(x.sum() for x in result).backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_op_counts_as_its_plain_formula(case):
    forward, both = _counted(case.plain, case)
    with pgm_fast.backend(case.backend):
        assert _counted(case.run, case)[1] == both + (forward if case.name in MADE_AGAIN else 0)


def test_a_block_counts_the_same_for_every_row():
    """Whether its modules are called one by one or, for few rows, as one op."""
    block = PgMBlock({"text": 8, "sound": 8}, align_temperature=None)
    counts = {}
    for rows in (10, 1000):
        with FlopCounterMode(display=False) as counter:
            made, losses = block({m: torch.ones(rows, 8, requires_grad=True) for m in ("text", "sound")})
            (sum(x.sum() for x in made.values()) + sum(losses.values())).backward()
        counts[rows] = counter.get_total_flops()
    assert counts[1000] == 100 * counts[10] > 0
