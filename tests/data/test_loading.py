"""What a training loop may rely on: every row once over all ranks, weights that make losses means, exact resumption."""

from __future__ import annotations

import threading
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import frequency

from pgm_fast.data import FeatureSet, Loader, Normalizer, loading, preparation
from pgm_fast.errors import ConfigError

EPS = np.finfo(np.float32).eps


def feature_set(
    seed: int, rows: int, per_step: bool = False, missing: bool = False, task: str = "classification"
) -> FeatureSet:
    """Vectors and sequences whose values encode their sample and step, so that any mix-up shows."""
    rng = np.random.default_rng(seed)
    steps = 5
    lengths = rng.integers(1, steps + 1, rows)
    number = np.arange(rows, dtype=np.float32)
    sequence = np.stack([number[:, None] + np.arange(steps) / 10, rng.standard_normal((rows, steps))], axis=-1)
    modalities = {"s": sequence.astype(np.float32)}
    modalities["v"] = (
        sequence[:, :, ::-1].astype(np.float64) if per_step else np.stack([number, rng.standard_normal(rows)], axis=1)
    )
    presence = None
    if missing:
        presence = rng.random((rows, 2)) < 0.6
        presence[np.arange(rows), rng.integers(0, 2, rows)] = True
        for m, array in enumerate(modalities.values()):
            array[~presence[:, m]] = np.nan
    shape = (rows, steps) if per_step else (rows,)
    labels = {
        "classification": rng.integers(0, 3, shape),
        "multilabel": rng.integers(0, 2, (*shape, 4)),
        "regression": rng.standard_normal(shape).astype(np.float32),
        "retrieval": None,
    }[task]
    return FeatureSet(
        name="made",
        modalities=modalities,
        task=task,
        labels=labels,
        split=np.array(["train", "train", "valid", "test"])[rng.integers(0, 4, rows)],
        lengths={"s": np.minimum(lengths + rng.integers(0, 2, rows), steps) if per_step else lengths},
        step_lengths=lengths if per_step else None,
        presence=presence,
        num_classes=3 if task == "classification" else None,
    )


def equal(one, two) -> bool:
    if isinstance(one, dict):
        return list(one) == list(two) and all(equal(one[key], two[key]) for key in one)
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return one == two
    return one.dtype == two.dtype and torch.equal(one, two)


def same(one, two) -> bool:
    return all(equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))


SETS = st.builds(
    feature_set,
    seed=st.integers(0, 99),
    rows=st.integers(1, 40),
    per_step=st.booleans(),
    missing=st.booleans(),
    task=st.sampled_from(["classification", "multilabel", "regression", "retrieval"]),
)
OPTIONS = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 50),
        "seed": st.integers(0, 5),
        "shuffle": st.booleans(),
        "modality_dropout": st.sampled_from([0.0, 0.4, 0.9]),
    }
)


