"""What all methods build in the same way and size: encoders of a batch, heads, fused inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.batch import Batch
from ..data.feature_set import DataSpec, ModalitySpec
from ..errors import ConfigError, did_you_mean
from ..nn.encoders import make_encoder
from ..nn.mlp import MLP
from ..nn.parts import mark_part, modality_dict
from ..nn.recompute import recomputed
from .base import ModelConfig

__all__ = ["Head", "build_encoders", "encode", "fuse", "fuse_only"]


def build_encoders(spec: DataSpec, model: ModelConfig, encoders: Mapping[str, nn.Module] | None) -> nn.ModuleDict:
    """One encoder per modality, the user's where there is one.

    Vectors always take the MLP, whatever ``model.encoder`` says: a recurrent or attention encoder has nothing to run
    over.

    Raises:
        ConfigError: ``encoders`` names no modality of the data, or ``model.encoder`` reads sequences and there are
            none.
    """
    encoders = dict(encoders or {})
    for name in encoders:
        if name not in spec.modalities:
            near = did_you_mean(name, spec.modalities)
            raise ConfigError(f"encoders name {name!r}{near}; the data has {', '.join(spec.modalities)}")
    own = [m for m in spec.modalities if m not in encoders]
    if own and model.encoder not in ("auto", "mlp") and not any(s.sequence for s in spec.modalities.values()):
        raise ConfigError(
            f"model.encoder is {model.encoder}, which reads sequences; {', '.join(own)} hold vectors: use auto or mlp"
        )
    modules = {}
    for m, s in spec.modalities.items():
        kind = "mlp" if not s.sequence else _auto(s) if model.encoder == "auto" else model.encoder
        if m in encoders:
            modules[m] = encoders[m]
        else:
            modules[m] = make_encoder(
                kind,
                s.dim,
                model.dim,
                hidden=model.hidden,
                layers=model.layers,
                heads=model.heads,
                dropout=model.dropout,
                per_step=spec.per_step,
                values=s.kind,
                projection=model.projection == "linear",
            )
        mark_part(modules[m], m, "encoder")
    return modality_dict(modules)


def _auto(modality: ModalitySpec) -> str:
    return "gru" if modality.kind == "features" else "resnet18"


def encode(encoders: Mapping[str, nn.Module], batch: Batch, spec: DataSpec, model: ModelConfig) -> dict[str, Tensor]:
    """modality -> ``[n, dim]``: a representation per row, zeros in rows where the modality is absent.

    With ``model.normalize`` it has zero mean and unit variance over its dimensions (LayerNorm without parameters, Ba et
    al. 2016).

    Raises:
        ConfigError: an encoder returned another shape.
    """
    dim = model.dim
    normalize = spec.task == "classification" if model.normalize is None else model.normalize
    encoded = {}
    for m, encoder in encoders.items():
        x = batch.inputs[m]
        given = (x, batch.lengths.get(m)) if spec.modalities[m].sequence else (x,)
        h = recomputed(encoder, *given) if model.recompute and torch.is_grad_enabled() else encoder(*given)
        wanted = (*x.shape[:2], dim) if spec.per_step else (x.shape[0], dim)
        if tuple(h.shape) != wanted:
            raise ConfigError(
                f"the encoder of {m} returned shape {list(h.shape)} for input {list(x.shape)}, must be {list(wanted)} "
                f"(model.dim is {dim})"
            )
        if batch.steps is not None:
            h = h.flatten(0, 1).index_select(0, batch.steps)
        if normalize and dim > 1:
            h = F.layer_norm(h, (dim,))
        if m in batch.presence:
            h = h.masked_fill(~batch.presence[m].unsqueeze(-1), 0.0)
        encoded[m] = h
    return encoded


class Head(MLP):
    """One hidden layer and an output: the same form and width wherever a method predicts or embeds."""

    def __init__(self, in_features: int, out_features: int, model: ModelConfig, modality: str):
        super().__init__(in_features, model.hidden, out_features, model.dropout)
        mark_part(self, modality, "head")


def fuse(representations: Mapping[str, Tensor]) -> Tensor:
    """``[n, sum of widths]``, in the order of the modalities."""
    return torch.cat(list(representations.values()), dim=-1)


def fuse_only(representations: Mapping[str, Tensor], modality: str) -> Tensor:
    """:func:`fuse` as if only one modality were present."""
    return torch.cat([x if m == modality else torch.zeros_like(x) for m, x in representations.items()], dim=-1)
