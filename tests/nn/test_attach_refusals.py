"""What does not fit is named: forwards, arguments, masks, targets; and what may be left out."""

from __future__ import annotations

import copy

import pytest
import torch
from attach_models import LABELS, PLACES, Cast, Late, inputs, made, total
from module_cases import awaken
from tolerances import FP64
from torch import nn
from torch.nn.functional import mse_loss

from pgm_fast.errors import ConfigError
from pgm_fast.nn import attach, collect_losses, detach


class Twice(Late):
    def forward(self, text, audio):
        return self.encoders["text"](text) + self.encoders["text"](text)


class Without(Late):
    def forward(self, text, audio):
        return self.encoders["text"](text) + self.encoders["audio"].forward(audio).sum()


class Frozen(Late):
    def forward(self, text, audio):
        with torch.no_grad():
            return self.encoders["text"](text)


class Turned(Late):
    def forward(self, text, audio):
        return super().forward(text, audio[:3])


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Twice, RuntimeError, "called encoders.text 2 times"),
        (Without, RuntimeError, "did not call encoders.audio.*may_skip=True"),
        (Frozen, RuntimeError, "encoders.text ran without gradients.*requires_grad_"),
        (Turned, (ValueError, RuntimeError), "same rows.*'text': 7, 'audio': 3|Sizes of tensors"),
    ],
)
def test_a_forward_that_does_not_fit_says_so(kind, error, message):
    model = made(kind, dtype=torch.float32)
    with pytest.raises(error, match=message):
        total(model, *inputs())


def test_a_forward_may_do_without_a_modality_where_that_is_said():
    model = made(Without, may_skip=True, task_heads=3)
    total(model, *inputs(torch.float64)).backward()
    assert set(collect_losses(model, LABELS)) == {"reconstruction/text", "uni/text"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"places": {"text": "encoders.text"}}, "two modalities"),
        ({"places": {"text": "encoders.text", "audio": "encoder.audio"}}, "'encoder.audio' of audio.*encoders.audio"),
        ({"places": {"text": "encoders.text", "audio": "encoders"}}, "container"),
        ({"places": {"text": "encoders.text", "audio": "encoders.text.layers"}}, "lies in, 'encoders.text' of text"),
        ({"places": {"text": "encoders.text", "audio": ""}}, "'' of audio is no module"),
        ({"masks": {"text": "lengths"}}, "'lengths', which forward does not take: text, audio, text_mask"),
        ({"masks": {"smell": "text_mask"}}, "masks name 'smell', must be of text, audio"),
        ({"loss_weights": {"alignment": 1.0}}, "of uni, paired, align, reconstruction; got alignment"),
        ({"condition_on_others": True}, "attach got condition_on_others; a block takes gate"),
        ({"gate": "soft"}, "gate is 'soft'"),
        ({"align_temperature": 0.0}, "align_temperature is 0.0"),
        ({"task_heads": -1}, "task_heads is -1"),
        ({"task_heads": "10"}, "^task_heads is '10', must be a whole number of at least 0"),
        ({"features": "8"}, "^features is '8', must be a whole number of at least 0"),
        ({"align_temperature": "1"}, "^align_temperature is '1', must be a finite number above 0, or None"),
        ({"places": None}, "^places is None, must be a mapping such as .*encoder.text"),
        ({"places": ["encoders.text"]}, "^places is a list, must be a mapping such as"),
        ({"places": {**PLACES, "text": None}}, r"^the place of text is None, must be the path .* or \(path, field\)"),
        ({"places": {**PLACES, "text": ("encoders.text",)}}, "^the place of text is .'encoders.text',., must be"),
        ({"dims": [8]}, "^dims is a list, must be a mapping such as .*128"),
        ({"dims": {"text": "8"}}, "^the width of 'text' in dims is '8', must be a whole number of at least 1"),
        ({"masks": ["text_mask"]}, "^masks is a list, must be a mapping"),
        ({"presence": "has_audio"}, "^presence is 'has_audio', must be a mapping"),
        ({"loss_weights": [1.0]}, "^loss_weights is a list, must be a mapping such as .*'uni': 3.0"),
        ({"loss_weights": {"uni": "1"}}, "^the weight of 'uni' in loss_weights is '1', must be a finite number$"),
        ({"name": None}, "^name is None"),
        ({"name": "head"}, "name is 'head'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    model = Late()
    with pytest.raises(ConfigError, match=message):
        attach(model, arguments.pop("places", PLACES), **arguments)
    assert not model.encoders["text"]._forward_hooks and not hasattr(model, "pgm")


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: attach(model, PLACES), "attached already, as 'pgm'"),
        (lambda model: torch.compile(model, backend="eager"), "attach to the model itself"),
        (lambda model: model.compile(backend="eager") or model, "attach, then compile"),
    ],
)
def test_what_is_wrapped_already_is_refused(wrap, message):
    with pytest.raises(ConfigError, match=message):
        attach(wrap(Late()), PLACES)


