"""The ops: one file each, with its schema, checks, fake, derivative and plain PyTorch reference."""

from .gated_mixture import gated_mixture, gated_mixture_loss
from .gaussian_sample_kl import gaussian_sample_kl
from .info_nce import info_nce
from .partition import partition
from .partition_dual import partition_dual
from .partition_share import partition_share
from .partitioned_linear import partitioned_linear
from .reconstruction import reconstruction

__all__ = [
    "gated_mixture",
    "gated_mixture_loss",
    "gaussian_sample_kl",
    "info_nce",
    "partition",
    "partition_dual",
    "partition_share",
    "partitioned_linear",
    "reconstruction",
]
