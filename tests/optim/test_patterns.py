"""pattern_groups: every parameter once, at the rate of its pattern and of its layer."""

from __future__ import annotations

import pytest
import torch
from tolerances import FP64
from torch import nn

from pgm_fast.errors import ConfigError
from pgm_fast.optim import MultiRateAdamW, pattern_groups


def layer():
    return nn.ModuleDict({"norm": nn.LayerNorm(4), "linear": nn.Linear(4, 4)})


def encoder(depth, name):
    return nn.ModuleDict({"embeddings": nn.Embedding(5, 4), name: nn.ModuleList([layer() for _ in range(depth)])})


def model():
    return nn.ModuleDict({"text": encoder(3, "layer"), "image": encoder(2, "blocks"), "head": nn.Linear(4, 2)})


def settings(module, groups):
    """Name of a parameter -> (lr, weight_decay); every one is in one group."""
    names = {id(p): name for name, p in module.named_parameters()}
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_the_first_pattern_that_matches_sets_both_factors_and_vectors_do_not_decay():
    module = model()
    patterns = {r"^text\..*linear": {"lr": 0.5, "weight_decay": 2.0}, r"^text\.": {"lr": 0.25}}
    found = settings(module, pattern_groups(module, 0.1, 0.01, patterns))
    for name, (lr, decay) in found.items():
        factor, times = (0.5, 2.0) if "linear" in name and "text" in name else (0.25 if "text" in name else 1.0, 1.0)
        assert lr == 0.1 * factor
        assert decay == (0.01 * times if name.endswith("weight") and "norm" not in name else 0.0)
    assert {decay for _, decay in settings(module, pattern_groups(module, 1, 0.01, no_decay=False)).values()} == {0.01}


def test_rates_fall_from_layer_to_layer_in_every_stack_by_its_own_depth():
    module = model()
    found = settings(module, pattern_groups(module, 1.0, 0.0, {"^image": {"lr": 0.1}}, layer_decay=0.5))
    for stack, name, depth, factor in (("text", "layer", 3, 1.0), ("image", "blocks", 2, 0.1)):
        for k in range(depth):
            want = pytest.approx(factor * 0.5 ** (depth - k), rel=FP64, abs=0)
            assert all(lr == want for key, (lr, _) in found.items() if key.startswith(f"{stack}.{name}.{k}."))
        assert found[f"{stack}.embeddings.weight"][0] == pytest.approx(factor * 0.5 ** (depth + 1), rel=FP64, abs=0)
    assert found["head.weight"][0] == 1.0


def test_wrappers_of_torch_leave_names_as_they_were_and_any_optimizer_takes_the_groups():
    module = model()
    patterns = {r"^text\.layer\.0\.": {"lr": 0.5}}
    want = [(g["name"], g["lr"], len(g["params"])) for g in pattern_groups(module, 0.1, 0.01, patterns)]
    module["text"]["layer"][0] = torch.compile(module["text"]["layer"][0], backend="eager")
    groups = pattern_groups(torch.compile(module, backend="eager"), 0.1, 0.01, patterns)
    assert [(g["name"], g["lr"], len(g["params"])) for g in groups] == want
    for kind in (torch.optim.AdamW, MultiRateAdamW):
        assert [g["lr"] for g in kind(groups).param_groups] == [lr for _, lr, _ in want]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": [nn.Linear(2, 2)]}, "^model is a list, must be the torch.nn.Module"),
        ({"patterns": {"(": {}}}, r"'\(' is no regular expression"),
        (
            {"patterns": {"^vision": {"lr": 1.0}}},
            r"'\^vision' takes no trainable parameter: it matches none; .*text.emb",
        ),
        (
            {"patterns": {"text": {}, "text.layer": {}}},
            r"'text.layer' takes no .*\(text.layer.0.norm.weight, ...\) ear",
        ),
        ({"patterns": {"text": {"rate": 1.0}}}, "factor for 'rate'; allowed: lr, weight_decay"),
        ({"patterns": {"text": {"lr": -1.0}}}, "lr of pattern 'text' is -1.0"),
        ({"patterns": ["text"]}, "patterns is a list, must be a mapping"),
        ({"patterns": {"text": 0.1}}, "entry of pattern 'text' is 0.1, must be a mapping"),
        ({"layer_decay": float("nan")}, "layer_decay is nan"),
        ({"layer_decay": 0.5, "layers": r"stage\.(\d+)"}, r"finds no layer: .*matches none of text"),
        ({"layer_decay": 0.5, "layers": r"layer\.\d+"}, r"must have a group \(\\d\+\)"),
    ],
)
def test_what_does_nothing_is_an_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        pattern_groups(**{"model": model(), "lr": 0.1, "weight_decay": 0.01, **arguments})
