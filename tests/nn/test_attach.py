"""attach puts PgM into models as they are: at first nothing changes, and detach leaves nothing behind."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections import namedtuple

import pytest
import torch
from module_cases import awaken
from sharded import kinds_of_parts, lone_mesh, shard
from tolerances import FP64
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pgm_fast.errors import ConfigError
from pgm_fast.nn import MLP, PgMBlock, attach, collect_losses, detach, mark_part, parameter_parts

PLACES = {"text": "encoders.text", "audio": "encoders.audio"}
Pair = namedtuple("Pair", "length states")


@dataclasses.dataclass
class Output:
    states: torch.Tensor
    steps: int


class Encoder(nn.Module):
    """``[B, T, i]`` -> ``[B, T, d]``, or their means ``[B, d]``, in whatever ``wrap`` makes of it."""

    def __init__(self, width_in, width, sequence, wrap):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width_in, width), nn.Tanh())
        self.sequence, self.wrap = sequence, wrap

    def forward(self, x):
        h = self.layers(x)
        return self.wrap(h if self.sequence else h.mean(1))


def alone(h):
    return h


class Cast:
    """To a dtype, and then to values that no other holds."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self, h):
        return h.to(self.dtype) * 1.01


def read(output):
    """The representation, wherever an encoder put it."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, dict):
        return output["states"]
    return output.states if hasattr(output, "states") else output[-1]


class Late(nn.Module):
    """Both encoders, then their means side by side."""

    def __init__(self, sequence=False, wrap=alone, widths=(16, 12)):
        super().__init__()
        self.encoders = nn.ModuleDict(
            {"text": Encoder(6, widths[0], sequence, wrap), "audio": Encoder(5, widths[1], sequence, wrap)}
        )
        self.head = nn.Linear(sum(widths), 3)

    def forward(self, text, audio, text_mask=None, has_audio=None):
        found = [read(self.encoders["text"](text)), read(self.encoders["audio"](audio))]
        return self.head(torch.cat([h if h.dim() == 2 else self.mean(h, text_mask) for h in found], -1))

    @staticmethod
    def mean(h, mask):
        if mask is None or mask.shape != h.shape[:2]:
            return h.mean(1)
        return h.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True)


class Crossed(Late):
    """The second encoder's output attends to the first's."""

    def __init__(self, **options):
        super().__init__(True, widths=(12, 12), **options)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, text, audio):
        text, audio = read(self.encoders["text"](text)), read(self.encoders["audio"](audio))
        return self.head(self.attention(audio, text, text)[0].mean(1))


class Chained(Late):
    """The first encoder's output is read before the second runs, and by it."""

    def forward(self, text, audio):
        text = read(self.encoders["text"](text))
        return self.head(torch.cat([text, read(self.encoders["audio"](audio + text[:, None, :5]))], -1))


def inputs(dtype=torch.float32, rows=7):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(rows, t, d, generator=generator).to(dtype) for t, d in ((4, 6), (3, 5)))


LABELS = torch.arange(7) % 3


def made(kind=Late, dtype=torch.float64, awake=True, options=None, **attached):
    torch.manual_seed(0)
    model = attach(kind(**(options or {})).to(dtype), PLACES, **attached)
    if awake:
        awaken(model.pgm)
    return model


def total(model, *args, target=LABELS):
    logits = model(*args)
    return logits.square().mean() + sum(collect_losses(model, target).values())


def gradients(model, *args, run=None):
    loss = total(model if run is None else run, *args)
    loss.backward()
    full = [p.grad if not hasattr(p.grad, "full_tensor") else p.grad.full_tensor() for p in model.parameters()]
    model.zero_grad()
    return [loss.detach(), *full]


WRAPS = {
    "tensor": (alone, None),
    "tuple": (lambda h: (h[..., 0], h), None),
    "list of two": (lambda h: [h.cos(), h], 1),
    "named tuple": (lambda h: Pair(3, h), None),
    "dictionary": (lambda h: {"states": h, "other": h.sin()}, "states"),
    "dataclass": (lambda h: Output(h, 3), "states"),
}


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


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.works("torch.compile", "attach")
def test_compiles_whole_and_agrees(fresh):
    model = made(Crossed, task_heads=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    args = inputs(torch.float64)
    want = gradients(model, *args)
    torch.testing.assert_close(gradients(model, *args, run=compiled), want, rtol=FP64, atol=FP64)


@pytest.mark.works("torch.compile", "attach")
def test_its_graphs_serve_every_batch_size(fresh):
    model, counter = made(task_heads=3), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    frames = []
    for rows in (7, 5, 3):
        args = inputs(torch.float64, rows)
        results = [total(run, *args, target=LABELS[:rows]) for run in (model, compiled)]
        torch.testing.assert_close(*results, rtol=FP64, atol=FP64)
        frames.append(counter.frame_count)
    assert frames == [frames[0]] * 3


@pytest.mark.works("torch.export", "attach")
def test_exports_what_the_model_computes():
    model = made(task_heads=3).eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, inputs(torch.float64), dynamic_shapes=(batch, batch))
    assert not [node for node in program.graph.nodes if "pgm_fast" in str(node.target)]
    args = inputs(torch.float64, 3)
    torch.testing.assert_close(program.module()(*args), model(*args), rtol=FP64, atol=FP64)


@pytest.mark.works("torch.jit.trace", "attach")
def test_a_trace_serves_other_batch_sizes():
    model = made(task_heads=3).eval()
    traced = torch.jit.trace(model, inputs(torch.float64), check_trace=False)
    args = inputs(torch.float64, 3)
    torch.testing.assert_close(traced(*args), model(*args), rtol=FP64, atol=FP64)


