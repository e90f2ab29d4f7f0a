"""What attach puts into a model: hooks behind the named modules, and what takes more than one modality."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from ..errors import ConfigError
from ..ops.tracing import surely
from .contrastive import cross_modal_info_nce
from .mlp import MLP
from .padding import masked_mean, valid_steps
from .parts import SHARED, has_mark, mark_part, modality_dict, unmark

if TYPE_CHECKING:
    from .block import PgMBlock

__all__ = ["Attached", "Crossing"]

IGNORED = -100  # the label of a row without one, as torch has it
PAIRED = "paired"  # among the heads' outputs, which have the names of modalities


class Crossing(nn.Module):
    """What takes features of more than one modality, and the heads: every row of them once per sample."""

    def __init__(
        self,
        widths: Mapping[str, int],
        features: int,
        align_temperature: float | None,
        outputs: int,
        uni: bool,
        paired: bool,
        dropout: float,
        **factory: Any,
    ):
        super().__init__()
        self.align_temperature = align_temperature
        self.projections = self.heads = self.paired_head = None
        if align_temperature is not None and len(set(widths.values())) > 1:
            self.projections = modality_dict(
                {m: mark_part(nn.Linear(d, features, bias=False, **factory), m, "paired") for m, d in widths.items()}
            )
        if outputs and uni:
            self.heads = modality_dict(
                {m: mark_part(MLP(d, features, outputs, dropout, **factory), m, "head") for m, d in widths.items()}
            )
        if outputs and paired:
            total = sum(widths.values())
            self.paired_head = mark_part(MLP(total, features, outputs, dropout, quiet=True, **factory), SHARED, "head")

    def forward(
        self, uni: Mapping[str, Tensor], paired: Mapping[str, Tensor], present: Mapping[str, Tensor], every: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Outputs of the heads by modality and ``paired``, and the alignment.

        Args:
            uni, paired: modality -> ``[B, d]``.
            present: modality -> bool ``[B]`` where rows may lack it.
            every: all modalities are there; the paired head answers for nothing less.
        """
        parameter = next(self.parameters(), None)
        if parameter is not None:
            # what the model calls may be cast, or placed, otherwise; offloaded parameters are where their hooks say
            device = None if parameter.is_meta else parameter.device
            uni, paired = ({m: x.to(device, parameter.dtype) for m, x in of.items()} for of in (uni, paired))
        outputs = {}
        for m, head in (self.heads or {}).items():
            if m in uni:
                outputs[m] = head(uni[m])
        if self.paired_head is not None and every:
            known = [y.masked_fill(~present[m].unsqueeze(-1), 0) if m in present else y for m, y in outputs.items()]
            answer = self.paired_head(torch.cat(tuple(paired.values()), dim=-1))
            outputs[PAIRED] = answer + 0.5 * sum(known[1:], known[0]).detach() if known else answer
        align = None
        if self.align_temperature is not None and self.training and len(paired) > 1:
            aligned = paired
            if self.projections is not None:
                aligned = {m: self.projections[m](x) for m, x in paired.items()}
            align = cross_modal_info_nce(aligned, self.align_temperature, presence=present)
        return outputs, align


class NoLosses(ConfigError, RuntimeError):
    """A forward has left no losses to collect."""


