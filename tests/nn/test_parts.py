"""Marks say which modality and part every parameter belongs to."""

from __future__ import annotations

import pytest
from torch import nn

from pgm_fast.errors import ConfigError
from pgm_fast.nn import PartitionedLinear, mark_part, modality_dict, parameter_parts


def test_marks_are_inherited_and_the_nearest_wins_for_modality_and_part_separately():
    inner = mark_part(nn.Linear(2, 2), part="head")
    model = mark_part(nn.Sequential(nn.Linear(2, 2), nn.Sequential(inner)), "text", "encoder")
    outer = nn.ModuleDict({"a": model, "b": nn.Linear(2, 2)})
    parts = parameter_parts(outer)
    assert parts["a.0.weight"] == ("text", "encoder")
    assert parts["a.1.0.bias"] == ("text", "head")
    assert parts["b.weight"] == (None, None)


def test_marking_twice_keeps_what_the_second_mark_leaves_open():
    layer = mark_part(nn.Linear(2, 2, bias=False), part="uni")
    mark_part(layer, modality="audio")
    assert parameter_parts(layer) == {"weight": ("audio", "uni")}


def test_modules_of_this_package_know_their_parts():
    parts = parameter_parts(mark_part(PartitionedLinear(4, 3, 2), "text"))
    assert parts == {
        "uni.weight": ("text", "uni"),
        "uni.bias": ("text", "uni"),
        "paired.weight": ("text", "paired"),
        "paired.bias": ("text", "paired"),
    }


def test_a_shared_parameter_appears_once_where_first_met():
    shared = nn.Linear(2, 2, bias=False)
    model = nn.ModuleDict(
        {"a": mark_part(nn.Sequential(shared), "a", "encoder"), "b": mark_part(nn.Sequential(shared), "b", "encoder")}
    )
    assert parameter_parts(model) == {"a.0.weight": ("a", "encoder")}


def test_a_part_may_have_a_name_of_ones_own_unless_it_is_nearly_another():
    assert parameter_parts(mark_part(nn.Linear(1, 1, bias=False), "shared", "fusion")) == {
        "weight": ("shared", "fusion")
    }
    for wrong, message in (
        ("encodr", "nearly 'encoder'.*encoder, partitioner"),
        ("my part", "'my part'; must be one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            mark_part(nn.Linear(1, 1), "text", wrong)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training"])
def test_modality_names_that_no_module_can_have_are_refused(name):
    with pytest.raises(ConfigError, match="rename it"):
        modality_dict({name: nn.Linear(1, 1)})
