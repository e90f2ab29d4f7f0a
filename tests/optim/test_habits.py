"""Whatever is done to torch's optimizers between steps may be done to these, to the same end."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tolerances import FP64
from torch import nn

from pgm_fast.nn import MLP, mark_part
from pgm_fast.optim import MultiRateAdamW, MultiRateSGD, multi_rate_groups

PAIRS = [(MultiRateAdamW, torch.optim.AdamW, {}), (MultiRateSGD, torch.optim.SGD, {"momentum": 0.9})]


def _append(optimizer, spare):
    optimizer.param_groups[0]["params"].append(spare)


def _remove(optimizer, spare):
    optimizer.param_groups[0]["params"].pop()


def _replace(optimizer, spare):
    optimizer.param_groups[1]["params"][0] = spare


def _new_list(optimizer, spare):
    optimizer.param_groups[0]["params"] = [*optimizer.param_groups[0]["params"], spare]


def _drop_a_group(optimizer, spare):
    optimizer.param_groups.pop()


def _other_groups(optimizer, spare):
    optimizer.param_groups = [{**group, "lr": 0.02} for group in optimizer.param_groups]


def _new_state(optimizer, spare):
    optimizer.state = type(optimizer.state)(dict)


def _clear_state(optimizer, spare):
    optimizer.state.clear()


def _numpy_rate(optimizer, spare):
    for group in optimizer.param_groups:
        group["lr"] = np.float64(0.03)


def _betas_or_momentum(optimizer, spare):
    for group in optimizer.param_groups:
        group.update({"betas": (0.5, 0.75)} if "betas" in group else {"momentum": 0.5})


def _freeze(optimizer, spare):
    optimizer.param_groups[0]["params"][0].requires_grad_(False).grad = None


CHANGES = [
    _append,
    _remove,
    _replace,
    _new_list,
    _drop_a_group,
    _other_groups,
    _new_state,
    _clear_state,
    _numpy_rate,
    _betas_or_momentum,
    _freeze,
]


def moved(make, options, change, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    *owned, spare = (nn.Parameter(torch.randn(4, dtype=dtype, generator=generator)) for _ in range(5))
    optimizer = make([{"params": owned[:2]}, {"params": owned[2:], "lr": 0.05}], lr=0.1, **options)
    for step in range(6):
        for p in (*owned, spare):
            p.grad = torch.randn(4, dtype=dtype, generator=generator) if p.requires_grad else None
        if step == 3:
            change(optimizer, spare)
        optimizer.step()
    return torch.stack([p.detach() for p in (*owned, spare)])


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_steps_means_what_it_means_to_torch(change, ours, theirs, options, way):
    found, expected = (moved(make, options, change) for make in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=FP64, atol=FP64)


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
@pytest.mark.parametrize("first", [0.3, 1.0])
def test_gradients_may_come_and_go_at_random(first, ours, theirs, options, way):
    def run(make):
        draw, generator = random.Random(1), torch.Generator().manual_seed(0)
        owned = [nn.Parameter(torch.randn(3, dtype=torch.float64, generator=generator)) for _ in range(8)]
        optimizer = make([{"params": owned[k::2]} for k in range(2)], lr=0.1, **options)
        for step in range(12):
            for p in owned:
                here = draw.random() < (0.5 if step else first)
                gradient = torch.randn(3, dtype=torch.float64, generator=generator)
                p.grad = gradient if here else None
            optimizer.step()
        return torch.stack([p.detach() for p in owned]), [float(optimizer.state[p].get("step", 0)) for p in owned]

    (found, counts), (expected, their_counts) = run(ours), run(theirs)
    torch.testing.assert_close(found, expected, rtol=FP64, atol=FP64)
    assert ours is MultiRateSGD or counts == their_counts


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_changes_nothing(dtype, way):
    expected = moved(MultiRateAdamW, {}, lambda *_: None, torch.float32)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(moved(MultiRateAdamW, {}, lambda *_: None, torch.float32), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_default_device_changes_nothing(way):
    """Tables that belong to the host are made there, wherever new tensors go otherwise."""
    owned = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizer = MultiRateAdamW(owned, lr=0.1, max_norm=1.0)
    with torch.device("meta"):
        for p in owned:
            p.grad = torch.ones(4, device="cpu")
        optimizer.step()
        assert optimizer.total_norm().device.type == "cpu"
    assert owned[0][0].item() < 1.0


def test_groups_with_names_take_up_their_own_state_in_any_order():
    def build(order):
        torch.manual_seed(0)
        model = nn.ModuleDict({name: mark_part(nn.Linear(4, 4), name, "encoder") for name in order})
        known = {"text": {"encoder": 0.1}, "audio": {"encoder": 0.001}}
        rates = {name: known[name] for name in order}
        return model, MultiRateAdamW(multi_rate_groups(model, 1.0, rates))

    model, optimizer = build(("text", "audio"))
    (model["text"](torch.ones(1, 4)).sum() + 7 * model["audio"](torch.ones(1, 4)).sum()).backward()
    optimizer.step()
    other, loaded = build(("audio", "text"))
    loaded.load_state_dict(optimizer.state_dict())
    assert [(g["name"], g["lr"]) for g in loaded.param_groups] == [("audio.encoder", 0.001), ("text.encoder", 0.1)]
    for name in other:
        a, b = optimizer.state[model[name].weight], loaded.state[other[name].weight]
        assert torch.equal(a["exp_avg"], b["exp_avg"])
    _, third = build(("audio",))
    with pytest.raises(ValueError, match="has the param groups text.encoder, audio.encoder, this optimizer has audio"):
        third.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_groups_hold_the_keys_of_torch(ours, theirs, options):
    keys = [set(make([nn.Parameter(torch.ones(2))], **options).param_groups[0]) for make in (ours, theirs)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS)
def test_the_arguments_of_torch_are_taken(ours, theirs, options):
    for name in ("foreach", "fused", "capturable"):
        if name != "capturable" or ours is MultiRateAdamW:
            assert ours([nn.Parameter(torch.ones(2))], **{name: True}).param_groups[0][name] is True
    with pytest.raises(ValueError, match="differentiable is True, must be False"):
        ours([nn.Parameter(torch.ones(2))], differentiable=True)


@pytest.mark.works("PEFT", "optimizers")
def test_marks_reach_what_peft_puts_around_a_layer():
    peft = pytest.importorskip("peft", reason="pip install 'pgm-fast[integrations]'")
    model = nn.ModuleDict({"text": nn.ModuleDict({"head": mark_part(MLP(4, 4, 4), "text", "head")})})
    mark_part(model["text"]["head"][0], part="uni")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "3"]))
    names = {group["name"] for group in multi_rate_groups(tuned, 1.0, {}, default=1.0)}
    assert names == {"text.uni", "text.head"}


@pytest.mark.parametrize(
    ("clipped_before", "max_norm", "warns"),
    [(1.0, 1.0, True), (1.0, 5.0, True), (1.0, None, False), (None, 1.0, False)],
)
def test_clipping_twice_is_said_once(clipped_before, max_norm, warns, recwarn):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    optimizer = MultiRateAdamW(layer.parameters(), max_norm=max_norm)
    for _ in range(6):
        optimizer.zero_grad()
        layer(torch.randn(4, 8)).square().sum().backward()
        if clipped_before is not None:
            torch.nn.utils.clip_grad_norm_(layer.parameters(), clipped_before)
        optimizer.step()
    said = [str(w.message) for w in recwarn if "Clip in one place" in str(w.message)]
    assert len(said) == warns and all("norm 1 in each" in message for message in said)


def test_one_gradient_over_and_over_is_not_taken_for_clipping_twice(recwarn):
    layer = nn.Linear(8, 8)
    optimizer = MultiRateAdamW(layer.parameters(), max_norm=1.0)
    layer(torch.ones(4, 8)).sum().backward()
    for _ in range(6):
        optimizer.step()
    assert not [w for w in recwarn if "Clip in one place" in str(w.message)]