@dataclasses.dataclass
class _Last:
    """What the last forward of a model found: masks and presence that it was given, and by modality what it made."""

    running: bool = False
    ended: bool = False
    trains: bool = False
    given: dict[str, dict[str, Tensor | None]] = dataclasses.field(default_factory=dict)
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    uni: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    paired: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    present: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    losses: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Attached(nn.ModuleDict):
    """The parts of PgM in a model, and what its last forward left. A dictionary, since it is never called itself."""

    blocks: Mapping[str, PgMBlock]  # a ModuleDict, which has no types of its own

    def __init__(self, blocks, crossing, paths, fields, arguments, order, task_loss, weights, may_skip):
        super().__init__({"blocks": modality_dict(blocks), "crossing": crossing})
        self.paths, self.fields = paths, fields
        self.arguments, self.order = arguments, order
        self.task_loss, self.weights, self.may_skip = task_loss, weights, may_skip
        self.handles: list = []
        self.marked: list[str] = []
        self.last = _Last()

    def __getstate__(self) -> dict[str, Any]:
        """Without what the last forward left, which neither copies nor files can hold."""
        return {**vars(self), "last": _Last()}

    def hook(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        for m, module in modules.items():
            if not has_mark(module):
                mark_part(module, m, "encoder")
                self.marked.append(self.paths[m])
            self.handles.append(module.register_forward_hook(partial(self.change, m)))
        if not has_mark(model):
            mark_part(model, SHARED, "head")
            self.marked.append("")
        self.handles.append(model.register_forward_pre_hook(self.begin, with_kwargs=True))
        self.handles.append(model.register_forward_hook(self.end))

    def unhook(self, model: nn.Module) -> None:
        for handle in self.handles:
            handle.remove()
        for path in self.marked:
            unmark(model.get_submodule(path))

    def begin(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if getattr(model, "_is_replica", False):
            # its hooks are those of the model that it is a copy of
            raise RuntimeError(
                "nn.DataParallel copies the model for every call, which hooks do not follow: use torchrun and "
                "DistributedDataParallel, or one device (CUDA_VISIBLE_DEVICES=0)"
            )
        given = {}
        for kind, names in self.arguments.items():
            given[kind] = {}
            for m, name in names.items():
                place = self.order.index(name) if name in self.order else len(args)
                given[kind][m] = args[place] if place < len(args) else kwargs.get(name)
        self.last = _Last(running=True, trains=torch.is_grad_enabled() and self.training, given=given)

    def change(self, m: str, module: nn.Module, args: tuple, output: Any) -> Any:
        """The output with the block's representation in the place of its own."""
        block, path, last = self.blocks[m], self.paths[m], self.last
        if last.running and last.trains and not torch.is_grad_enabled():
            raise RuntimeError(
                f"{path} ran without gradients while the model trains, so the block behind it would learn nothing: "
                "freeze it by requires_grad_(False) instead of torch.no_grad, or checkpoint with use_reentrant=False"
            )
        key, h = _find(output, self.fields[m], block.out_dims[m], m, path)
        present, valid = self.rows(m, h)
        x = h if torch.is_autocast_enabled(h.device.type) else h.to(next(block.parameters()).dtype)
        out = block({m: x}, everything=True, **self.row_weights(m, h, valid))
        made = out.representations[m]
        if made.dtype != h.dtype:
            # what a block adds in its own dtype, which is nothing at first
            made = h + (made - h.to(made.dtype)).to(h.dtype)
        if valid is not None:
            made = torch.where(valid.unsqueeze(-1), made, h)
        # a backward pass that runs this again, for a checkpoint, must find the same tensors
        uni, paired = ({n: _pooled(x, valid) for n, x in of.items()} for of in (out.uni, out.paired))
        if last.running:
            last.calls[m] = last.calls.get(m, 0) + 1
            last.uni.update(uni)
            last.paired.update(paired)
            last.losses.update(out.losses)
            if present is not None:
                last.present[m] = present
        return _put(output, key, made)

    def rows(self, m: str, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Which rows ``[B]``, and which steps of them ``h.shape[:-1]``, have the modality; None for all."""
        # what runs again in a backward pass has the masks of its forward, what is called by itself has none
        again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0
        given = {kind: of.get(m) for kind, of in self.last.given.items()} if self.last.running or again else {}
        present, mask = given.get("presence"), given.get("mask")
        rows, steps = h.shape[:1], h.shape[:-1]
        if present is not None and (present.dtype != torch.bool or present.shape != rows):
            raise ValueError(
                f"presence of {m} ({self.arguments['presence'][m]}) must be torch.bool {list(rows)}, got "
                f"{present.dtype} {list(present.shape)}"
            )
        valid = None
        if mask is not None and h.dim() == 3 and mask.dim() == 1 and mask.shape == rows:
            valid = valid_steps(h, mask)
        elif mask is not None:
            if mask.shape != steps:
                raise ValueError(
                    f"the mask of {m} ({self.arguments['mask'][m]}) has shape {list(mask.shape)}, its representation "
                    f"{list(h.shape)}: it must be {list(steps)}, or lengths {list(rows)} of sequences"
                )
            valid = mask.bool()
        if present is not None:
            around = present.reshape(-1, *[1] * (len(steps) - 1)).expand(steps)
            valid = around if valid is None else valid & around
        if valid is not None and valid.dim() > 1:
            present = valid.flatten(1).any(1)
        return present if valid is None or valid.dim() > 1 else valid, valid

    def row_weights(self, m: str, h: Tensor, valid: Tensor | None) -> dict[str, Any]:
        if valid is None:
            return {}
        if self.training:
            return {"mask": valid}
        # a rank may evaluate alone: the mean of its own rows asks nothing of the others
        weight = valid.float() / valid.sum().clamp(min=1)
        return {"presence": {m: valid}, "weight": weight, "modality_weight": {m: weight}}

    def end(self, model: nn.Module, args: tuple, output: Any) -> Any:
        last = self.last
        last.running = False
        twice = [f"{self.paths[m]} {count} times" for m, count in last.calls.items() if count > 1]
        if twice:
            raise RuntimeError(
                f"one forward called {', '.join(twice)}: PgM takes one representation of each modality per sample; "
                "attach to a module that is called once"
            )
        if torch.compiler.is_exporting():
            return None
        rows = {m: x.shape[0] for m, x in (last.uni or last.paired).items()}
        if any(count != next(iter(rows.values())) for count in rows.values()):
            raise ValueError(f"modalities must have the same rows, got {rows}: is the batch the first dimension?")
        every = len(last.calls) == len(self.paths)
        last.outputs, align = self["crossing"](last.uni, last.paired, last.present, every)
        if align is not None:
            last.losses["align"] = align
        last.ended = True
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        carried = [x for x in (*last.losses.values(), *last.outputs.values()) if x.requires_grad]
        return tree_map_only(Tensor, partial(_carry, carried), output)

    def losses(self, target: Tensor | None) -> dict[str, Tensor]:
        last = self.last
        if not last.ended:
            raise NoLosses(
                "the model that attach got has not run its forward to the end, so there are no losses: call the "
                "module itself, not its forward or parts of it, and collect afterwards"
            )
        skipped = [path for m, path in self.paths.items() if m not in last.calls]
        if skipped and not self.may_skip:
            raise NoLosses(
                f"the last forward did not call {', '.join(skipped)}: attach to modules that are called themselves, or "
                "say may_skip=True where a forward may do without"
            )
        if self.task_loss is not None and target is None:
            raise ConfigError("the task heads need what they are to say: collect_losses(model, target)")
        if target is not None and not isinstance(target, Tensor):
            raise ConfigError(f"target is a {type(target).__name__}, must be a tensor: pass torch.as_tensor(target)")
        found = dict(last.losses)
        if target is not None:
            unlabelled = _unlabelled(target) if self.task_loss is F.cross_entropy else None
            for m, outputs in last.outputs.items():
                loss = self.head_loss(outputs, target, last.present.get(m), unlabelled)
                found["paired" if m == PAIRED else f"uni/{m}"] = loss
        weighed = {}
        for name, loss in found.items():
            kind, _, modality = name.partition("/")
            weighed[name] = self.weights[kind] / (len(last.calls) if modality else 1) * loss
        return weighed

    def head_loss(self, outputs: Tensor, target: Tensor, present: Tensor | None, unlabelled: Tensor | None) -> Tensor:
        if target.shape[:1] != outputs.shape[:1]:
            raise ConfigError(
                f"target has shape {list(target.shape)}, must hold the {outputs.shape[0]} rows of the batch"
            )
        classifies = self.task_loss is F.cross_entropy
        if classifies:
            _check_classes(outputs, target)
        # rows without the modality have nothing to learn from; a batch of such rows alone gives 0
        if surely(outputs.shape[0] == 0) or (present is not None and not present.any()):
            return 0.0 * outputs.sum()
        if present is not None:
            outputs, target = outputs[present], target[present]
        if not classifies:
            return self.task_loss(outputs, target)
        return _cross_entropy(outputs, target, unlabelled if present is None else _unlabelled(target))


def _check_classes(outputs: Tensor, target: Tensor) -> None:
    """That ``cross_entropy`` takes this target; class numbers are not looked at."""
    if target.dim() == 1 and target.dtype in (torch.int64, torch.uint8):
        return
    if target.shape == outputs.shape and target.is_floating_point():
        return
    rows, count = outputs.shape
    raise ConfigError(
        f"target is {target.dtype} {list(target.shape)}, must be class numbers, torch.int64 [{rows}], or shares of the "
        f"classes, floating point [{rows}, {count}]: pass target.reshape(-1).long(), or give attach a task_loss for "
        "what else the heads are to say"
    )


def _unlabelled(target: Tensor) -> Tensor | None:
    """Whether no row has a label, on the device; None for a target whose rows all have one."""
    return (target == IGNORED).all() if target.dtype == torch.int64 else None


def _cross_entropy(outputs: Tensor, target: Tensor, unlabelled: Tensor | None) -> Tensor:
    """``F.cross_entropy``, and 0 where no row has a label."""
    try:
        loss = F.cross_entropy(outputs, target)
    except IndexError as error:  # of a CPU; other devices say it in their own way, when they are asked next
        raise ConfigError(
            f"target must hold classes of 0 to {outputs.shape[1] - 1}, as task_heads={outputs.shape[1]}, or "
            f"{IGNORED} in rows without a label; torch says: {error}"
        ) from None
    return loss if unlabelled is None else loss.masked_fill(unlabelled, 0.0)


class _Carry(torch.autograd.Function):
    """The output, which then also leads to ``others``; no gradient passes to them.

    DistributedDataParallel looks from the outputs for parameters that take part, and ``fully_shard`` brings parameters
    back when the backward pass reaches an output, which must be before it reaches ``others``. A copy: both forbid that
    one writes into views.
    """

    @staticmethod
    def forward(ctx, output: Tensor, *others: Tensor) -> Tensor:
        ctx.count = len(others)
        return output.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad, *[None] * ctx.count)


def _carry(others: Sequence[Tensor], output: Tensor) -> Tensor:
    return _Carry.apply(output, *others) if output.requires_grad and others else output


def _pooled(x: Tensor, valid: Tensor | None) -> Tensor:
    """One row per sample: the mean over valid steps."""
    if x.dim() < 3:
        return x
    x = x.flatten(1, -2)
    return x.mean(1) if valid is None else masked_mean(x, valid.flatten(1))


def _entries(output: Any) -> dict[Any, Any]:
    if isinstance(output, Tensor):
        return {None: output}
    if isinstance(output, Mapping):
        return dict(output.items())
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {}


def _find(output: Any, field: str | int | None, width: int, modality: str, path: str) -> tuple[Any, Tensor]:
    """Key of the representation in a module's output, and the representation."""
    entries = _entries(output)
    tensors = {key: x for key, x in entries.items() if isinstance(x, Tensor) and x.is_floating_point()}
    fitting = [key for key, x in tensors.items() if x.dim() > 1 and x.shape[-1] == width]
    if field is None and len(fitting) == 1:
        return fitting[0], tensors[fitting[0]]
    if field is not None and field in fitting:
        return field, tensors[field]
    shapes = {key: list(x.shape) for key, x in tensors.items()}
    seen = shapes.get(None) or ", ".join(f"{key!r} {shape}" for key, shape in shapes.items()) or type(output).__name__
    if len(fitting) > 1 and field is None:
        raise ValueError(
            f"{path} returned {seen}: say which its readers take, attach(model, {{{modality!r}: ({path!r}, "
            f"{fitting[0]!r})}})"
        )
    at = "" if field is None else f" at {field!r}"
    raise ValueError(
        f"{path} must return a representation [B, {width}] or [B, T, {width}]{at}, got {seen}: say its width by "
        f"dims={{{modality!r}: d}}, and its place by {modality!r}: (path, field)"
    )


def _put(output: Any, key: Any, new: Tensor) -> Any:
    if key is None:
        return new
    if isinstance(output, Mapping):
        return _mapping_like(output, {**output, key: new})
    if isinstance(output, (tuple, list)):
        entries = [new if i == key else x for i, x in enumerate(output)]
        return getattr(output, "_make", type(output))(entries)
    return dataclasses.replace(output, **{key: new})


def _mapping_like(mapping: Any, entries: dict[Any, Any]) -> Any:
    kind = type(mapping)
    return kind(**entries) if dataclasses.is_dataclass(mapping) else kind(entries)
