"""One modality's partitioner, learners and decoder as one op, where that is the same and pays."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops
from .decoder import UniPairedDecoder
from .fused import are_plain, are_small, keep_factors, serves_small_batches
from .learners import UniPairedLearners
from .partitioned_linear import PartitionedLinear
from .partitioner import ModalPartitioner

__all__ = ["fused_block"]


def fused_block(
    h: Tensor,
    partitioner: ModalPartitioner,
    learners: UniPairedLearners,
    decoder: UniPairedDecoder,
    weight: Tensor | None,
    through: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """``(f^u, f^p, decoded, loss)`` of these modules by :func:`pgm_fast.ops.uni_paired_block`, None where they are to
    be called one by one.

    They are called one by one on devices other than the CPU, in 16-bit types and under autocast, for large batches or
    wide layers, with a part left out or a gate that the op does not know, and wherever somebody looks inside: a module
    with a hook, or one that was put in another's place.
    """
    if not serves_small_batches(h):
        return None
    if partitioner.gate not in ("single", "dual") or partitioner.condition_on_others:
        return None
    if learners.split is None or decoder.uni_weight is None or decoder.paired_weight is None:
        return None
    split = learners.split
    linears = partitioner.projection, split.uni, split.paired, learners.uni, learners.paired
    norms = learners.uni_norm, learners.paired_norm
    if not (
        are_plain(nn.Linear, *linears)
        and are_plain(nn.LayerNorm, *norms)
        and are_plain(nn.Dropout, learners.dropout)
        and are_plain(ModalPartitioner, partitioner)
        and are_plain(PartitionedLinear, split)
        and are_plain(UniPairedLearners, learners)
        and are_plain(UniPairedDecoder, decoder)
        and are_small(*linears)
        and _agree(partitioner, learners)
        and all(part.weight is not None and part.bias is not None for part in (*linears, *norms))
    ):
        return None
    return ops.uni_paired_block(
        h,
        partitioner.projection.weight,
        partitioner.projection.bias,
        _parameters(split.uni, learners.uni, learners.uni_norm, decoder.uni_weight),
        _parameters(split.paired, learners.paired, learners.paired_norm, decoder.paired_weight),
        decoder.bias,
        dual=partitioner.gate == "dual",
        temperature=partitioner.temperature,
        # in the order in which the learners draw theirs: a seed gives the same masks either way
        keep_uni=keep_factors(learners.dropout, h, split.uni.out_features),
        keep_paired=keep_factors(learners.dropout, h, split.paired.out_features),
        row_weight=weight,
        through=through,
        eps=learners.uni_norm.eps,
    )


def _agree(partitioner: ModalPartitioner, learners: UniPairedLearners) -> bool:
    """Whether settings that several modules hold, and that the op takes once, are still the same in all of them."""
    split = learners.split
    return (
        split.activation == "gelu"
        and split.temperature == partitioner.temperature
        and learners.uni_norm.eps == learners.paired_norm.eps
    )


def _parameters(first: nn.Linear, second: nn.Linear, norm: nn.LayerNorm, decoder: Tensor) -> ops.LearnerParameters:
    return ops.LearnerParameters(first.weight, first.bias, second.weight, second.bias, norm.weight, norm.bias, decoder)
