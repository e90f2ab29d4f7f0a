"""The ops: one file each, with its schema, checks, fake, derivative and plain PyTorch reference."""

from .certainty_weighted_logits import (
    CertaintyPrediction,
    certainty_weighted_logits,
    certainty_weighted_prediction,
)
from .duc_loss import duc_loss
from .effective_dimensions import EffectiveDimensions, effective_dimensions
from .gated_mixture import gated_mixture, gated_mixture_loss
from .gaussian_sample_kl import gaussian_sample_kl
from .grouped_partitioned_linear import grouped_partitioned_linear
from .info_nce import info_nce
from .mlp import mlp
from .partition import partition
from .partition_boundary import partition_boundary
from .partition_dual import partition_dual
from .partition_share import partition_share
from .partitioned_linear import partitioned_linear
from .reconstruction import reconstruction
from .registration import connect_host

__all__ = [
    "CertaintyPrediction",
    "EffectiveDimensions",
    "certainty_weighted_logits",
    "certainty_weighted_prediction",
    "duc_loss",
    "effective_dimensions",
    "gated_mixture",
    "gated_mixture_loss",
    "gaussian_sample_kl",
    "grouped_partitioned_linear",
    "info_nce",
    "mlp",
    "partition",
    "partition_boundary",
    "partition_dual",
    "partition_share",
    "partitioned_linear",
    "reconstruction",
]

connect_host()