@pytest.mark.works("ONNX", "attach")
def test_an_onnx_program_has_onnx_operators_only():
    pytest.importorskip("onnxscript", reason="pip install 'pgm-fast[integrations]'")
    program = torch.onnx.export(made(dtype=torch.float32).eval(), inputs(), dynamo=True, verbose=False)
    assert {node.domain for node in program.model_proto.graph.node} == {""}


@pytest.mark.works("torch.func", "attach")
def test_torch_func_differentiates_what_it_collects():
    model = made(task_heads=3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def run(parameters):
        logits = torch.func.functional_call(model, parameters, inputs(torch.float64))
        return logits.square().mean() + sum(collect_losses(model, LABELS).values())

    got = torch.func.grad(run)(parameters)
    torch.testing.assert_close(list(got.values()), gradients(model, *inputs(torch.float64))[1:], rtol=FP64, atol=FP64)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    with lone_mesh(tmp_path_factory.mktemp("store")) as mesh:
        yield mesh


@pytest.mark.works("FSDP2", "attach")
def test_any_part_can_be_sharded(mesh):
    args = inputs(torch.float64)
    want = gradients(made(task_heads=3), *args)
    for kind in kinds_of_parts(made(task_heads=3)):
        if kind and not issubclass(kind, nn.ModuleDict):
            sharded = shard(made(task_heads=3), kind, mesh)
            torch.testing.assert_close(gradients(sharded, *args), want, rtol=FP64, atol=FP64)
    whole = fully_shard(made(task_heads=3), mesh=mesh, reshard_after_forward=True)
    torch.testing.assert_close(gradients(whole, *args), want, rtol=FP64, atol=FP64)
    with pytest.raises(ValueError, match="container"):
        fully_shard(made().pgm, mesh=mesh)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.works("DDP", "attach")
def test_ddp_finds_what_takes_part(mesh, options):
    args = inputs(torch.float64)
    want = gradients(made(task_heads=3), *args)
    model = made(task_heads=3)
    ddp = DistributedDataParallel(model, **options)
    for _ in range(2):
        torch.testing.assert_close(gradients(model, *args, run=ddp), want, rtol=FP64, atol=FP64)


@pytest.mark.works("tensor parallel", "attach")
def test_layers_of_learners_and_heads_can_be_split_over_ranks(mesh):
    model, plan = made(task_heads=3), {}
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            plan |= {f"{name}.0": ColwiseParallel(), f"{name}.3": RowwiseParallel()}
    want = gradients(made(task_heads=3), *inputs(torch.float64))
    parallelize_module(model, mesh, plan)
    torch.testing.assert_close(gradients(model, *inputs(torch.float64)), want, rtol=FP64, atol=FP64)


def test_outputs_may_be_changed_in_place(mesh):
    made()(*inputs(torch.float64)).mul_(2).sum().backward()


class Checkpointed(Late):
    reentrant = False

    def forward(self, text, audio, mask=None):
        found = [
            checkpoint(self.encoders[m], x, use_reentrant=self.reentrant) for m, x in (("text", text), ("audio", audio))
        ]
        return self.head(torch.cat([self.mean(h, mask) for h in found], -1))


@pytest.mark.works("activation checkpointing", "attach")
def test_encoders_may_be_checkpointed():
    mask = torch.arange(4) < torch.tensor([[4], [1], [2], [3], [4], [1], [2]])
    options = {"options": {"sequence": True}, "task_heads": 3}
    want = gradients(made(masks={"text": "text_mask"}, **options), *inputs(torch.float64), mask)
    model = made(Checkpointed, masks={"text": "mask"}, **options)
    torch.testing.assert_close(gradients(model, *inputs(torch.float64), mask), want, rtol=FP64, atol=FP64)
    model.reentrant = True
    with pytest.raises(RuntimeError, match="encoders.text ran without gradients.*use_reentrant=False"):
        model(*(x.requires_grad_() for x in inputs(torch.float64)))


@pytest.mark.works("PEFT", "attach")
def test_lora_goes_first():
    peft = pytest.importorskip("peft", reason="pip install 'pgm-fast[integrations]'")
    tuned = peft.get_peft_model(Late(), peft.LoraConfig(r=2, target_modules=r".*layers\.0"))
    before = tuned(*inputs())
    attach(tuned, {m: f"base_model.model.{path}" for m, path in PLACES.items()}, task_heads=3)
    assert torch.equal(tuned(*inputs()), before)
    total(awaken(tuned), *inputs()).backward()
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, p in tuned.named_parameters() if "lora_" in name or "pgm." in name}


@pytest.mark.works("offload", "attach")
def test_offloaded_weights_are_fetched():
    accelerate = pytest.importorskip("accelerate", reason="pip install 'pgm-fast[integrations]'")
    model = made(task_heads=3)
    want = total(model, *inputs(torch.float64))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(total(model, *inputs(torch.float64)), want, rtol=FP64, atol=FP64)


def _is_linear_of_pgm(module, name):
    return "pgm." in name and isinstance(module, nn.Linear)


@pytest.mark.works("quantisation", "attach")
def test_quantised_layers_are_called():
    quantization = pytest.importorskip("torchao.quantization", reason="pip install 'pgm-fast[integrations]'")
    model = made(dtype=torch.float32).eval()
    before = model(*inputs())
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), _is_linear_of_pgm)
    after = model(*inputs())
    # eight bits change what full precision gave
    assert after.isfinite().all() and not torch.equal(after, before)


@pytest.mark.works("moving averages", "attach")
def test_a_moving_average_follows_the_whole():
    model = made()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average(*inputs(torch.float64)), model(*inputs(torch.float64)))


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
