"""The systems: a model with its losses and its stages of training, behind one contract."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..data.feature_set import DataSpec
from ..errors import ConfigError, did_you_mean
from .base import HeldOut, Method, ModelConfig, Output, Stage
from .baselines import BaselineConfig, Ensemble, Joint, Unimodal
from .dimml import DIMML, DIMMLConfig
from .dmil import DMIL, DMILConfig
from .mcr import MCR, MCRConfig
from .mla import MLA, MLAConfig
from .mmpareto import MMPareto, MMParetoConfig
from .ogm import OGM, OGMConfig
from .pgm import PgM, PgMConfig
from .pretrained import Pretrained, PretrainedConfig
from .umt import UMT, UMTConfig

__all__ = [
    "METHODS",
    "MCRConfig",
    "MLAConfig",
    "MMParetoConfig",
    "BaselineConfig",
    "DIMMLConfig",
    "DMILConfig",
    "HeldOut",
    "Method",
    "ModelConfig",
    "OGMConfig",
    "Output",
    "PgMConfig",
    "PretrainedConfig",
    "Stage",
    "UMTConfig",
    "build",
]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (PgM, DIMML, DMIL, Unimodal, Joint, Ensemble, Pretrained, UMT, OGM, MLA, MMPareto, MCR)
}


def build(
    name: str, spec: DataSpec, model: ModelConfig, config, encoders: Mapping[str, nn.Module] | None = None
) -> Method:
    """The method called ``name`` for data like ``spec``.

    Args:
        name: a key of :data:`METHODS`.
        spec: modalities, task and number of outputs.
        model: the sizes shared by all methods.
        config: an instance of ``METHODS[name].config_class``.
        encoders: modality -> module in place of the built-in encoder, see :class:`~pgm_fast.methods.base.Method`.

    Raises:
        ConfigError: unknown name, a config of another method, or values that do not fit the data.
    """
    if name not in METHODS:
        raise ConfigError(f"method is {name!r}, must be one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    method = METHODS[name]
    if not isinstance(config, method.config_class):
        raise ConfigError(
            f"method {name} takes a {method.config_class.__name__}, got {type(config).__name__}: pass "
            f"pgm_fast.methods.{method.config_class.__name__}()"
        )
    return method(spec, model, config, encoders)
