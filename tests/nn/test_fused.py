"""Small batches on a CPU take fused ops, which nobody can tell from the modules but by the time."""

from __future__ import annotations

import copy

import pytest
import torch
from tolerances import FP64
from torch import nn

from pgm_fast.nn import MLP, PgMBlock, fused


def gradients_and_outputs(run, module, *inputs, seed=3):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    torch.manual_seed(seed)
    results = run(*leaves)
    directions = [torch.sin(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape) for x in results]
    gradients = torch.autograd.grad(results, [*leaves, *module.parameters()], directions)
    return [*results, *gradients]


def both_ways(run, module, *inputs, monkeypatch):
    """With the fused op and, no batch being small enough, with the modules."""
    found = []
    for most in (fused.MOST_ROWS, -1):
        monkeypatch.setattr(fused, "MOST_ROWS", most)
        with torch.profiler.profile() as profile:
            found.append(gradients_and_outputs(run, module, *inputs))
        called = {event.key for event in profile.key_averages()}
        assert (most > 0) == bool(called & {"pgm_fast::mlp", "pgm_fast::uni_paired_block"})
    return found


@pytest.mark.parametrize("gate", ["single", "dual"])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_block_gives_the_same_numbers_and_draws(gate, through, dropout, weighted, monkeypatch):
    torch.manual_seed(0)
    block = PgMBlock(
        {"text": 12, "audio": 8},
        6,
        gate=gate,
        chunk=2,
        temperature=0.7,
        dropout=dropout,
        reconstruct_through=through,
        identity_start=False,
    ).double()
    h = {m: torch.randn(9, d, dtype=torch.float64) for m, d in (("text", 12), ("audio", 8))}
    weight = torch.linspace(0, 0.3, 9, dtype=torch.float64) if weighted else None

    def run(text, audio):
        out = block.run({"text": text, "audio": audio}, weight=weight)
        return [*out.representations.values(), *out.uni.values(), *out.paired.values(), *out.losses.values()]

    for a, b in zip(*both_ways(run, block, *h.values(), monkeypatch=monkeypatch), strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("leading", [(7,), (2, 3), (0,)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_an_mlp_gives_the_same_numbers_and_draws(leading, dropout, monkeypatch):
    torch.manual_seed(0)
    mlp = MLP(5, 8, 3, dropout).double()
    x = torch.randn(*leading, 5, dtype=torch.float64)
    for a, b in zip(*both_ways(lambda x: [mlp(x)], mlp, x, monkeypatch=monkeypatch), strict=True):
        torch.testing.assert_close(a, b, rtol=FP64, atol=FP64)


def test_a_large_batch_is_left_to_the_modules():
    mlp = MLP(4, 4, 4)
    assert fused.serves_small_batches(torch.empty(fused.MOST_ROWS, 4))
    assert not fused.serves_small_batches(torch.empty(fused.MOST_ROWS + 1, 4))
    assert not fused.serves_small_batches(torch.empty(2, 4, dtype=torch.bfloat16))
    assert fused.are_small(nn.Linear(256, 256)) and not fused.are_small(nn.Linear(256, 257))
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp(torch.randn(2, 4)).dtype == torch.bfloat16


def calls(model, x, module):
    seen = []
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    model(x)
    handle.remove()
    return len(seen)


def test_a_hook_is_called_as_often_as_for_a_large_batch(monkeypatch):
    x = torch.randn(3, 6)
    block, mlp = PgMBlock({"text": 6, "audio": 6}, gate="single", identity_start=False), MLP(6, 4, 2)
    cases = [(block, {"text": x, "audio": x}, module) for module in block.modules()]
    cases += [(mlp, x, module) for module in mlp.modules()]
    small = [calls(*case) for case in cases]
    monkeypatch.setattr(fused, "MOST_ROWS", -1)
    assert small == [calls(*case) for case in cases]
    assert sum(small) > len(cases) // 2


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_module_in_anothers_place_is_called():
    torch.manual_seed(0)
    mlp, x = MLP(6, 4, 2).double(), torch.randn(3, 6, dtype=torch.float64)
    other = copy.deepcopy(mlp)
    other[3] = Doubled(4, 2, dtype=torch.float64)
    other[3].load_state_dict(mlp[3].state_dict())
    torch.testing.assert_close(other(x), 2 * mlp(x), rtol=FP64, atol=FP64)
    block = PgMBlock({"text": 6}, gate="single", identity_start=False).double()
    before, _ = block({"text": x})
    learners = block.learners["text"]
    second = learners.uni
    learners.uni = Doubled(6, 6, dtype=torch.float64)
    learners.uni.load_state_dict(second.state_dict())
    after, _ = block({"text": x})
    assert not torch.allclose(before["text"], after["text"], rtol=FP64, atol=FP64)


def _no_bias(block):
    block.learners["text"].uni = nn.Linear(6, 6, bias=False)


def _no_affine_norm(block):
    block.learners["text"].paired_norm = nn.LayerNorm(6, elementwise_affine=False)


def _another_eps(block):
    block.learners["text"].paired_norm.eps = 0.5


def _another_temperature(block):
    block.learners["text"].split.temperature = 0.1


def _another_activation(block):
    block.learners["text"].split.activation = "relu"


@pytest.mark.parametrize("change", [_no_bias, _no_affine_norm, _another_eps, _another_temperature, _another_activation])
def test_a_changed_setting_means_what_it_means_to_the_modules(change, monkeypatch):
    torch.manual_seed(0)
    block, x = PgMBlock({"text": 6}, gate="single", identity_start=False), torch.randn(3, 6, dtype=torch.float64)
    change(block)
    block.double()
    small, _ = block({"text": x})
    monkeypatch.setattr(fused, "MOST_ROWS", -1)
    by_modules, _ = block({"text": x})
    torch.testing.assert_close(small["text"], by_modules["text"], rtol=FP64, atol=FP64)


def test_an_input_that_does_not_fit_is_named_by_the_layer():
    with pytest.raises(RuntimeError, match="2x5 and 6x4"):
        MLP(6, 4, 2)(torch.randn(2, 5))


def test_compiles_whole():
    block, mlp = PgMBlock({"text": 6, "audio": 6}).double(), MLP(6, 4, 2).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    for module, argument in ((block, {"text": x, "audio": x}), (mlp, x)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(argument), module(argument), rtol=FP64, atol=FP64)