def test_data_parallel_is_refused():
    replica = made(dtype=torch.float32)._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="use torchrun and DistributedDataParallel"):
        replica(*inputs())


def test_what_calls_everything_in_it_is_refused():
    with pytest.raises(ConfigError, match="Sequential calls everything in it.*a module that holds it"):
        attach(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"text": "0", "audio": "1"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_an_output_of_another_dtype_keeps_it_and_its_bits(dtype):
    torch.manual_seed(0)
    model = Late(wrap=Cast(dtype)).bfloat16()
    x = inputs(torch.bfloat16)[0]
    before = model.encoders["text"](x)
    attach(model, PLACES)
    assert torch.equal(model.encoders["text"](x), before)
    awaken(model.pgm)
    after = model.encoders["text"](x)
    assert after.dtype == dtype and after.isfinite().all() and not torch.equal(after, before)


def test_what_has_no_width_is_asked_for_it():
    model = nn.ModuleDict({"a": nn.Identity(), "b": nn.GRU(3, 4)})
    with pytest.raises(ConfigError, match="b has batch_first=False"):
        attach(model, {"a": "a", "b": "b"})
    model["b"] = nn.GRU(3, 4, bidirectional=True, batch_first=True)
    with pytest.raises(ConfigError, match=r"dims=\{'a': d\}"):
        attach(model, {"a": "a", "b": "b"})
    attach(model, {"a": "a", "b": ("b", 0)}, dims={"a": 5})
    assert model.pgm["blocks"]["b"].out_dims == {"b": 8}
    with pytest.raises(ValueError, match=r"a must return a representation \[B, 5\].*got \[2, 3\].*dims=\{'a': d\}"):
        model["a"](torch.ones(2, 3))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            {"text_mask": torch.ones(7, 3)},
            r"mask of text \(text_mask\) has shape \[7, 3\].*\[7, 4, 16\].*must be \[7, 4\]",
        ),
        ({"has_audio": torch.ones(7)}, r"presence of audio \(has_audio\) must be torch.bool \[7\], got torch.float32"),
    ],
)
def test_masks_that_do_not_fit_are_named(mask, message):
    model = made(
        Late, torch.float32, options={"sequence": True}, masks={"text": "text_mask"}, presence={"audio": "has_audio"}
    )
    with pytest.raises(ValueError, match=message):
        model(*inputs(), **mask)


