"""Weights, gradients and optimizer state cut over the ranks: ``train.strategy=fsdp``, torch's ``fully_shard`` (FSDP2).

Every modality x part of a method is gathered when it is called and given back afterwards, so that a rank holds its
share of all and one part in whole. The weights that are kept are put together from the shards, so that best.pt is the
same whoever wrote it; how last.pt is written and read is in :mod:`.shards`.
"""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ConfigError
from ..methods import METHODS
from ..methods.base import Method
from ..nn.parts import parameter_parts
from .config import PRECISIONS, Config
from .distributed import Ranks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "cut",
    "gathered",
    "is_cut",
    "load_optimizer",
    "load_weights",
    "mesh_of",
    "require_strategy",
    "shard",
    "without_gradients",
]

log = logging.getLogger(__name__)


def require_strategy(config: Config) -> None:
    """Raises ConfigError where ``train.strategy`` does not go with the other settings."""
    if config.train.strategy != "fsdp":
        return
    if config.train.compile:
        raise ConfigError(
            "train.compile=true compiles the step of one process, and train.strategy=fsdp cuts it over several; "
            "set train.compile=false, or train.strategy=ddp"
        )
    method = METHODS[config.method]
    if method.backward is not Method.backward or method.after_backward is not Method.after_backward:
        plain = [name for name, other in METHODS.items() if _leaves_gradients(other)]
        raise ConfigError(
            f"method {config.method} works on whole gradients, of which train.strategy=fsdp leaves a process a part; "
            f"set train.strategy=ddp, or use one of {', '.join(plain)}"
        )


def _leaves_gradients(method: type[Method]) -> bool:
    return method.backward is Method.backward and method.after_backward is Method.after_backward


def shard(method: Method, ranks: Ranks, config: Config, unused: bool = False) -> bool:
    """Cut the parameters of ``method`` over the ranks, in place, where ``config`` asks for it; whether it did.

    With one process there is nothing to cut, which is said. Buffers stay whole, and are taken from rank 0 before every
    training step, as under ``DistributedDataParallel``. ``train.precision`` is what parameters are gathered in;
    gradients are reduced in float32. Normalisations with running statistics stay in float32, which they need.

    Args:
        method: on the device of its rank; parameters are replaced by others, so groups are to be made afterwards.
        unused: whether it may hold trained parameters that reach no loss on some rank.

    Raises:
        ConfigError: a parameter that cannot be cut.
    """
    if config.train.strategy != "fsdp":
        return False
    if ranks.world == 1:
        log.warning(
            "train.strategy: nothing is cut, one process holds it all; start several with torchrun --nproc-per-node"
        )
        return False
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    numbers = [name for name, parameter in method.named_parameters() if parameter.dim() == 0]
    if numbers:
        raise ConfigError(
            f"parameter {numbers[0]} is a single number, which train.strategy=fsdp cannot cut; give it the shape [1], "
            "or set train.strategy=ddp"
        )
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    whole = MixedPrecisionPolicy()
    # autocast casts what comes in
    lower = MixedPrecisionPolicy(
        param_dtype=PRECISIONS[config.train.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for unit in _units(method):
        policy = whole if isinstance(unit, _NormBase) else lower
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # the root too gives its parameters back, so that outside of a pass all of them are shards
    fully_shard(method, mesh=mesh, mp_policy=lower, reshard_after_forward=True)
    # it may call encoders before the whole was ever called, and the whole has to be the first
    register_fsdp_forward_method(method, "begin_epoch")
    if unused and hasattr(method, "set_reduce_scatter_unused_params"):
        method.set_reduce_scatter_unused_params(True)

    def share_buffers(module: nn.Module, _: Any) -> None:
        if module.training and torch.is_grad_enabled():
            ranks.share_buffers(module)

    method.register_forward_pre_hook(share_buffers)
    # nothing here writes into what a part returns
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return True


def _units(method: nn.Module) -> Iterator[nn.Module]:
    """Modules to cut by themselves, inner ones first: the largest of which all parameters are of one modality and part,
    the elements of lists in them (the layers of a transformer, say), and normalisations with running statistics."""
    parts = parameter_parts(method)

    def walk(module: nn.Module, prefix: str) -> Iterator[nn.Module]:
        for name, child in module.named_children():
            own = {part for key, part in parts.items() if key.startswith(f"{prefix}{name}.")}
            if len(own) == 1 and not isinstance(child, nn.ModuleDict | nn.ModuleList):
                yield from reversed([inner for inner in child.modules() if _has_own_cut(inner, child)])
                yield child
            elif own:
                yield from walk(child, f"{prefix}{name}.")

    return walk(method, "")


def _has_own_cut(module: nn.Module, unit: nn.Module) -> bool:
    if module is unit or not any(True for _ in module.parameters()):
        return False
    listed = (element for inner in unit.modules() if isinstance(inner, nn.ModuleList) for element in inner)
    return isinstance(module, _NormBase) or any(module is element for element in listed)


def gathered(state: Any, ranks: Ranks) -> Any:
    """``state`` with every shard in it put together, on the CPU of rank 0; every rank calls it.

    On the others there is None in their place: one tensor at a time is whole there.
    """
    if isinstance(state, Mapping):
        whole = OrderedDict((key, gathered(value, ranks)) for key, value in state.items())
        return _like(whole, state)
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, ranks) for value in state)
    if not is_cut(state):
        return state
    whole = state.full_tensor()
    return whole.cpu() if ranks.is_main else None


def mesh_of(module: nn.Module) -> DeviceMesh | None:
    """The processes that its parameters are cut over; None where they are whole."""
    return getattr(next(module.parameters()), "device_mesh", None)


def cut(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, as ``like`` is cut; as it is where that is whole too."""
    if not is_cut(like) or is_cut(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_weights(module: nn.Module, state: Mapping[str, Any]) -> None:
    """``module.load_state_dict`` of whole tensors, which every rank has."""
    own = module.state_dict()
    shards = OrderedDict((name, cut(value, own[name]) if name in own else value) for name, value in state.items())
    module.load_state_dict(_like(shards, state))


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict`` of whole tensors, which every rank has."""
    like = optimizer.param_groups[0]["params"][0]
    moments = {
        number: {key: cut(value, like) if _has_rows(value) else value for key, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def without_gradients(module: nn.Module) -> AbstractContextManager[None]:
    """The context to evaluate in. Where parameters are gathered, memory for it is made once, and training needs it."""
    return torch.no_grad() if hasattr(module, "unshard") else torch.inference_mode()


def _like(entries: OrderedDict, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """``entries`` as a mapping of the kind of ``state``, with the versions of modules that torch notes at it."""
    if not isinstance(state, OrderedDict):
        return dict(entries)
    vars(entries).update(vars(state))
    return entries


def is_cut(value: Any) -> bool:
    """Whether it is a tensor of which every process holds a part."""
    return hasattr(value, "full_tensor")


def _has_rows(value: Any) -> bool:
    """Whether it is a moment, cut as its parameter, rather than a count."""
    return isinstance(value, Tensor) and value.dim() > 0
