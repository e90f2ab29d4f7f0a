"""PgM's unit for existing models: modality representations in, modality representations and losses out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..ops.checks import check_tensor
from ..ops.row_weights import equal_weights
from .arguments import POSITIVE, SHARE, check_dtype, check_mapping, check_number, check_size
from .contrastive import cross_modal_info_nce
from .decoder import UniPairedDecoder
from .learners import ResidualLearners, UniPairedLearners
from .partitioner import ModalPartitioner
from .parts import mark_part, modality_dict
from .weights import among

__all__ = ["BlockOutput", "PgMBlock"]


@dataclass
class BlockOutput:
    """Everything :meth:`PgMBlock.run` knows. Leading dimensions ``...`` as in its input, absent modalities hold zeros.

    Attributes:
        representations: modality -> ``[..., out_dims[m]]``.
        uni: modality -> f^u ``[..., features]``; empty without uni-modal learners.
        uni_alone: the same as if every other modality were absent: identical to ``uni`` but with
            ``condition_on_others``.
        alone: ``representations`` as if every other modality were absent; empty unless asked for.
        paired: modality -> f^p ``[..., features]``; empty without paired learners.
        shares: modality -> ``[..., K]`` as ``ModalPartitioner.shares``; empty unless asked for.
        losses: ``reconstruction/<modality>`` and ``align``, scalars.
    """

    representations: dict[str, Tensor] = field(default_factory=dict)
    uni: dict[str, Tensor] = field(default_factory=dict)
    uni_alone: dict[str, Tensor] = field(default_factory=dict)
    alone: dict[str, Tensor] = field(default_factory=dict)
    paired: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)


_DIMS = """{"text": 128, "audio": 64}"""

# so that what wraps a module finds the tensors in it (FSDP2's hooks on outputs, torch.func)
torch.export.register_dataclass(BlockOutput)


class PgMBlock(nn.Module):
    """Partition -> uni-modal and paired learners -> decode, for every modality of a model.

    It stands between a model's encoders and whatever reads their outputs, and keeps their widths::

        block = PgMBlock({"text": 128, "audio": 64})
        representations, losses = block({"text": text, "audio": audio})
        logits = classifier(torch.cat(list(representations.values()), dim=-1))
        loss = cross_entropy(logits, y) + 0.1 * sum(losses.values())

    To train the uni-modal learners by the task, as PgM does, use :meth:`run`, which also returns their features, and
    add a head and a loss on ``out.uni_alone[m]`` for each modality.

    PgM: Hu et al., ACM MM 2025, arXiv 2507.11661; formulas and losses are our reconstruction from its abstract.

    Args:
        dims: modality -> width of its representation.
        features: width of the uni-modal and the paired features, 0 for the largest of ``dims``.
        gate, temperature, chunk: see :class:`ModalPartitioner`.
        condition_on_others: gates also see the mean representation of the other present modalities; all ``dims`` must
            be equal. ``uni_alone`` is then computed a second time with no context, so that nothing of the others
            reaches it.
        uni_learner, paired_learner: False leaves a learner out.
        decoder: False returns ``[f^u; f^p]`` instead of a rebuilt representation.
        dropout: inside the learners.
        align_temperature: of the contrastive alignment of paired features; None for no such loss.
        reconstruct_through: the reconstruction loss also moves its target.
        by_shares: see :class:`ModalPartitioner`.
        identity_start: the learners are residual and start as nothing, decoders start as the mean of both sides, and
            what the gates hold back passes by: at first the block returns its input. Learners' features then have the
            width of their modality, ``features`` is the width inside of them.
        device, dtype: of the parameters.

    Raises:
        ConfigError: values that do not fit, naming them.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        features: int = 0,
        *,
        gate: str = "boundary",
        temperature: float = 1.0,
        chunk: int = 1,
        condition_on_others: bool = False,
        uni_learner: bool = True,
        paired_learner: bool = True,
        decoder: bool = True,
        dropout: float = 0.0,
        align_temperature: float | None = 0.1,
        reconstruct_through: bool = False,
        by_shares: bool = False,
        identity_start: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_mapping("dims", dims, _DIMS)
        if not dims:
            raise ConfigError(f"PgMBlock got no modalities, needs at least one: dims={_DIMS}")
        for m, width in dims.items():
            check_size(f"the width of {m!r} in dims", width)
        check_size("features", features, 0)
        check_number("dropout", dropout, SHARE)
        check_dtype(dtype)
        if condition_on_others and (len(dims) < 2 or len(set(dims.values())) > 1):
            raise ConfigError(f"condition_on_others needs two modalities or more of one width, got {dict(dims)}")
        if align_temperature is not None:
            check_number("align_temperature", align_temperature, POSITIVE, ", or None")
        features = features or max(dims.values())
        factory = {"device": device, "dtype": dtype}
        self.condition_on_others = condition_on_others
        self.align_temperature = align_temperature
        self.reconstruct_through = reconstruct_through
        self.partitioners = modality_dict(
            {
                m: ModalPartitioner(d, gate, temperature, condition_on_others, chunk, by_shares, **factory)
                for m, d in dims.items()
            }
        )
        self.identity_start = identity_start
        widths = dict(dims) if identity_start else dict.fromkeys(dims, features)
        if identity_start:
            learners = {
                m: ResidualLearners(d, features, dropout, uni_learner, paired_learner, **factory)
                for m, d in dims.items()
            }
        else:
            learners = {
                m: UniPairedLearners(d, features, dropout, uni_learner, paired_learner, **factory)
                for m, d in dims.items()
            }
        self.learners = modality_dict(learners)
        self.decoders = None
        if decoder:
            self.decoders = modality_dict(
                {
                    m: UniPairedDecoder(
                        d, widths[m] * uni_learner, widths[m] * paired_learner, identity_start, **factory
                    )
                    for m, d in dims.items()
                }
            )
        self.align_projections = None
        if paired_learner and align_temperature is not None and len(set(widths.values())) > 1:
            projections = {
                m: mark_part(nn.Linear(w, features, bias=False, **factory), part="paired") for m, w in widths.items()
            }
            self.align_projections = modality_dict(projections)
        for group in (self.partitioners, self.learners, self.decoders or {}, self.align_projections or {}):
            for m, module in group.items():
                mark_part(module, modality=m)
        self.features = widths
        self.out_dims = dict(dims) if decoder else {m: w * (uni_learner + paired_learner) for m, w in widths.items()}

    def forward(
        self,
        representations: Mapping[str, Tensor],
        presence: Mapping[str, Tensor] | None = None,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        modality_weight: Mapping[str, Tensor] | None = None,
        shares: bool = False,
        alone: bool = False,
        everything: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]] | BlockOutput:
        """``(representations, losses)``: modality -> ``[..., out_dims[m]]``, and named scalars to weigh and add.

        Losses are ``reconstruction/<modality>`` (with a decoder) and ``align`` (with paired learners and two modalities
        or more). Under ``torch.distributed`` the alignment has all ranks' rows as negatives, so every rank must call
        with the same number of rows.

        Args:
            representations: modality -> ``[..., dims[m]]``, the same leading dimensions for all; one sample may have
                none.
            presence: modality -> bool ``[...]`` for modalities that may be missing; what stands there is then ignored.
            weight: ``[...]``, weight of each row in the losses; None for the mean.
            mask: bool ``[...]``, False where a padded sequence has no step: as if every modality were absent there, and
                no part of the losses, whatever ``weight`` says of it.
            modality_weight: modality -> ``[...]``, weight of each row in that modality's reconstruction loss,
                ``weight`` where missing; None for ``weight`` over the rows that have the modality.
            shares, alone: also compute these fields of :class:`BlockOutput`.
            everything: return a :class:`BlockOutput`.

        Raises:
            TypeError: a representation that is no floating-point tensor, or float64 where the block is not; it names
                the modality.
            ValueError: modalities that are not the block's, or shapes that do not fit; it names the modality.
        """
        presence = {} if presence is None else presence
        self._check(representations, presence, weight, mask)
        presence, weight = _with_mask(self.partitioners, presence, weight, mask)
        if modality_weight is None:
            modality_weight = {} if weight is None else {m: among(weight, p) for m, p in presence.items()}
        out = BlockOutput()
        inputs = {m: _hide(representations[m], presence.get(m)) for m in self.partitioners}
        for m, h in inputs.items():
            context = self._context(m, inputs, presence) if self.condition_on_others else None
            made = self.partitioners[m](h, context, shares)
            parts = made[:2]
            if shares:
                out.shares[m] = made[2]
            features = self.learners[m](*parts)
            decoded, loss = self._decode(m, h, parts, features, modality_weight.get(m, weight))
            if loss is not None:
                out.losses[f"reconstruction/{m}"] = loss
            lone_features, lone_decoded = features, decoded
            if self.condition_on_others:
                lone_parts = self.partitioners[m](h)
                lone_features = self.learners[m](*lone_parts)
                lone_decoded = self._decode(m, h, lone_parts, lone_features, None)[0] if alone else None
            for found, x in (
                (out.representations, decoded),
                (out.uni, features[0]),
                (out.paired, features[1]),
                (out.uni_alone, lone_features[0]),
                (out.alone, lone_decoded if alone else None),
            ):
                if x is not None:
                    found[m] = _hide(x, presence.get(m))
        if len(out.paired) > 1 and self.align_temperature is not None:
            out.losses["align"] = cross_modal_info_nce(
                {m: _rows(self._aligned(m, f)) for m, f in out.paired.items()},
                self.align_temperature,
                None if weight is None else weight.flatten(),
                {m: p.flatten() for m, p in presence.items()},
            )
        return out if everything else (out.representations, out.losses)

    def run(self, *args, **kwargs) -> BlockOutput:
        """:meth:`forward` with ``everything``: also the learners' features, and what else was asked for."""
        return self(*args, **kwargs, everything=True)

    def _check(
        self,
        representations: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        weight: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        known = ", ".join(self.partitioners)
        if not isinstance(representations, Mapping):
            got = type(representations).__name__
            raise TypeError(f"representations must be a mapping from each of {known} to a tensor, got a {got}")
        if set(representations) != set(self.partitioners):
            raise ValueError(
                f"representations must be of {known}; got {', '.join(map(str, representations)) or 'none'}"
            )
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)  # quantised layers have none
        for m, partitioner in self.partitioners.items():
            h = representations[m]
            if not isinstance(h, Tensor) or not h.is_floating_point():
                check_tensor(f"the representation of {m}", h)
            if h.ndim == 0 or h.shape[-1] != partitioner.dim:
                shape = list(h.shape)
                raise ValueError(f"the representation of {m} must have shape [..., {partitioner.dim}], got {shape}")
            if dtype not in (None, h.dtype) and torch.float64 in (dtype, h.dtype):
                # autocast leaves float64 as it is, so no layer takes it beside another dtype
                way = "double()" if h.dtype == torch.float64 else f"to({h.dtype})"
                raise TypeError(
                    f"the representation of {m} is {h.dtype} and the block {dtype}: pass {m}.to({dtype}), or make the "
                    f"block {way}"
                )
        leading = {m: list(h.shape[:-1]) for m, h in representations.items()}
        rows = next(iter(leading.values()))
        if any(shape != rows for shape in leading.values()):
            raise ValueError(
                "representations must have the same leading dimensions, got "
                + ", ".join(f"{m} {[*shape, self.partitioners[m].dim]}" for m, shape in leading.items())
                + ": pool or align the sequences to one length first"
            )
        if not isinstance(presence, Mapping):
            got = type(presence).__name__
            raise TypeError(f"presence must be a mapping from some of {known} to a bool tensor, got a {got}")
        for m, present in presence.items():
            if m not in self.partitioners:
                raise ValueError(f"presence must be of some of {known}; got {m}")
            _check_rows(f"presence of {m}", present, rows, torch.bool)
        if mask is not None:
            _check_rows("mask", mask, rows, torch.bool)
        if weight is not None:
            _check_rows("weight", weight, rows)

    def _aligned(self, modality: str, paired: Tensor) -> Tensor:
        return paired if self.align_projections is None else self.align_projections[modality](paired)

    def _decode(
        self,
        modality: str,
        h: Tensor,
        parts: tuple[Tensor, Tensor],
        features: tuple[Tensor | None, Tensor | None],
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        learned = [f for f in features if f is not None]
        if self.decoders is None:
            return torch.cat(learned, dim=-1), None
        around = None
        if self.identity_start:
            around = h, [part for part, f in zip(parts, features, strict=True) if f is not None]
        return self.decoders[modality](*features, h if self.reconstruct_through else h.detach(), weight, around)

    @staticmethod
    def _context(modality: str, inputs: Mapping[str, Tensor], presence: Mapping[str, Tensor]) -> Tensor:
        """Mean of the other present modalities, zeros where there is none."""
        others = [m for m in inputs if m != modality]
        first, *more = (inputs[m] for m in others)
        total = sum(more, first)
        count = sum(presence[m].to(total.dtype) if m in presence else 1.0 for m in others)
        if not isinstance(count, Tensor):
            return total / count
        return total / count.clamp(min=1).unsqueeze(-1)


def _with_mask(
    modalities: Iterable[str], presence: Mapping[str, Tensor], weight: Tensor | None, mask: Tensor | None
) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """Presence and row weights, where ``mask`` is False nothing; weights are given wherever anything may be missing."""
    if mask is not None:
        presence = {m: mask & presence[m] if m in presence else mask for m in modalities}
    if weight is None:
        if not presence:
            return presence, None
        some = mask if mask is not None else next(iter(presence.values()))
        weight = equal_weights(some.shape, some.numel(), device=some.device)
        return presence, weight if mask is None else among(weight, mask)
    return presence, weight if mask is None else weight * mask


def _check_rows(name: str, x: Tensor, rows: list[int], dtype: torch.dtype | None = None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if list(x.shape) != rows or (dtype is not None and x.dtype != dtype):
        kind = "one number" if dtype is None else str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} must hold {kind} per row, {rows}, got {x.dtype} {list(x.shape)}")


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _hide(x: Tensor, present: Tensor | None) -> Tensor:
    return x if present is None else x.masked_fill(~present.unsqueeze(-1), 0.0)
