"""PgM inside a model whose code stays as it is: hooks put a block behind each of the modules that are named."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..settings import Range
from .arguments import POSITIVE, check_mapping, check_number, check_size
from .attached import Attached, Crossing
from .block import PgMBlock

__all__ = ["LOSS_WEIGHTS", "attach", "collect_losses", "detach"]

LOSS_WEIGHTS = {"uni": 3.0, "paired": 1.0, "align": 0.1, "reconstruction": 0.1}
"""What :func:`collect_losses` multiplies each kind with; ``uni`` and ``reconstruction`` are means over modalities."""

Place = str | tuple[str, str | int]
_PLACES = """{"text": "encoder.text", "audio": "encoder.audio"}"""
BLOCK_OPTIONS = ("gate", "temperature", "chunk", "uni_learner", "paired_learner", "dropout", "reconstruct_through")


def attach(
    model: nn.Module,
    places: Mapping[str, Place],
    *,
    dims: Mapping[str, int] | None = None,
    features: int = 0,
    masks: Mapping[str, str] | None = None,
    presence: Mapping[str, str] | None = None,
    task_heads: int = 0,
    task_loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    align_temperature: float | None = 0.1,
    loss_weights: Mapping[str, float] | None = None,
    may_skip: bool = False,
    name: str = "pgm",
    **block: Any,
) -> nn.Module:
    """Puts a :class:`PgMBlock` between modules of ``model`` and whatever reads their outputs; returns ``model``.

    ::

        attach(model, {"text": "encoder.text", "audio": "encoder.audio"}, task_heads=10)
        loss = cross_entropy(model(text, audio), labels) + sum(collect_losses(model, labels).values())

    The block starts by changing nothing, so the model's outputs are at first those of before, to the bit (but for the
    sign of zeros), in whatever precision it runs. Its signature and the names of its parameters stay; new ones are
    ``<name>.*``: load a checkpoint of the model before, one of the whole after ``attach``. The named modules are marked
    as encoders of their modality and the rest of the model as shared head, where they carry no :func:`mark_part` of
    their own.

    What a modality's reader gets depends on that modality alone, so the order in which modules run and who reads them
    is free: late fusion, cross-attention, modules that run one after the other. What takes all modalities, alignment
    and the paired head, is computed when the model's forward ends. Sequences take part in it with the mean over their
    valid steps, so that they may differ in length.

    Attach to the module that is called: before ``torch.compile``, DistributedDataParallel, ``fully_shard`` and
    Accelerate, after ``get_peft_model`` (to its result); of a LightningModule to the model that its steps call. It is
    not possible to

    - condition gates on the other modalities, which have not run yet: write :class:`PgMBlock` into the model for that;
    - name a module that a forward calls more than once, or whose methods are called instead of itself;
    - name a module that runs under ``torch.no_grad`` or reentrant checkpointing while the model trains: nothing would
      reach the block. Freeze by ``requires_grad_(False)``, checkpoint with ``use_reentrant=False``;
    - run under ``nn.DataParallel``;
    - shard ``model.<name>`` as a whole, which is never called: ``fully_shard`` the model, or the parts in it.

    Args:
        model: whose ``forward`` calls the named modules.
        places: modality -> path of a module as in ``named_modules``, batch first, whose output is the representation
            ``[B, d]`` or ``[B, T, d]``. Where the output holds more than one that could be it (tuples, mappings,
            dataclasses, ``ModelOutput``): ``(path, field)``, a key or an index. Everything else in it passes by.
        dims: modality -> d; where left out, what the module says of itself (``config.hidden_size``, or the width of
            the last layer in it).
        features: width inside of the learners, and of what is aligned where widths differ; 0 for the largest d.
        masks: modality -> name of an argument of the model's ``forward``: ``[B, T]``, 0 or False where a sequence is
            padded, or its lengths ``[B]``. What is padded passes unchanged and takes part in nothing.
        presence: modality -> name of an argument of ``forward``, bool ``[B]``: rows that have the modality.
        task_heads: outputs of a head per modality on its uni-modal features and of one on all paired features; 0 for
            none. They train the features, as PgM does, and go nowhere else.
        task_loss: ``(outputs [n, task_heads], target [n, ...]) -> scalar``, of the heads.
        align_temperature: of the contrastive alignment of paired features, over all ranks, in training; None for none.
        loss_weights: changes of :data:`LOSS_WEIGHTS`.
        may_skip: a forward may leave named modules out; without it :func:`collect_losses` says which it missed.
        name: attribute of ``model`` that holds what is new.
        **block: ``gate``, ``temperature``, ``chunk``, ``uni_learner``, ``paired_learner``, ``dropout`` and
            ``reconstruct_through`` of :class:`PgMBlock`.

    Raises:
        ConfigError: paths, names or values that do not fit, naming them and what would.

    The forward then raises ValueError where an output is no such representation, and RuntimeError where a named module
    ran twice or without gradients.

    PgM: Hu et al., ACM MM 2025, arXiv 2507.11661; formulas and losses are our reconstruction from its abstract.
    """
    _check_model(model, name)
    unknown = sorted(set(block) - set(BLOCK_OPTIONS))
    if unknown:
        raise ConfigError(f"attach got {', '.join(unknown)}; a block takes {', '.join(BLOCK_OPTIONS)} here")
    check_size("task_heads", task_heads, 0)
    check_size("features", features, 0)
    if align_temperature is not None:
        check_number("align_temperature", align_temperature, POSITIVE, ", or None")
    paths, fields = _paths_and_fields(places)
    modules = _find_modules(model, paths)
    order, any_name = _arguments(model)
    for kind, given, form in (
        ("masks", masks, """{"text": "text_mask"}"""),
        ("presence", presence, """{"text": "has_text"}"""),
        ("dims", dims, """{"text": 128}"""),
    ):
        if given is not None:
            check_mapping(kind, given, form)
        for m, value in (given or {}).items():
            if m not in paths:
                raise ConfigError(f"{kind} name {m!r}, must be of {', '.join(paths)}")
            if kind == "dims" and value is not None:
                check_size(f"the width of {m!r} in dims", value)
            elif kind != "dims" and not any_name and value not in order:
                raise ConfigError(f"{kind} of {m} is {value!r}, which forward does not take: {', '.join(order)}")
    if loss_weights is not None:
        check_mapping("loss_weights", loss_weights, str(LOSS_WEIGHTS))
    weights = {**LOSS_WEIGHTS, **(loss_weights or {})}
    if set(weights) != set(LOSS_WEIGHTS):
        raise ConfigError(f"loss_weights are of {', '.join(LOSS_WEIGHTS)}; got {', '.join(loss_weights or ())}")
    for kind, weight in weights.items():
        check_number(f"the weight of {kind!r} in loss_weights", weight, Range())
    widths = {m: (dims or {}).get(m) or _width(m, module) for m, module in modules.items()}
    features = features or max(widths.values())
    attached = Attached(
        {
            m: PgMBlock({m: d}, features, align_temperature=None, **block, **_factory(modules[m], model))
            for m, d in widths.items()
        },
        Crossing(
            widths,
            features,
            align_temperature if block.get("paired_learner", True) else None,
            task_heads,
            block.get("uni_learner", True),
            block.get("paired_learner", True),
            block.get("dropout", 0.0),
            **_factory(model, model),
        ),
        paths,
        fields,
        {"mask": dict(masks or {}), "presence": dict(presence or {})},
        order,
        task_loss if task_heads else None,
        weights,
        may_skip,
    )
    attached.train(model.training)
    attached.hook(model, modules)
    model.add_module(name, attached)
    return model


def collect_losses(model: nn.Module, target: Tensor | None = None) -> dict[str, Tensor]:
    """PgM's losses of the last forward of a model that :func:`attach` got, weighed: add their sum to your own loss.

    ``reconstruction/<modality>``; ``align`` in training; with task heads ``uni/<modality>`` and ``paired``. They hold
    the forward's graph, as its outputs do. A batch without rows has losses of 0, and without a label (all -100) its
    heads do. Under DistributedDataParallel and ``fully_shard`` losses are of this rank's rows (``align`` of all
    ranks'), to be averaged by the backward pass as your own loss is.

    Args:
        model: it, or what wraps it.
        target: what the heads are to say, row by row ``[B, ...]``, as ``task_loss`` takes it.

    Raises:
        ConfigError: nothing is attached to the model, or more than one, heads without a target, or a target that the
            default ``task_loss`` does not take.
        ConfigError that is a RuntimeError too: its forward has not run to its end, or did not call a named module.
    """
    _check_is_module(model)
    found = [module for module in model.modules() if isinstance(module, Attached)]
    if len(found) != 1:
        name = type(model).__name__
        if not found:
            raise ConfigError(
                f"nothing is attached to this {name}, or detach took it away: call pgm_fast.nn.attach first"
            )
        raise ConfigError(f"attach got {len(found)} modules in this {name}, must be one: collect each one's losses")
    return found[0].losses(target)


def detach(model: nn.Module) -> nn.Module:
    """Takes away what :func:`attach` put into ``model``, which is then as before, but for what it has learned.

    Raises:
        ConfigError: nothing is attached to this module.
    """
    for name, module in list(model.named_children()):
        if isinstance(module, Attached):
            module.unhook(model)
            delattr(model, name)
            return model
    raise ConfigError(f"nothing is attached to this {type(model).__name__}: detach takes the module that attach got")


def _check_is_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is of the class {type(model).__name__}, must be a torch.nn.Module")


def _paths_and_fields(places: Mapping[str, Place]) -> tuple[dict[str, str], dict[str, str | int | None]]:
    check_mapping("places", places, _PLACES)
    paths, fields = {}, {}
    for m, place in places.items():
        path, field = (place, None) if isinstance(place, str) else _pair(m, place)
        paths[m], fields[m] = path, field
    return paths, fields


def _pair(modality: str, place: object) -> tuple[str, str | int]:
    if isinstance(place, (tuple, list)) and len(place) == 2 and isinstance(place[0], str):
        return place[0], place[1]
    raise ConfigError(f"the place of {modality} is {place!r}, must be the path of a module or (path, field)")


def _check_model(model: nn.Module, name: str) -> None:
    _check_is_module(model)
    wrapped = isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(model, "_orig_mod")
    if wrapped or any(hasattr(p, "placements") for p in model.parameters()):
        raise ConfigError(
            f"{type(model).__name__} is wrapped or sharded already: attach to the model itself, then wrap it"
        )
    if isinstance(model, (nn.Sequential, nn.ModuleList)):
        raise ConfigError(
            f"{type(model).__name__} calls everything in it, and would call what attach adds: attach to a module that "
            "holds it"
        )
    for path, module in model.named_modules():
        if module._compiled_call_impl is not None:
            raise ConfigError(
                f"{path or 'the model'} is compiled already, which hooks do not reach: attach, then compile"
            )
        if isinstance(module, Attached):
            raise ConfigError(f"PgM is attached already, as {path!r}: detach it first")
    if not isinstance(name, str) or not name.isidentifier() or hasattr(model, name):
        raise ConfigError(f"name is {name!r}, must be one that no attribute of {type(model).__name__} has")


def _find_modules(model: nn.Module, paths: Mapping[str, str]) -> dict[str, nn.Module]:
    if len(paths) < 2:
        raise ConfigError(f"places name {', '.join(paths) or 'no modality'}, must be of two modalities or more")
    known = dict(model.named_modules())
    for m, path in paths.items():
        if not path or path not in known:
            near = difflib.get_close_matches(path, list(known), n=3, cutoff=0.3)
            raise ConfigError(
                f"{path!r} of {m} is no module in {type(model).__name__}; near it: {', '.join(near) or 'none'}"
            )
        if isinstance(known[path], (nn.ModuleList, nn.ModuleDict)):
            raise ConfigError(f"{path} is a container that is never called: name the module in it that makes {m}")
        if getattr(known[path], "batch_first", True) is False:
            raise ConfigError(f"{path} has batch_first=False: PgM takes [B, T, d]; make it with batch_first=True")
    for m, path in paths.items():
        for n, other in paths.items():
            if n != m and (known[other] is known[path] or path.startswith(other + ".")):
                raise ConfigError(
                    f"{path!r} of {m} is, or lies in, {other!r} of {n}: name a module of its own for each"
                )
    return {m: known[path] for m, path in paths.items()}


def _arguments(model: nn.Module) -> tuple[list[str], bool]:
    """Names that forward takes, in their order, and whether it takes any other."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _width(modality: str, module: nn.Module) -> int:
    found = [getattr(getattr(module, "config", None), "hidden_size", None)]
    if not isinstance(found[0], int):
        found = [_width_of(part) for part in module.modules()]
    found = [width for width in found if isinstance(width, int)]
    if not found:
        raise ConfigError(f"the width of {modality}'s representation is not known: say it by dims={{{modality!r}: d}}")
    return found[-1]


def _width_of(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.RNNBase):
        return (layer.proj_size or layer.hidden_size) * (1 + layer.bidirectional)
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1]
    named = (getattr(layer, name, None) for name in ("out_features", "embedding_dim", "num_features"))
    return next((width for width in named if width is not None), None)


def _factory(module: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Device and dtype of a module's parameters, or else the model's."""
    for parameters in (module.parameters(), model.parameters()):
        for p in parameters:
            if p.is_floating_point():
                return {"device": p.device, "dtype": p.dtype}
    return {}
