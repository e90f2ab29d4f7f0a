"""The modules inside of other people's tools: each does to ours what it does to layers of torch."""

from __future__ import annotations

import copy

import pytest
import torch
from module_cases import awaken
from tolerances import OTHER_PATH_FP32
from torch import nn

from pgm_fast.nn import MLP, IdentityLinear, PartitionedLinear, PgMBlock, QuietLinear

DIMS = {"text": 16, "audio": 8}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = awaken(PgMBlock(DIMS))
        self.head = MLP(24, 8, 3)
        self.split = PartitionedLinear(24, 3, 3)
        self.of_losses = 1.0  # which are of the batch, not of a row

    def forward(self, text, audio):
        representations, losses = self.block({"text": text, "audio": audio})
        joined = torch.cat(list(representations.values()), -1)
        return self.head(joined) + sum(self.split(joined, joined)) + self.of_losses * sum(losses.values())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def inputs(rows=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, d, generator=generator) for d in DIMS.values()]


@pytest.mark.works("PEFT", "layers")
def test_every_lora_adapter_trains_and_merging_keeps_the_output(model):
    peft = pytest.importorskip("peft", reason="pip install 'pgm-fast[integrations]'")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    tuned(*inputs()).sum().backward()
    adapters = {name: p for name, p in tuned.named_parameters() if "lora_" in name}
    linears = [m for m in Model().modules() if isinstance(m, nn.Linear)]
    assert len(adapters) == 2 * len(linears)
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
    before = tuned(*inputs()).detach()
    torch.testing.assert_close(tuned.merge_and_unload()(*inputs()), before, rtol=OTHER_PATH_FP32, atol=OTHER_PATH_FP32)


@pytest.mark.works("offload", "layers")
def test_offloaded_weights_are_fetched(model):
    accelerate = pytest.importorskip("accelerate", reason="pip install 'pgm-fast[integrations]'")
    before = model(*inputs()).detach()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(model(*inputs()), before, rtol=OTHER_PATH_FP32, atol=OTHER_PATH_FP32)


def _peft(**config):
    def wrap(model, _):
        peft = pytest.importorskip("peft", reason="pip install 'pgm-fast[integrations]'")
        return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **config))

    return wrap


def _offload_to_disk(model, folder):
    accelerate = pytest.importorskip("accelerate", reason="pip install 'pgm-fast[integrations]'")
    accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))
    return model


def _quantise(name):
    def wrap(model, _):
        quantization = pytest.importorskip("torchao.quantization", reason="pip install 'pgm-fast[integrations]'")
        quantization.quantize_(model, getattr(quantization, name)())
        return model

    return wrap


def _checkpoint_every_layer(model, _):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, nn.Linear))
    return model


WRAPPERS = {
    "LoRA": _peft(target_modules="all-linear"),
    "DoRA": _peft(target_modules="all-linear", use_dora=True),
    "LoRA of parameters": _peft(target_modules=[], target_parameters=["head.0.weight", "split.uni.weight"]),
    "disk offload": _offload_to_disk,
    "weights in 8 bits": _quantise("Int8WeightOnlyConfig"),
    "weights in float8": _quantise("Float8WeightOnlyConfig"),
    "activations in 8 bits, by row": _quantise("Int8DynamicActivationInt8WeightConfig"),
    "checkpointed layers": _checkpoint_every_layer,
    "moving average": lambda model, _: torch.optim.swa_utils.AveragedModel(model),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.works("PEFT", "layers")
@pytest.mark.works("offload", "layers")
@pytest.mark.works("quantisation", "layers")
@pytest.mark.works("activation checkpointing", "layers")
@pytest.mark.works("moving averages", "layers")
def test_a_row_gets_the_same_alone_and_among_many_whoever_wraps_the_layers(model, name, tmp_path):
    model.of_losses = 0.0
    wrapped = WRAPPERS[name](model.eval(), tmp_path)
    few, many = inputs(), [torch.cat([x, torch.ones(400, x.shape[1])]) for x in inputs()]
    with torch.no_grad():
        few, many = wrapped(*few), wrapped(*many)[:4]
    bound = OTHER_PATH_FP32 * float(many.abs().max())
    torch.testing.assert_close(few, many, rtol=OTHER_PATH_FP32, atol=bound)


@pytest.mark.works("quantisation", "layers")
def test_quantised_layers_are_called(model):
    before = model(*inputs()).detach()
    quantised = _quantise("Int8WeightOnlyConfig")(model, None)
    # eight bits change what full precision gave
    assert not torch.equal(quantised(*inputs()), before)


@pytest.mark.works("quantisation", "layers")
def test_dynamic_quantisation_replaces_every_linear_layer(model):
    engines = torch.backends.quantized.supported_engines
    if not {"x86", "fbgemm", "onednn"} & set(engines):
        pytest.skip(f"torch has no quantised engine for this processor: {engines}")
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model.eval()), {nn.Linear})
    assert quantised.head[0].__class__ is not nn.Linear
    assert torch.isfinite(quantised(*inputs())).all()


@pytest.mark.works("transformers", "layers")
def test_a_transformers_model_begins_a_block_that_its_checkpoint_lacks(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from transformers.models.bert.modeling_bert import BertPreTrainedModel

    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20
    )

    class Fused(BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = transformers.BertModel(config)
            self.block = PgMBlock({"text": 16, "audio": 16})
            self.post_init()

    class Started(Fused):
        def _init_weights(self, module):
            super()._init_weights(module)
            if isinstance(module, (IdentityLinear, QuietLinear)):
                module.reset_parameters()

    transformers.BertModel(config).save_pretrained(tmp_path)
    real = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: _poisoned(real(*a, **k)))
    plain, started = Fused.from_pretrained(tmp_path), Started.from_pretrained(tmp_path)
    monkeypatch.undo()
    assert all(p.isfinite().all() for p in plain.parameters())
    x = {m: torch.randn(3, 16) for m in ("text", "audio")}
    assert all(torch.equal(made, x[m]) for m, made in started.block(x)[0].items())


def _poisoned(tensor):
    return tensor.fill_(torch.nan) if tensor.is_floating_point() and tensor.device.type == "cpu" else tensor
