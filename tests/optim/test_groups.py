"""multi_rate_groups: every parameter once, at its own rate, and no silent default."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP32
from torch import nn

from pgm_fast.errors import ConfigError
from pgm_fast.nn import SHARED, PgMBlock, mark_part
from pgm_fast.optim import multi_rate_groups

ALL = {"encoder": 1.0, "partitioner": 1.0, "uni": 1.0, "paired": 1.0, "decoder": 1.0, "head": 1.0}


def model():
    torch.manual_seed(0)
    encoders = nn.ModuleDict({m: mark_part(nn.Linear(3, 4), m, "encoder") for m in ("text", "audio")})
    return nn.ModuleDict(
        {
            "encoders": encoders,
            "block": PgMBlock({"text": 4, "audio": 4}),
            "head": mark_part(nn.Linear(8, 2), SHARED, "head"),
        }
    )


def rates_of(groups):
    return {group["name"]: group["lr"] for group in groups}


def test_every_parameter_is_in_exactly_one_group_in_a_fixed_order():
    module = model()
    groups = multi_rate_groups(module, 0.1, {"*": ALL})
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())
    parts = ("partitioner", "uni", "paired", "decoder")
    assert set(rates_of(groups)) == {"shared.head"} | {
        f"{m}.{p}" for m in ("text", "audio") for p in ("encoder", *parts)
    }
    again = multi_rate_groups(model(), 0.1, {"*": ALL})
    assert [g["name"] for g in groups] == [g["name"] for g in again]
    assert groups[0]["name"] == "text.encoder" and set(groups[0]) == {"name", "lr", "params"}


def test_exact_modality_beats_star_part_by_part():
    rates = rates_of(multi_rate_groups(model(), 0.1, {"*": ALL, "text": {"uni": 2.0, "encoder": 0.0}}))
    assert rates["text.uni"] == 0.2 and rates["audio.uni"] == 0.1
    assert rates["text.encoder"] == 0.0 and rates["text.paired"] == 0.1


def test_parts_really_move_at_their_rates():
    module = model()
    rates = {"*": ALL, "text": {"uni": 0.0, "paired": 0.5}, "audio": {"decoder": 3.0}}
    groups = multi_rate_groups(module, 0.1, rates)
    before = [[p.detach().clone() for p in group["params"]] for group in groups]
    for group in groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    torch.optim.SGD(groups, lr=0.1).step()
    for group, old in zip(groups, before, strict=True):
        modality, part = group["name"].split(".")
        multiplier = rates.get(modality, {}).get(part, 1.0)
        for p, o in zip(group["params"], old, strict=True):
            torch.testing.assert_close(o - p, torch.full_like(p, 0.1 * multiplier), rtol=0, atol=FP32)


def test_shared_parameters_appear_once_and_frozen_ones_not_at_all():
    module = model()
    module["encoders"]["audio"].weight = module["encoders"]["text"].weight
    module["head"].requires_grad_(False)
    rates = {"*": {k: v for k, v in ALL.items() if k != "head"}}
    groups = {g["name"]: g["params"] for g in multi_rate_groups(module, 0.1, rates)}
    assert len(groups["text.encoder"]) == 2 and len(groups["audio.encoder"]) == 1
    assert "shared.head" not in groups


def test_default_serves_what_no_entry_names():
    rates = rates_of(multi_rate_groups(model(), 0.1, {"text": {"uni": 2.0}}, default=1.0))
    assert rates.pop("text.uni") == 0.2
    assert set(rates.values()) == {0.1}


def test_a_part_of_ones_own_has_a_rate_like_any_other():
    module = nn.ModuleDict({"known": model(), "fusion": mark_part(nn.Linear(2, 2), SHARED, "fusion")})
    rates = rates_of(multi_rate_groups(module, 0.1, {"*": {"fusion": 3.0}}, default=1.0))
    assert rates.pop("shared.fusion") == pytest.approx(0.3, rel=FP32, abs=0) and set(rates.values()) == {0.1}


def without(part):
    return {k: v for k, v in ALL.items() if k != part}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"*": without("paired")}, r"no entry for text.paired \(6 parameters\)"),
        ({"*": ALL, "texd": {"uni": 1.0}}, r"'texd', which is no modality here \(did you mean text\?\)"),
        ({"*": {**ALL, "pared": 1.0}}, r"'pared' \(did you mean paired\?\)"),
        ({"*": ALL, "shared": {"uni": 1.0}}, r"rate shared.uni sets the learning rate of no parameter"),
        (
            {"*": ALL, "text": {"uni": 1.0}, "audio": {"uni": 1.0}},
            r"rate \*.uni sets the learning rate of no parameter",
        ),
        ({"*": {**ALL, "uni": -1.0}}, r"rate \*.uni is -1.0"),
        ({"*": {**ALL, "uni": float("nan")}}, r"rate \*.uni is nan"),
    ],
)
def test_unmatched_parameters_and_unused_rates_are_errors(rates, message):
    with pytest.raises(ConfigError, match=message):
        multi_rate_groups(model(), 0.1, rates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.Linear(2, 2).parameters()}, "^model is a generator, must be the torch.nn.Module"),
        ({"rates": None}, "^rates is None, must be a mapping such as .*encoder"),
        ({"rates": [0.5]}, "^rates is a list, must be a mapping"),
        ({"rates": {"text": 0.5}}, "^the entry of 'text' in rates is 0.5, must be a mapping such as {'encoder': 0.1}"),
        ({"rates": {"*": {**ALL, "uni": "1"}}}, r"^rate \*.uni is '1', must be a finite number of at least 0"),
        ({"base_lr": "1e-3"}, "^base_lr is '1e-3', must be a finite number of at least 0"),
        ({"base_lr": -1}, "^base_lr is -1, must be"),
        ({"base_lr": float("nan")}, "^base_lr is nan, must be"),
        ({"default": "1"}, "^default is '1', must be a finite number of at least 0, or None"),
        ({"default": -1.0}, "^default is -1.0, must be"),
    ],
)
def test_what_is_no_rate_is_refused_by_name(arguments, message):
    with pytest.raises(ConfigError, match=message):
        multi_rate_groups(**{"model": model(), "base_lr": 0.1, "rates": {"*": ALL}, **arguments})


def test_an_unmarked_module_is_named_with_the_cure():
    module = model()
    module["extra"] = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"extra.weight belongs to no modality: .*mark_part"):
        multi_rate_groups(module, 0.1, {"*": ALL})


def test_what_is_no_matrix_goes_without_weight_decay_and_all_else_stays():
    module = model()
    plain, split = multi_rate_groups(module, 0.1, {"*": ALL}), multi_rate_groups(module, 0.1, {"*": ALL}, no_decay=True)
    for group in plain:
        parts = [found for found in split if found["name"] in (group["name"], group["name"] + ".no_decay")]
        assert {found["lr"] for found in parts} == {group["lr"]}
        assert {id(p) for found in parts for p in found["params"]} == {id(p) for p in group["params"]}
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(split, weight_decay=0.5).step()
    unchanged = {name for name, p in module.named_parameters() if torch.equal(p, before[name])}
    of_norms = {
        f"{name}.{key}"
        for name, m in module.named_modules()
        if isinstance(m, nn.LayerNorm)
        for key in ("weight", "bias")
    }
    zero = {name for name, value in before.items() if not value.any()}
    assert unchanged - zero == {name for name in before if name.endswith("bias")} - zero | of_norms - zero
