"""The uni-modal and the paired-modal learner of one modality."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .partitioned_linear import PartitionedLinear
from .partitioner import ModalPartitioner
from .parts import mark_part

__all__ = ["UniPairedLearners"]


class UniPairedLearners(nn.Module):
    """f^u = MLP_u(uni) and f^p = MLP_p(paired), two layers each, the first ones being the split projections.

    Args:
        dim: width of the representation.
        features: width of the learners, hidden and out.
        dropout: between the layers.
        temperature: of the gate.
        uni: False for no uni-modal learner.
        paired: False for no paired learner.

    Raises:
        ConfigError: neither learner.
    """

    def __init__(
        self,
        dim: int,
        features: int,
        dropout: float = 0.0,
        temperature: float = 1.0,
        uni: bool = True,
        paired: bool = True,
    ):
        super().__init__()
        if not (uni or paired):
            raise ConfigError("uni_learner and paired_learner are both off: keep at least one")
        self.split = None
        if uni and paired:
            self.split = PartitionedLinear(dim, features, features, activation="gelu", temperature=temperature)
        else:
            self.first = mark_part(nn.Linear(dim, features), part="uni" if uni else "paired")
        self.uni = mark_part(nn.Linear(features, features), part="uni") if uni else None
        self.paired = mark_part(nn.Linear(features, features), part="paired") if paired else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, h: Tensor, z: Tensor | None, partitioner: ModalPartitioner
    ) -> tuple[Tensor | None, Tensor | None]:
        """``(f^u, f^p)``, each ``[..., features]``, None for a learner that does not exist.

        Args:
            h: ``[..., dim]``.
            z: what ``partitioner.logits`` gave.
            partitioner: says how z splits h.
        """
        if self.split is None:
            uni, paired = partitioner.split(h, z)
            hidden = self.dropout(F.gelu(self.first(uni if self.paired is None else paired)))
            return (self.uni(hidden), None) if self.paired is None else (None, self.paired(hidden))
        if partitioner.gate == "single":
            u, p = self.split(h, z)
        else:
            u, p = self.split.from_parts(*partitioner.split(h, z))
        return self.uni(self.dropout(u)), self.paired(self.dropout(p))

    def uni_alone(self, h: Tensor, z: Tensor | None, partitioner: ModalPartitioner) -> Tensor:
        """f^u only, for logits that differ from those of the paired side."""
        uni, _ = partitioner.split(h, z)
        first = self.first(uni) if self.split is None else self.split.uni(uni)
        return self.uni(self.dropout(F.gelu(first)))
