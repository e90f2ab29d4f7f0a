"""Small batches on a CPU take fused ops, which nobody can tell from the modules but by the time."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from module_cases import Call, awaken, flat
from tolerances import FP64, OTHER_PATH_FP32
from torch import nn
from torch.nn.utils import parametrizations, prune

from pgm_fast.nn import MLP, PartitionedLinear, PgMBlock, decoder, fused, mlp, partitioned_linear


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
        assert (most > 0) == ("pgm_fast::mlp" in called)
    return found


@pytest.mark.parametrize("gate", ["boundary", "dual"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_block_gives_the_same_numbers_and_draws(gate, dropout, monkeypatch):
    torch.manual_seed(0)
    block = awaken(PgMBlock({"text": 12, "audio": 8}, 6, gate=gate, dropout=dropout).double())
    h = {m: torch.randn(9, d, dtype=torch.float64) for m, d in (("text", 12), ("audio", 8))}

    def run(text, audio):
        out = block.run({"text": text, "audio": audio})
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


def _double_a_layer(layer):
    class Doubled(type(layer)):
        def forward(self, x):
            return 2 * super().forward(x)

    layer.__class__ = Doubled


def _replace_forward(layer):
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


def _parametrize(layer):
    parametrizations.weight_norm(layer)


def _normalise_as_of_old(layer):
    nn.utils.spectral_norm(layer)


def _prune(layer):
    prune.random_unstructured(layer, "weight", amount=0.5)


def _change_by_a_hook(layer):
    layer.register_forward_hook(lambda module, args, output: 2 * output)


def _change_by_a_pre_hook(layer):
    layer.register_forward_pre_hook(lambda module, args: 2 * args[0])


def _remove_the_bias(layer):
    layer.bias = None


def _compile(layer):
    layer.compile(backend=lambda graph, inputs: lambda *args: [2 * x for x in graph(*args)])


CHANGES = [_double_a_layer, _replace_forward, _change_by_a_hook, _change_by_a_pre_hook, _compile]
CHANGES_OF_WEIGHTS = [_parametrize, _normalise_as_of_old, _prune, _remove_the_bias]
MODULES = {
    "MLP": lambda: (MLP(6, 4, 2), [(6,)]),
    "PartitionedLinear": lambda: (PartitionedLinear(6, 4, 2, activation="gelu"), [(6,), (6,)]),
    "PgMBlock": lambda: (Call(_call_block, awaken(PgMBlock({"text": 6, "audio": 6}))), [(6,), (6,)]),
}


def _call_block(block, text, audio):
    representations, losses = block({"text": text, "audio": audio})
    return *representations.values(), *losses.values()


def changes():
    """Every change of every layer."""
    for kind, make in MODULES.items():
        for name, layer in make()[0].named_modules():
            if next(layer.children(), None) is None:
                for change in CHANGES + CHANGES_OF_WEIGHTS * isinstance(layer, nn.Linear):
                    yield pytest.param(kind, name, change, id=f"{kind}-{name}-{change.__name__}")


def call_layers(monkeypatch):
    for file in (mlp, partitioned_linear, decoder):
        monkeypatch.setattr(file, "are_plain", lambda *_: False)


@pytest.mark.parametrize(("kind", "layer", "change"), list(changes()))
def test_a_changed_layer_means_the_same_to_few_rows_and_to_many(kind, layer, change, monkeypatch):
    torch.manual_seed(0)
    module, shapes = MODULES[kind]()
    change(module.get_submodule(layer))
    module.double().eval()
    inputs = [torch.randn(3, *shape, dtype=torch.float64) for shape in shapes]
    few = module(*inputs)
    call_layers(monkeypatch)
    torch.testing.assert_close(few, module(*inputs), rtol=FP64, atol=FP64)


def _twice(forward):
    return lambda self, x: 2 * forward(self, x)


def _twice_by_its_name(forward):
    return functools.wraps(forward)(_twice(forward))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("change", [_twice, _twice_by_its_name])
def test_a_changed_class_means_the_same_to_few_rows_and_to_many(kind, change, monkeypatch):
    torch.manual_seed(0)
    module, shapes = MODULES[kind]()
    module.double()
    inputs = [torch.randn(3, *shape, dtype=torch.float64) for shape in shapes]
    before = module(*inputs)
    monkeypatch.setattr(nn.Linear, "forward", change(nn.Linear.forward))
    few = module(*inputs)
    call_layers(monkeypatch)
    torch.testing.assert_close(few, module(*inputs), rtol=FP64, atol=FP64)
    assert not torch.equal(flat(few)[0], flat(before)[0])


@pytest.mark.parametrize("kind", MODULES)
def test_every_module_is_called_once_where_anybody_listens(kind):
    module, shapes = MODULES[kind]()
    inputs = [torch.randn(3, *shape) for shape in shapes]
    own = [m for m in module.modules() if not isinstance(m, nn.ModuleDict)]
    calls = Counter()
    handles = [m.register_forward_hook(lambda m, *_: calls.update([m])) for m in own]
    module(*inputs)
    assert calls == Counter(own)
    for handle in handles:
        handle.remove()
    calls.clear()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, *_: calls.update([m]))
    module(*inputs)
    handle.remove()
    assert calls == Counter(own)


def test_a_symbolic_trace_holds_the_layers():
    module, x = MLP(6, 4, 2), torch.randn(3, 6)
    traced = torch.fx.symbolic_trace(module)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3"]
    torch.testing.assert_close(traced(x), module(x), rtol=OTHER_PATH_FP32, atol=OTHER_PATH_FP32)


def _another_dtype(module):
    return module, torch.randn(2, 6, dtype=torch.float64)


def _another_width(module):
    return module, torch.randn(2, 5)


def _a_layer_of_another_width(module):
    module[3] = nn.Linear(5, 2)
    return module, torch.randn(2, 6)


def _a_layer_of_another_dtype(module):
    module[3].double()
    return module, torch.randn(2, 6)


@pytest.mark.parametrize(
    "misfit", [_another_dtype, _another_width, _a_layer_of_another_width, _a_layer_of_another_dtype]
)
def test_what_does_not_fit_is_named_by_the_layer(misfit):
    module, x = misfit(MLP(6, 4, 2))
    with pytest.raises(RuntimeError) as by_layers:
        nn.Sequential(*module)(x)
    with pytest.raises(RuntimeError) as by_module:
        module(x)
    assert str(by_module.value) == str(by_layers.value)


def test_compiles_whole():
    block, mlp = PgMBlock({"text": 6, "audio": 6}).double(), MLP(6, 4, 2).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    for module, argument in ((block, {"text": x, "audio": x}), (mlp, x)):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(argument), module(argument), rtol=FP64, atol=FP64)