@settings(max_examples=80)
@given(features=SETS, options=OPTIONS, world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_every_row_once_over_all_ranks_and_weights_that_sum_to_the_mean(features, options, world, epoch):
    loaders = [Loader(features, "train", rank=rank, world=world, **options) for rank in range(world)]
    epochs = [list(loader.batches(epoch)) for loader in loaders]
    assert all(len(batches) == len(loader) for batches, loader in zip(epochs, loaders, strict=True))
    seen = []
    for joined in zip(*epochs, strict=True):
        assert len({len(batch.index) for batch in joined}) == 1 and len({len(b.inputs["s"]) for b in joined}) == 1
        index = torch.cat([batch.index for batch in joined])
        weight = torch.cat([batch.weight for batch in joined])
        real = index >= 0
        seen += index[real].tolist()
        assert (weight[~real] == 0).all() and (weight[real] == np.float32(world / int(real.sum()))).all()
        assert abs(weight.sum().item() - world) <= world * EPS * len(index)
        for batch in joined:
            assert set(batch.presence) == set(batch.modality_weight)
        for name in joined[0].presence:
            present = torch.cat([batch.presence[name] for batch in joined])
            part = torch.cat([batch.modality_weight[name] for batch in joined])
            count = (present & real).sum()
            assert (part[~(present & real)] == 0).all()
            assert count == 0 or abs(part.sum().item() - world) <= world * EPS * len(index)
            assert len(part[present & real].unique()) <= 1
    rows = features.rows("train")
    steps = features.step_lengths if features.per_step else np.ones(len(features), int)
    first = np.cumsum(steps) - steps
    assert sorted(seen) == [int(first[row] + step) for row in rows for step in range(steps[row])]
    assert loaders[0].num_rows == len(seen)
    if world == 1 and not options["shuffle"]:
        assert seen == sorted(seen)


@settings(max_examples=60)
@given(features=SETS, options=OPTIONS, world=st.integers(1, 3), resident=st.sampled_from(["always", "never"]))
def test_a_batch_holds_what_the_feature_set_holds(features, options, world, resident):
    for rank in range(world):
        for batch in Loader(features, "train", rank=rank, world=world, resident=resident, **options).batches(1):
            real = batch.index >= 0
            index = batch.index[real].numpy()
            sample, step = features.locate(index)
            if features.labels is None:
                assert batch.labels is None
            else:
                expected = features.labels[sample, step] if features.per_step else features.labels[sample]
                assert batch.labels.dtype is (torch.int64 if features.task == "classification" else torch.float32)
                assert batch.labels.ndim == (1 if features.task == "classification" else 2)
                assert np.array_equal(batch.labels[real].numpy().reshape(expected.shape), expected)
            names = list(features.modalities)
            for name, x in batch.inputs.items():
                source = features.modalities[name]
                assert x.dtype is torch.float32 and torch.isfinite(x).all()
                if x.ndim == 3:
                    lengths = batch.lengths[name]
                    assert lengths.dtype is torch.int64 and lengths.min() >= 1
                    longest = (
                        max(int(value.max()) for value in batch.lengths.values())
                        if features.per_step
                        else int(lengths.max())
                    )
                    assert x.shape[1] == longest
                    assert (x[torch.arange(longest) >= lengths[:, None]] == 0).all()
                rows = x
                if features.per_step:
                    assert (batch.steps < x.shape[0] * x.shape[1]).all() and (batch.steps >= 0).all()
                    rows = x.flatten(0, 1)[batch.steps]
                    expected = source[sample, step]
                elif x.ndim == 3:
                    valid = np.arange(x.shape[1]) < features.lengths[name][sample][:, None]
                    expected = np.where(valid[..., None], source[sample, : x.shape[1]], 0)
                    assert np.array_equal(batch.lengths[name][real].numpy(), features.lengths[name][sample])
                else:
                    expected = source[sample]
                there = np.ones(len(sample), bool) if not batch.presence else batch.presence[name][real].numpy()
                if features.presence is not None:
                    assert not (there & ~features.presence[sample, names.index(name)]).any()
                assert np.array_equal(rows[real].numpy()[there], expected[there].astype(np.float32))
                assert (rows[real].numpy()[~there] == 0).all()
            if batch.presence:
                assert torch.stack(list(batch.presence.values())).any(dim=0).all()


@settings(max_examples=40)
@given(features=SETS, options=OPTIONS, world=st.integers(1, 3), data=st.data())
def test_resuming_gives_the_tail_and_resident_or_not_the_same_bits(features, options, world, data):
    rank = data.draw(st.integers(0, world - 1))
    normalizer = Normalizer.fit(features) if len(features.rows("train")) else None
    common = {"normalizer": normalizer, "rank": rank, "world": world, **options}
    whole = list(Loader(features, "train", resident="always", **common).batches(2))
    start = data.draw(st.integers(0, len(whole)))
    for resident in ("always", "never"):
        tail = list(Loader(features, "train", resident=resident, **common).batches(2, start))
        assert len(tail) == len(whole) - start
        assert all(map(same, tail, whole[start:]))


def gathered(features, world, **options) -> dict[int, tuple]:
    """Row number -> what the row looks like, over all ranks."""
    rows = {}
    for rank in range(world):
        for batch in Loader(features, "train", rank=rank, world=world, **options).batches(0):
            for k, index in enumerate(batch.index.tolist()):
                if index >= 0:
                    rows[index] = tuple(bool(batch.presence[name][k]) for name in batch.inputs)
    return rows


def test_modality_dropout_does_not_depend_on_the_ranks_and_has_its_rate():
    features = feature_set(0, 4000)
    one = gathered(features, 1, batch_size=64, modality_dropout=0.3, shuffle=True)
    assert gathered(features, 3, batch_size=64, modality_dropout=0.3, shuffle=True) == one
    assert gathered(features, 1, batch_size=64, modality_dropout=0.3, shuffle=True, seed=1) != one
    rows_with_one_hidden = 1 - np.array(list(one.values())).all(axis=1).mean()
    rate = 2 * 0.3 - 0.3**2  # either of two modalities; where both would be hidden, one is kept
    assert abs(rows_with_one_hidden - rate) < frequency(rate, len(one))


def test_each_epoch_has_its_own_order_and_unshuffled_ones_the_same():
    features = feature_set(0, 200)
    orders = [
        [b.index.tolist() for b in Loader(features, "train", batch_size=16, shuffle=True).batches(epoch)]
        for epoch in (0, 1)
    ]
    assert orders[0] != orders[1]
    again = Loader(features, "train", batch_size=16, shuffle=True)
    assert [b.index.tolist() for b in again.batches(1)] == orders[1]
    loader = Loader(features, "train", batch_size=16)
    assert all(map(same, loader.batches(0), loader.batches(1)))


def test_nothing_about_presence_where_nothing_can_be_missing():
    features = feature_set(0, 40, missing=True)
    features.presence[features.rows("valid")] = True
    for array in features.modalities.values():
        np.nan_to_num(array, copy=False)
    [valid] = Loader(features, "valid", batch_size=40).batches(0)
    [train] = Loader(features, "train", batch_size=40).batches(0)
    assert valid.presence == {} and valid.modality_weight == {}
    assert set(train.presence) == {"s", "v"}


def test_a_split_that_does_not_fit_half_of_free_memory_is_not_kept(monkeypatch):
    features = feature_set(0, 40)
    loader = Loader(features, "train", batch_size=8)
    need = loader._bytes()
    for free, world, kept in ((2 * need, 1, True), (2 * need - 1, 1, False), (2 * need, 2, False)):
        monkeypatch.setattr(loading, "free_bytes", lambda device, free=free: free)
        assert Loader(features, "train", batch_size=8, world=world).resident is kept
    assert Loader(features, "train", batch_size=8, resident="always").resident


def test_stopping_early_leaves_no_reading_thread_and_errors_arrive(monkeypatch):
    features = feature_set(0, 200)
    before = threading.active_count()
    batches = Loader(features, "train", batch_size=4, resident="never").batches(0)
    next(batches)
    batches.close()
    assert threading.active_count() == before

    def broken(*arguments):
        raise OSError("the disk went away")

    monkeypatch.setattr(preparation, "read_rows", broken)
    with pytest.raises(OSError, match="the disk went away"):
        list(Loader(features, "train", batch_size=4, resident="never").batches(0))
    assert threading.active_count() == before


def test_labels_can_be_left_out_and_an_empty_split_has_no_batches():
    features = feature_set(0, 40)
    assert all(batch.labels is None for batch in Loader(features, "train", batch_size=8, with_labels=False).batches(0))
    features.split[:] = "train"
    empty = Loader(features, "valid", batch_size=8)
    assert len(empty) == 0 and empty.num_rows == 0 and list(empty.batches(0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split 'dev' is not one of train, valid, test"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"modality_dropout": 1.0}, "modality_dropout=1.0"),
        ({"rank": 2, "world": 2}, "rank=2 of world=2"),
        ({"resident": "maybe"}, "resident='maybe'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Loader(feature_set(0, 8), **{"split": "train", "batch_size": 4, **options})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", ["always", "never"])
def test_batches_on_a_cuda_device_are_the_host_s_and_need_no_synchronisation(resident):
    features = feature_set(0, 200, missing=True)
    options = {"batch_size": 16, "shuffle": True, "modality_dropout": 0.3, "normalizer": Normalizer.fit(features)}
    expected = list(Loader(features, "train", **options).batches(0))
    loader = Loader(features, "train", device="cuda", resident=resident, **options)
    list(loader.batches(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(loader.batches(1)) and list(loader.batches(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(same(one, two.to("cpu", non_blocking=False)) for one, two in zip(expected, batches, strict=True))
