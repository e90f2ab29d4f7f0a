"""The words of the noise are those that the authors of Philox published, and those of a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from noise import normals, words
from tolerances import FP64

from pgm_fast.ops.philox import draw_seed, normal, philox4x32

# the answers that Random123, the authors' library, ships with
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    def tensors(numbers):
        return tuple(torch.tensor([x]) for x in numbers)

    assert tuple(x.item() for x in philox4x32(tensors(counter), tensors(key))) == answer
    assert tuple(int(x) for x in words(counter, key)) == answer


@pytest.mark.parametrize("seed", [0, 1, 2**61 + 12345])
@pytest.mark.parametrize(("rows", "d"), [(3, 1), (2, 64), (5, 200), (0, 9)])
def test_normals_equal_the_second_implementation(seed, rows, d):
    got = normal(torch.tensor([seed]), rows, d, torch.float64).numpy()
    np.testing.assert_allclose(got, normals(seed, rows, d), rtol=FP64, atol=FP64)


def test_a_graph_that_could_only_repeat_one_seed_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="generator is on cpu, but a graph is being captured on cuda"):
        draw_seed(torch.device("cuda"), torch.Generator())
    assert draw_seed(torch.device("cpu"), torch.Generator(), 3).shape == (3,)
