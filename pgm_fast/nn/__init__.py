"""Modules that replace parts of a model of your own, or make up a whole one. They need torch alone."""

from .attach import attach, collect_losses, detach
from .block import BlockOutput, PgMBlock
from .calibration import Calibration
from .contrastive import cross_modal_info_nce
from .decoder import UniPairedDecoder
from .distillation import cross_modal_duc
from .dropout import Dropout
from .encoders import GRUEncoder, MLPEncoder, TransformerEncoder, make_encoder
from .gate import InteractionGate
from .information import information_targets, share_error
from .interaction import PairedInteraction
from .learners import ResidualLearners, UniPairedLearners
from .linear import IdentityLinear, QuietLinear
from .mlp import MLP
from .partitioned_linear import PartitionedLinear
from .partitioner import ModalPartitioner
from .parts import PARTS, SHARED, mark_part, modality_dict, parameter_parts
from .variational import Variational, VariationalLayer

__all__ = [
    "MLP",
    "PARTS",
    "SHARED",
    "BlockOutput",
    "Calibration",
    "Dropout",
    "GRUEncoder",
    "IdentityLinear",
    "InteractionGate",
    "MLPEncoder",
    "ModalPartitioner",
    "PairedInteraction",
    "PartitionedLinear",
    "PgMBlock",
    "QuietLinear",
    "ResidualLearners",
    "TransformerEncoder",
    "UniPairedDecoder",
    "UniPairedLearners",
    "Variational",
    "VariationalLayer",
    "attach",
    "collect_losses",
    "cross_modal_duc",
    "cross_modal_info_nce",
    "detach",
    "information_targets",
    "make_encoder",
    "mark_part",
    "modality_dict",
    "parameter_parts",
    "share_error",
]
