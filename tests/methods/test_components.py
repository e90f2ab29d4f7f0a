"""What the methods share: encoders by modality, rows from steps, one form of head."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64
from torch import nn

from pgm_fast.errors import ConfigError
from pgm_fast.methods import ModelConfig, build
from pgm_fast.methods.baselines import BaselineConfig
from pgm_fast.methods.components import Head, build_encoders, encode, fuse_only
from pgm_fast.nn import GRUEncoder, MLPEncoder, TransformerEncoder, parameter_parts
from pgm_fast.settings import check_settings


@pytest.mark.parametrize(
    ("name", "sequence"),
    [("auto", GRUEncoder), ("mlp", MLPEncoder), ("gru", GRUEncoder), ("transformer", TransformerEncoder)],
)
def test_one_name_serves_sequences_and_vectors_take_the_mlp(make_batch, name, sequence):
    spec, _ = make_batch(sequences=["text"])
    encoders = build_encoders(spec, ModelConfig(encoder=name), None)
    assert isinstance(encoders["text"], sequence) and isinstance(encoders["audio"], MLPEncoder)
    assert set(parameter_parts(encoders).values()) == {(m, "encoder") for m in spec.modalities}


def test_steps_become_rows(make_batch):
    spec, batch = make_batch(per_step=True, rows=5)
    model = ModelConfig(dim=6, hidden=8, normalize=False)
    encoders = build_encoders(spec, model, None).double().eval()
    rows = encode(encoders, batch, spec, model)
    length = batch.lengths["text"]
    grid = encoders["text"](batch.inputs["text"], length)
    expected = torch.cat([grid[i, : int(n)] for i, n in enumerate(length)])
    assert torch.equal(rows["text"], expected)


def test_absent_rows_are_zero(make_batch):
    spec, batch = make_batch(missing=["audio"])
    batch.inputs["audio"] = batch.inputs["audio"] + 5
    model = ModelConfig(dim=6, hidden=8)
    rows = encode(build_encoders(spec, model, None).double(), batch, spec, model)
    absent = ~batch.presence["audio"]
    assert not rows["audio"][absent].any() and rows["audio"][~absent].any() and rows["text"].all()


@pytest.mark.parametrize(
    ("task", "wanted", "normalized"),
    [("classification", None, True), ("regression", None, False), ("regression", True, True)],
)
def test_normalized_representations_have_zero_mean_and_unit_variance(make_batch, task, wanted, normalized):
    spec, batch = make_batch(task)
    model = ModelConfig(dim=6, hidden=8, dropout=0.0, normalize=wanted)
    encoders = build_encoders(spec, model, None).double()
    for m, h in encode(encoders, batch, spec, model).items():
        plain = encoders[m](batch.inputs[m])
        centred = plain - plain.mean(1, keepdim=True)
        expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() if normalized else plain
        torch.testing.assert_close(h, expected, rtol=FP64, atol=FP64)


class Doubling(nn.Module):
    """A user's encoder: sees lengths for sequences only."""

    def __init__(self, width, dim):
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.seen = None

    def forward(self, x, lengths=None):
        self.seen = lengths
        return self.linear(x if lengths is None else x.sum(1))


def test_a_users_encoder_replaces_the_built_in_one(make_batch):
    spec, batch = make_batch(sequences=["text"])
    own = {"text": Doubling(5, 6), "audio": Doubling(3, 6)}
    method = build("joint", spec, ModelConfig(dim=6, hidden=8), BaselineConfig(), own).double()
    method(batch).losses["total"].backward()
    assert method.encoders["text"] is own["text"] and own["text"].linear.weight.grad.any()
    assert own["text"].seen is batch.lengths["text"] and own["audio"].seen is None
    assert parameter_parts(method)["encoders.text.linear.weight"] == ("text", "encoder")


def test_an_encoder_of_another_width_is_named(make_batch):
    spec, batch = make_batch()
    method = build("joint", spec, ModelConfig(dim=6), BaselineConfig(), {"audio": Doubling(3, 7)}).double()
    with pytest.raises(ConfigError, match=r"encoder of audio returned shape \[6, 7\].*\[6, 6\]"):
        method(batch)


def test_encoders_for_unknown_modalities_are_named(make_batch):
    spec, _ = make_batch()
    with pytest.raises(ConfigError, match=r"'adio' \(did you mean audio\?\)"):
        build_encoders(spec, ModelConfig(), {"adio": nn.Linear(3, 64)})


def test_a_sequence_encoder_for_vectors_only_is_refused(make_batch):
    spec, _ = make_batch()
    with pytest.raises(ConfigError, match="model.encoder is gru, which reads sequences"):
        build_encoders(spec, ModelConfig(encoder="gru"), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "model.dim=0 is not allowed; it takes a number of at least 1"),
        ({"hidden": -1}, "model.hidden=-1"),
        ({"heads": 0}, "model.heads=0"),
        ({"layers": -1}, "model.layers=-1"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature=0.0"),
        ({"encoder": "tranformer"}, "'tranformer'.*did you mean transformer"),
    ],
)
def test_wrong_sizes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(ModelConfig(**change), "model")


def test_every_head_is_one_hidden_layer_of_the_same_width():
    small, large = Head(4, 3, ModelConfig(hidden=7), "a"), Head(40, 3, ModelConfig(hidden=7), "a")
    assert [m.out_features for m in small if isinstance(m, nn.Linear)] == [7, 3]
    assert [m.out_features for m in large if isinstance(m, nn.Linear)] == [7, 3]


def test_fusing_one_modality_zeroes_the_others():
    x = {"a": torch.ones(2, 3), "b": torch.ones(2, 2)}
    assert fuse_only(x, "b").tolist() == [[0, 0, 0, 1, 1]] * 2