def test_losses_that_are_not_there_are_not_made_up():
    model = Late()
    with pytest.raises(ConfigError, match="call pgm_fast.nn.attach first"):
        collect_losses(model)
    with pytest.raises(ConfigError, match="nothing is attached to this Late"):
        detach(model)
    with pytest.raises(ConfigError, match="^nothing is attached to this Late, or detach took it away: call pgm_fast"):
        collect_losses(detach(attach(model, PLACES)))
    with pytest.raises(ConfigError, match="^model is of the class NoneType, must be a torch.nn.Module"):
        attach(None, PLACES)
    with pytest.raises(ConfigError, match="^model is of the class NoneType, must be a torch.nn.Module"):
        collect_losses(None)
    attach(model, PLACES, task_heads=3)
    with pytest.raises(RuntimeError, match="has not run its forward"):
        collect_losses(model, LABELS)
    model(*inputs())
    with pytest.raises(ConfigError, match="collect_losses"):
        collect_losses(model)
    with pytest.raises(ValueError, match=r"target has shape \[2\], must hold the 7 rows"):
        collect_losses(model, LABELS[:2])
    model.forward(*inputs())
    copied = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="has not run its forward"):
        collect_losses(copied, LABELS)


@pytest.mark.parametrize("caught", [RuntimeError, ConfigError])
@pytest.mark.parametrize("kind", [None, Without])
def test_losses_that_no_forward_left_are_an_error_of_this_package_and_of_old(kind, caught):
    model = made(kind or Late, dtype=torch.float32)
    if kind is not None:
        model(*inputs())
    with pytest.raises(caught):
        collect_losses(model)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (LABELS.float(), r"^target is torch.float32 \[7\], must be class numbers, torch.int64 \[7\], or shares"),
        (LABELS.int(), r"^target is torch.int32 \[7\], must be .*pass target.reshape\(-1\).long\(\)"),
        (LABELS[:, None], r"^target is torch.int64 \[7, 1\], must be class numbers"),
        (LABELS + 3, "^target must hold classes of 0 to 2, as task_heads=3, or -100 .* Target . is out of bounds"),
        (LABELS - 3, "^target must hold classes of 0 to 2, as task_heads=3, or -100 .* Target -. is out of bounds"),
        (LABELS.tolist(), "^target is a list, must be a tensor"),
    ],
)
@pytest.mark.parametrize("presence", [{}, {"presence": {"audio": "has_audio"}}])
def test_a_target_that_the_heads_cannot_learn_is_named(target, message, presence):
    model = made(dtype=torch.float32, task_heads=3, **presence)
    model(*inputs(), **({"has_audio": torch.ones(7, dtype=torch.bool)} if presence else {}))
    with pytest.raises(ConfigError, match=message):
        collect_losses(model, target)


@pytest.mark.parametrize("task_loss", [None, mse_loss])
@pytest.mark.parametrize("rows", [0, 7])
def test_a_batch_without_rows_or_labels_has_losses_of_zero_and_no_gradient(rows, task_loss):
    if rows and task_loss is not None:
        pytest.skip("what a label means is for a loss of one's own to say")
    model = made(dtype=torch.float32, task_heads=3, **({} if task_loss is None else {"task_loss": task_loss}))
    logits = model(*inputs(rows=rows))
    target = torch.full((rows,), -100) if task_loss is None else torch.zeros(rows, 3)
    losses = collect_losses(model, target)
    assert {name for name in losses if name.startswith("uni/") or name == "paired"} == {
        "uni/text",
        "uni/audio",
        "paired",
    }
    for name, loss in losses.items():
        assert loss == 0 or (rows and not name.startswith(("uni/", "paired"))), name
    heads = losses["uni/text"] + losses["uni/audio"] + losses["paired"]
    (heads + 0 * logits.sum()).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_rows_without_a_label_count_for_nothing():
    model = made(dtype=torch.float64, task_heads=3)
    x = inputs(torch.float64)
    model(*x)
    some = collect_losses(model, torch.where(torch.arange(7) < 4, LABELS, -100))
    model(*(part[:4] for part in x))
    torch.testing.assert_close(
        {m: some[m] for m in ("uni/text", "paired")},
        {m: collect_losses(model, LABELS[:4])[m] for m in ("uni/text", "paired")},
        rtol=FP64,
        atol=FP64,
    )
