"""Modules that replace parts of a model of your own, or make up a whole one. They need torch alone."""

from .block import BlockOutput, PgMBlock
from .contrastive import cross_modal_info_nce
from .decoder import UniPairedDecoder
from .distillation import cross_modal_duc
from .encoders import GRUEncoder, MLPEncoder, TransformerEncoder, make_encoder
from .gate import InteractionGate
from .interaction import PairedInteraction
from .learners import UniPairedLearners
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
    "GRUEncoder",
    "InteractionGate",
    "MLPEncoder",
    "ModalPartitioner",
    "PairedInteraction",
    "PartitionedLinear",
    "PgMBlock",
    "TransformerEncoder",
    "UniPairedDecoder",
    "UniPairedLearners",
    "Variational",
    "VariationalLayer",
    "cross_modal_duc",
    "cross_modal_info_nce",
    "make_encoder",
    "mark_part",
    "modality_dict",
    "parameter_parts",
]
