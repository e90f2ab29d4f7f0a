"""Models trained side by side end as each would alone, with its best weights, and no row meets a model that saw it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import FP64, OPTIMIZER_FP64, TEMPERATURE

from pgm_fast.data import draw
from pgm_fast.errors import DataError
from pgm_fast.interactions.discriminators import Classifiers, fit_temperature
from pgm_fast.interactions.folds import plan
from pgm_fast.interactions.members import Member, Schedule, evaluate, train
from pgm_fast.interactions.vectors import rows_of

SCHEDULE = Schedule(epochs=3, patience=3, batch=8, lr=1e-2, weight_decay=1e-2)


def fitted(members, start, epochs=3):
    """Logits of each member for rows 0 to 9, and its loss, trained from ``start`` (weights of all members) in fp64."""
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    net = Classifiers(len(members), 5, 6, 2, 0.0, torch.Generator().manual_seed(0)).double()
    net.load_state_dict(start)

    def loss(rows):
        return torch.nn.functional.cross_entropy(net(x[rows]).movedim(-1, 1), y[rows], reduction="none")

    schedule = Schedule(epochs, 3, 8, 1e-2, 1e-2)
    best = train(net, loss, members, schedule, torch.Generator().manual_seed(2))
    return evaluate(net, lambda rows: net(x[rows]), [np.arange(10)] * len(members), x.device), best, net


def test_side_by_side_is_as_alone():
    rows = np.arange(40)
    member = Member(rows[16:], rows[8:16], rows[:8])
    start = Classifiers(2, 5, 6, 2, 0.0, torch.Generator().manual_seed(0)).state_dict()
    alone, best, _ = fitted([member], {name: value[:1] for name, value in start.items()})
    # the first member of two draws its first order first; one epoch, so that later orders do not matter
    one, best, _ = fitted([member], {name: value[:1] for name, value in start.items()}, epochs=1)
    two, both, _ = fitted([member, Member(rows[:24], rows[24:32], rows[32:])], start, epochs=1)
    torch.testing.assert_close(two[0], one[0], rtol=FP64, atol=FP64)
    torch.testing.assert_close(both[0], best[0], rtol=FP64, atol=FP64)
    assert not torch.equal(alone[0], one[0])


def test_a_member_keeps_its_best_weights_even_the_first():
    """Stopping rows with the labels turned round: every step makes them worse, so the start is kept."""
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0).long()
    y[:20] = 1 - y[:20]
    net = Classifiers(1, 4, 8, 2, 0.0, torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    member = Member(np.arange(20, 60), np.arange(20), np.arange(0))

    def loss(rows):
        return torch.nn.functional.cross_entropy(net(x[rows]).movedim(-1, 1), y[rows], reduction="none")

    train(net, loss, [member], Schedule(5, 5, 8, 5e-2, 0.0), torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_temperature_mends_overconfidence():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    assert float(fit_temperature(4 * logits, labels)) == pytest.approx(4, rel=TEMPERATURE, abs=0)
    nothing = fit_temperature(5 * torch.randn(4000, 3, generator=generator), labels)
    assert float(nothing) > 16


@pytest.mark.parametrize("split", ["train", "valid", "test", None])
def test_every_wanted_row_is_measured_once_by_a_model_that_has_not_seen_it(split):
    rows = rows_of(draw(n=200).features)
    wanted = np.flatnonzero((rows.split == split) | (split is None))
    members = plan(rows, wanted, np.ones(200, bool), folds=4)
    assert np.array_equal(np.sort(np.concatenate([member.score for member in members])), wanted)
    for member in members:
        seen = np.concatenate([member.fit, member.stop])
        assert len(np.unique(seen)) == len(seen) and not np.isin(member.score, seen).any()
        assert not (rows.split[seen] == "test").any()
        assert {*rows.labels[member.fit]} == {0, 1}


def test_steps_of_a_sequence_stay_together():
    rows = rows_of(draw(n=60).features)
    rows.sample = np.arange(60) // 3
    rows.split = np.repeat(["train"], 60)
    for member in plan(rows, np.arange(60), np.ones(60, bool), folds=5):
        parts = [set(rows.sample[part]) for part in (member.fit, member.stop, member.score)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_too_few_rows_are_refused():
    rows = rows_of(draw(n=12).features)
    usable = np.zeros(12, bool)
    usable[:2] = True
    with pytest.raises(DataError, match="too few rows"):
        plan(rows, np.arange(12), usable, folds=5)


def test_without_patience_a_member_ends_with_its_last_epoch_at_a_rate_that_falls_by_steps():
    """As plain torch trains it: one member, whose batches are the whole of its rows."""
    x, y = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 2
    rows = np.arange(8)
    net = Classifiers(1, 5, 6, 2, 0.0, torch.Generator().manual_seed(0), "relu").double()
    weights = [p.detach().clone().requires_grad_() for pair in zip(net.weights, net.biases, strict=True) for p in pair]

    def loss(numbers):
        return torch.nn.functional.cross_entropy(
            net(x[numbers]).flatten(0, 1), y[numbers].flatten(), reduction="none"
        ).view(numbers.shape)

    schedule = Schedule(epochs=7, patience=None, batch=8, lr=0.3, weight_decay=0.0, step=3)
    train(net, loss, [Member(rows, np.arange(8, 12), np.arange(0))], schedule, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(weights, 0.3)
    for epoch in range(7):
        optimizer.param_groups[0]["lr"] = 0.3 * 0.1 ** (epoch // 3)
        h = x[:8]
        for w, b in zip(weights[0::2], weights[1::2], strict=True):
            h = (h @ w[0] + b[0]) if w is weights[-2] else torch.relu(h @ w[0] + b[0])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(h, y[:8]).backward()
        optimizer.step()
    ours = [p for pair in zip(net.weights, net.biases, strict=True) for p in pair]
    torch.testing.assert_close(ours, weights, rtol=OPTIMIZER_FP64, atol=OPTIMIZER_FP64, check_dtype=False)
