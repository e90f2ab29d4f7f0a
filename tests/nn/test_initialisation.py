"""Every module can be made anywhere, without memory, and begun again: what big models and torch's own recipes do."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from sharded import second_of_two, shard
from torch import nn
from torch.nn.utils import skip_init

from pgm_fast import nn as pgm_nn
from pgm_fast.nn.resnet import ResNetEncoder

DIMS = {"text": 6, "audio": 4}
MODULES = {
    "Calibration": (["a", "b"], "regression", 3),
    "GRUEncoder": (5, 4),
    "IdentityLinear": (6,),
    "InteractionGate": (4, 3),
    "MLP": (5, 6, 4),
    "MLPEncoder": (5, 4),
    "ModalPartitioner": (6,),
    "PairedInteraction": (2, 8),
    "PartitionedLinear": (6, 4, 4),
    "PgMBlock": (DIMS,),
    "QuietLinear": (6, 4),
    "ResidualLearners": (6, 4),
    "TransformerEncoder": (5, 4),
    "UniPairedDecoder": (6, 4, 4),
    "UniPairedLearners": (6, 4),
    "VariationalLayer": (6, 4),
}
WITHOUT_TENSORS = {"Dropout"}
CASES = [(getattr(pgm_nn, name), args) for name, args in MODULES.items()]


def test_no_module_is_left_out():
    classes = {name for name in pgm_nn.__all__ if inspect.isclass(getattr(pgm_nn, name))}
    assert {name for name in classes if issubclass(getattr(pgm_nn, name), nn.Module)} == set(MODULES) | WITHOUT_TENSORS


def begin_again(module):
    """The recipe of torch's FSDP2 for a model on the meta device, in memory that holds anything."""
    module.to_empty(device="cpu")
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.fill_(torch.nan)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


@pytest.mark.parametrize(("kind", "args"), CASES, ids=MODULES)
@pytest.mark.works("meta device", "layers")
def test_from_the_meta_device_and_the_same_seed_it_begins_with_the_same_numbers(kind, args):
    torch.manual_seed(0)
    built = kind(*args).state_dict()
    begun = kind(*args, device="meta")
    assert all(t.is_meta for t in [*begun.parameters(), *begun.buffers()])
    torch.manual_seed(0)
    begin_again(begun)
    for name, value in begun.state_dict().items():
        assert torch.equal(value, built[name]), name


@pytest.mark.parametrize(("kind", "args"), CASES, ids=MODULES)
def test_so_does_a_shard_of_it(kind, args):
    torch.manual_seed(0)
    built, other = (dict(kind(*args).named_parameters()) for _ in range(2))
    with second_of_two() as mesh:
        begun = shard(kind(*args, device="meta"), None, mesh)
        begin_again(begun)
        for name, parameter in begun.named_parameters():
            found, whole = parameter.to_local(), built[name]
            second = whole.tensor_split([(len(whole) + 1) // 2])[1]
            assert found.shape == second.shape and found.isfinite().all(), name
            if torch.equal(whole, other[name]):
                assert torch.equal(found, second), name


@pytest.mark.parametrize(("kind", "args"), CASES, ids=MODULES)
def test_the_dtype_is_as_asked(kind, args):
    tensors = [*kind(*args, dtype=torch.float64).parameters(), *kind(*args, dtype=torch.float64).buffers()]
    assert {t.dtype for t in tensors} == {torch.float64}


@pytest.mark.parametrize(("kind", "args"), CASES, ids=MODULES)
def test_skip_init_takes_it(kind, args):
    module = skip_init(kind, *args)
    assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])


@pytest.mark.parametrize(("kind", "args"), CASES, ids=MODULES)
@pytest.mark.works("deepcopy, torch.save", "layers")
def test_it_can_be_saved_whole_and_copied(kind, args):
    module = kind(*args)
    for again in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        again.load_state_dict(module.state_dict())
        assert repr(again) == repr(module)


def test_a_picture_encoder_takes_a_device():
    pytest.importorskip("transformers")
    encoder = ResNetEncoder("spectrogram", 8, 4, device="meta")
    assert all(p.is_meta for p in encoder.parameters())


def test_whoever_owns_parameters_can_begin_again():
    for kind, args in CASES:
        for name, part in kind(*args).named_modules():
            if list(part.parameters(recurse=False)):
                assert hasattr(part, "reset_parameters"), (kind, name)


def test_a_quiet_layer_begins_as_a_constant():
    layer = pgm_nn.QuietLinear(4, 3, start=2.0)
    assert torch.equal(layer(torch.randn(5, 4)), torch.full((5, 3), 2.0))
    assert isinstance(layer, nn.Linear)
