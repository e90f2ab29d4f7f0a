"""attach puts PgM into models as they are: at first nothing changes, and detach leaves nothing behind."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from attach_models import LABELS, PLACES, WRAPS, Chained, Crossed, Late, gradients, inputs, made, total
from module_cases import awaken
from tolerances import FP64
from torch import nn
from torch.nn.functional import mse_loss

from pgm_fast.nn import PgMBlock, attach, collect_losses, detach, mark_part, parameter_parts


@pytest.mark.parametrize("kind", [Late, Crossed, Chained])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast float16", "autocast bfloat16"])
@pytest.mark.works("AMP", "attach")
def test_nothing_changes_at_first(kind, precision):
    name = precision.rpartition(" ")[2]
    autocast = torch.autocast("cpu", getattr(torch, name), enabled="autocast" in precision)
    dtype = torch.float32 if "autocast" in precision else getattr(torch, name)
    torch.manual_seed(0)
    model = kind().to(dtype)
    with autocast:
        before = model(*inputs(dtype))
        attach(model, PLACES, task_heads=3)
        assert torch.equal(model(*inputs(dtype)), before)
        sum(collect_losses(model, LABELS).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.pgm.parameters())
    assert all(p.grad.any() for p in model.encoders.parameters())


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("sequence", [False, True])
def test_the_representation_is_found_in_what_modules_return_and_the_rest_passes_by(wrap, sequence):
    make, field = WRAPS[wrap]
    plain = made(options={"sequence": sequence})
    model = Late(sequence, make).double()
    attach(model, {m: (path, field) if field is not None else path for m, path in PLACES.items()})
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(*inputs(torch.float64)), plain(*inputs(torch.float64)))
    got, want = (
        model.encoders["text"](inputs(torch.float64)[0]),
        make(torch.zeros(7, 4, 16) if sequence else torch.zeros(7, 16)),
    )
    assert type(got) is type(want)
    assert getattr(got, "length", 3) == getattr(got, "steps", 3) == 3


@pytest.mark.works("transformers", "attach")
def test_a_transformers_output_keeps_its_class_and_its_other_fields():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20
    )
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": transformers.BertModel(config), "b": nn.Linear(3, 16)})
    model.forward = lambda ids, x: (model["a"](ids), model["b"](x))
    ids = torch.arange(6).reshape(2, 3)
    before = model.eval()(ids, torch.ones(2, 3))[0]
    attach(model, {"a": ("a", "pooler_output"), "b": "b"})
    got = model(ids, torch.ones(2, 3))[0]
    assert type(got) is type(before) and all(torch.equal(got[k], before[k]) for k in before)
    awaken(model.pgm)
    got = model(ids, torch.ones(2, 3))[0]
    assert not torch.equal(got.pooler_output, before.pooler_output)
    assert torch.equal(got.last_hidden_state, before.last_hidden_state)
    attach(detach(model), {"a": "a", "b": "b"})
    with pytest.raises(
        ValueError, match=r"last_hidden_state.*pooler_output.*say which.*'a': \('a', 'last_hidden_state'\)"
    ):
        model(ids, torch.ones(2, 3))


@pytest.mark.works("transformers", "attach")
def test_clip_as_it_is_published_trains_every_part():
    transformers = pytest.importorskip("transformers")
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    text = {"hidden_size": 12, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **size}
    vision = {"hidden_size": 16, "image_size": 4, "patch_size": 2, **size}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0], [1, 8, 9, 2]])
    arguments = {"input_ids": ids, "attention_mask": (ids > 0).long(), "pixel_values": torch.randn(3, 3, 4, 4)}
    before = model(**arguments).logits_per_image
    attach(model, {"text": ("text_model", "pooler_output"), "image": ("vision_model", "pooler_output")}, task_heads=3)
    output = model(return_loss=True, **arguments)
    assert torch.equal(output.logits_per_image, before)
    (output.loss + sum(collect_losses(model, LABELS[:3]).values())).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_it_is_the_block_that_one_would_write_into_the_model():
    model = made(options={"widths": (12, 12)}, features=9)
    block = PgMBlock({"text": 12, "audio": 12}, 9).double()
    state = model.pgm["blocks"].state_dict()
    block.load_state_dict({key.partition(".")[2]: value for key, value in state.items()})
    x = dict(zip(PLACES, inputs(torch.float64), strict=True))
    representations, losses = block({m: model.encoders[m].layers(h).mean(1) for m, h in x.items()})
    torch.testing.assert_close(
        model(**x), model.head(torch.cat(list(representations.values()), -1)), rtol=FP64, atol=FP64
    )
    weights = {"align": 0.1, "reconstruction/text": 0.05, "reconstruction/audio": 0.05}
    got = collect_losses(model)
    torch.testing.assert_close(got, {name: w * losses[name] for name, w in weights.items()}, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_padded_passes_unchanged_and_weighs_nothing(training):
    lengths = torch.tensor([4, 1, 2, 3, 4, 0, 2])
    mask = torch.arange(4) < lengths.unsqueeze(1)
    has_audio = torch.tensor([True, False, True, True, False, True, True])
    arguments = {"masks": {"text": "text_mask"}, "presence": {"audio": "has_audio"}, "task_heads": 3}
    model = made(options={"sequence": True}, **arguments).train(training)
    text, audio = inputs(torch.float64)
    found = []
    for garbage in (0.0, 1e8):
        text = text.masked_fill(~mask.unsqueeze(-1), garbage)
        audio = audio.masked_fill(~has_audio[:, None, None], garbage)
        model(text, audio, text_mask=mask, has_audio=has_audio)
        found.append(collect_losses(model, LABELS))
        assert all(loss.isfinite() for loss in found[-1].values())
    torch.testing.assert_close(*found, rtol=0, atol=0)
    model(text, audio, lengths, has_audio)
    torch.testing.assert_close(found[0], collect_losses(model, LABELS), rtol=0, atol=0)
    seen = []
    model.encoders["text"].register_forward_hook(lambda module, args, output: seen.append(output))
    model(text, audio, mask, has_audio)
    plain = model.encoders["text"].layers(text)
    assert torch.equal(seen[0][~mask], plain[~mask]) and not torch.equal(seen[0][mask], plain[mask])


def test_heads_train_every_part_and_no_modality_learns_from_the_others_uni_modal_head():
    model = made(task_heads=3)
    model(*inputs(torch.float64))
    losses = collect_losses(model, LABELS)
    assert list(losses) == ["reconstruction/text", "reconstruction/audio", "align", "uni/text", "uni/audio", "paired"]
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(losses["uni/text"], list(named.values()), allow_unused=True, retain_graph=True)
    reached = {name for name, g in zip(named, grads, strict=True) if g is not None and g.any()}
    assert any("heads.text" in name for name in reached) and not any("audio" in name for name in reached)
    total(model, *inputs(torch.float64)).backward()
    assert all(p.grad.any() for p in model.parameters())


def test_another_loss_serves_other_tasks():
    model = made(task_heads=2, task_loss=mse_loss, loss_weights={"uni": 2.0}, align_temperature=None)
    model(*inputs(torch.float64))
    target = torch.randn(7, 2).double()
    outputs = model.pgm.last.outputs
    got = collect_losses(model, target)
    torch.testing.assert_close(got["uni/text"], mse_loss(outputs["text"], target), rtol=FP64, atol=FP64)
    assert "align" not in got


@pytest.mark.works("deepcopy, torch.save", "attach")
def test_copies_and_files_hold_the_whole_and_detach_leaves_nothing():
    torch.manual_seed(0)
    plain = Late().double()
    before = plain(*inputs(torch.float64))
    state, attributes = plain.state_dict(), [set(vars(module)) for module in plain.modules()]
    model = made(task_heads=3, awake=False)
    assert [key for key in model.state_dict() if not key.startswith("pgm.")] == list(state)
    total(model, *inputs(torch.float64))
    file = io.BytesIO()
    torch.save(awaken(model), file)
    file.seek(0)
    want = gradients(model, *inputs(torch.float64))
    fresh = made(task_heads=3)
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), fresh):
        torch.testing.assert_close(gradients(other, *inputs(torch.float64)), want, rtol=0, atol=0)
        with torch.no_grad():
            next(other.pgm.parameters()).add_(1)
        assert not torch.equal(gradients(other, *inputs(torch.float64))[0], want[0])
        assert detach(other) is other
        other.load_state_dict(state)
        assert torch.equal(other(*inputs(torch.float64)), before)
        assert [set(vars(module)) for module in other.modules()] == attributes
        assert not [v for module in other.modules() for k, v in vars(module).items() if "hook" in k and v]
    torch.testing.assert_close(gradients(model, *inputs(torch.float64)), want, rtol=0, atol=0)


def test_marks_are_there_unless_one_has_set_others():
    model = Late()
    mark_part(model.encoders["audio"], "sound", "encoder")
    owners = parameter_parts(attach(model, PLACES, task_heads=3))
    assert owners["encoders.text.layers.0.weight"] == ("text", "encoder")
    assert owners["encoders.audio.layers.0.weight"] == ("sound", "encoder")
    assert owners["head.weight"] == ("shared", "head")
    parts = {"encoder", "partitioner", "uni", "paired", "decoder", "head"}
    assert {part for modality, part in owners.values() if modality == "text"} == parts


def test_a_part_that_is_called_by_itself_is_changed_and_leaves_the_losses_alone():
    model = made(Late, masks={"text": "text_mask"}, options={"sequence": True})
    text, audio = inputs(torch.float64)
    model(text, audio, torch.ones(7, 4, dtype=torch.bool))
    losses = collect_losses(model)
    assert not torch.equal(model.encoders["text"](text[:2]), model.encoders["text"].layers(text[:2]))
    torch.testing.assert_close(collect_losses(model), losses, rtol=0, atol=0)
