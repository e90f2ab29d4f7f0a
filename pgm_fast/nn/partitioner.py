"""The modal partitioner: which part of a representation is uni-modal, which is paired."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import ConfigError
from .arguments import POSITIVE, check_number, check_size
from .linear import QuietLinear
from .parts import mark_part

__all__ = ["GATES", "ModalPartitioner"]

GATES = ("boundary", "single", "dual", "sigmoid", "fixed", "none")
FOUR_MASSES = ("boundary", "dual")

WIDTH = 0.12  # of a boundary, in units of the representation's width
REACH = 1.3  # boundaries lie in an interval of this length around 1/2, so that a gate can open and close entirely
FLOOR = 0.3  # of a representation that reaches each learner whatever its gate says
OPEN = 3.0  # initial bias: both gates wide open
HIDDEN = 32


class ModalPartitioner(nn.Module):
    """Splits a representation h ``[..., dim]`` into uni-modal and paired-modal parts of the same shape.

    With z = W [h; c] + b the gate logits, tau the temperature:

    - ``boundary``: two numbers per row, b_u where the uni-modal part ends and b_p how much of the other end is paired.
      ``dual`` with z_uni,j = -(x_j - b_u)^2 / 2w^2 and z_paired,j = -(x_j - 1 + b_p)^2 / 2w^2 at x_j = (j + 1/2) / dim,
      w = 0.12 sqrt(tau), where (b_u, b_p) = 1/2 + 1.3 (sigmoid(MLP(LayerNorm(h))) - 1/2) and no gradient passes from
      the MLP to h; uni = 0.3 h + 0.7 e * h, paired = 0.3 h + 0.7 r * h. At first both are wide open.
    - ``single``: g = cumsoftmax(z / tau), paired = g * h, uni = (1 - g) * h. Exhaustive: uni + paired = h.
    - ``dual``: e = 1 - cumsoftmax(z_uni / tau), r = cumsoftmax(z_paired / tau), uni = e * h, paired = r * h: what both
      gates let through is shared, what neither does is unused.
    - ``sigmoid``: as ``single`` with g = sigmoid(z / tau), each dimension for itself.
    - ``fixed``: the first half is uni-modal, the second paired; no parameters.
    - ``none``: uni = paired = h; no parameters.

    The modal partitioner is PgM's (Hu et al., ACM MM 2025, arXiv 2507.11661), whose gate is not published; these gates
    are our reconstruction from the cumulative softmax of ON-LSTM (Shen et al., ICLR 2019) and the partition filter of
    PFN (Yan et al., EMNLP 2021). ``sigmoid``, ``fixed`` and ``none`` are there for ablation.

    Args:
        dim: width of the representation.
        gate: one of :data:`GATES`.
        temperature: tau > 0; smaller makes a harder boundary.
        condition_on_others: the logits also see a context c ``[..., dim]`` (zeros where none is passed).
        chunk: this many neighbouring dimensions share one gate value; must divide ``dim``, and be 1 for ``boundary``.
        by_shares: no gradient reaches the boundaries from the parts, only from the shares: for gates that are trained
            towards :func:`~pgm_fast.nn.information_targets`. Only for ``boundary``.
        device, dtype: of the parameters.

    Raises:
        ConfigError: unknown gate, a chunk that does not divide ``dim``, a temperature that is not positive and finite.
    """

    def __init__(
        self,
        dim: int,
        gate: str = "boundary",
        temperature: float = 1.0,
        condition_on_others: bool = False,
        chunk: int = 1,
        by_shares: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if gate not in GATES:
            raise ConfigError(f"gate is {gate!r}, must be one of {', '.join(GATES)}")
        check_size("dim", dim)
        check_size("chunk", chunk)
        if gate == "boundary" and chunk != 1:
            raise ConfigError(f"chunk is {chunk}, must be 1 with the boundary gate, which has no logits to share")
        if dim % chunk:
            raise ConfigError(f"chunk is {chunk}, must be a positive divisor of the width {dim}")
        check_number("gate temperature", temperature, POSITIVE)
        self.dim = dim
        self.gate = gate
        self.temperature = temperature
        self.condition_on_others = condition_on_others
        self.chunk = chunk
        self.by_shares = by_shares
        self.projection = self.boundaries = None
        if gate == "boundary":
            self.boundaries = _boundaries(dim * (2 if condition_on_others else 1), device=device, dtype=dtype)
        if gate in ("single", "dual", "sigmoid"):
            gates = 2 if gate == "dual" else 1
            seen = dim * (2 if condition_on_others else 1)
            self.projection = nn.Linear(seen, gates * (dim // chunk), device=device, dtype=dtype)
        mark_part(self, part="partitioner")

    def logits(self, h: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Gate logits ``[..., dim / chunk]`` (``dual``: ``[..., 2 * dim / chunk]``, uni first); None without a learned
        gate."""
        gates = self.projection if self.boundaries is None else self.boundaries
        if gates is None:
            return None
        if self.condition_on_others:
            h = torch.cat((h, torch.zeros_like(h) if context is None else context), dim=-1)
        return gates(h if self.boundaries is None else h.detach())

    def split(self, h: Tensor, z: Tensor | None, return_shares: bool = False) -> tuple[Tensor, ...]:
        """``(uni, paired)`` for logits that :meth:`logits` gave; with ``return_shares`` also what :meth:`shares_of`
        gives, for ``boundary``, ``single`` and ``dual`` from the same pass."""
        if self.gate in ("none", "fixed"):
            parts = self._split_without_logits(h)
            return (*parts, self._shares_without_logits(h)) if return_shares else parts
        z = self._required(z)
        if self.gate == "boundary":
            b_uni, b_paired = _lengths(z).split(1, dim=-1)
            return ops.partition_boundary(
                h,
                b_uni,
                b_paired,
                WIDTH * self.temperature**0.5,
                floor=FLOOR,
                detach_gates=self.by_shares,
                return_share=return_shares,
            )
        if self.gate == "single":
            return ops.partition(h, z, self.temperature, return_share=return_shares)
        if self.gate == "dual":
            z_uni, z_paired = z.chunk(2, dim=-1)
            uni_only, paired_only, shared, *shares = ops.partition_dual(
                h, z_uni, z_paired, self.temperature, return_share=return_shares
            )
            return uni_only + shared, paired_only + shared, *shares
        gate = torch.sigmoid(z / self.temperature).repeat_interleave(self.chunk, dim=-1).to(h.dtype)
        paired = gate * h
        return (h - paired, paired, *([self.shares_of(h, z)] if return_shares else []))

    def _required(self, z: Tensor | None) -> Tensor:
        if z is None:
            raise ValueError(f"the {self.gate} gate takes logits, got None")
        return z

    def _split_without_logits(self, h: Tensor) -> tuple[Tensor, Tensor]:
        if self.gate == "none":
            return h, h
        first = torch.arange(self.dim, device=h.device) < self.dim // 2
        return torch.where(first, h, 0), torch.where(first, 0, h)

    def forward(self, h: Tensor, context: Tensor | None = None, return_shares: bool = False) -> tuple[Tensor, ...]:
        """``(uni, paired)``, each ``[..., dim]``, with ``return_shares`` also what :meth:`shares` gives.

        Args:
            h: ``[..., dim]``.
            context: ``[..., dim]``, used only with ``condition_on_others``.
            return_shares: whether shares are asked for.
        """
        return self.split(h, self.logits(h, context), return_shares)

    def shares_of(self, h: Tensor, z: Tensor | None) -> Tensor:
        """:meth:`shares` for logits that :meth:`logits` gave."""
        if self.gate in ("none", "fixed"):
            return self._shares_without_logits(h)
        if self.gate == "boundary":
            return self.split(h, z, return_shares=True)[-1]
        z = self._required(z)
        if self.gate == "dual":
            z_uni, z_paired = z.chunk(2, dim=-1)
            return ops.partition_share(z_uni, z_paired, self.temperature)
        if self.gate == "single":
            return ops.partition_share(z, None, self.temperature)
        paired = torch.sigmoid(z / self.temperature).mean(-1)
        return torch.stack((1 - paired, paired), dim=-1)

    def _shares_without_logits(self, h: Tensor) -> Tensor:
        uni = self.dim // 2 / self.dim if self.gate == "fixed" else 1.0
        paired = 1.0 - uni if self.gate == "fixed" else 1.0
        return torch.stack((h.new_full(h.shape[:-1], uni), h.new_full(h.shape[:-1], paired)), dim=-1)

    def shares(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """Mean gate mass per row: ``[..., 2]`` (uni, paired), or ``[..., 4]`` for ``dual``.

        The four are uni-only, paired-only, shared and unused.
        The masses sum to 1, but for ``none``, where both are 1. Differentiable in the gate's parameters.
        """
        return self(h, context, return_shares=True)[-1]

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, gate={self.gate}, temperature={self.temperature}, "
            f"condition_on_others={self.condition_on_others}, chunk={self.chunk}"
        )


def _lengths(z: Tensor) -> Tensor:
    """Of both parts, as shares of a row."""
    return 0.5 + REACH * (torch.sigmoid(z.float() if z.dtype.itemsize < 4 else z) - 0.5)


def _boundaries(width: int, **factory) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width, **factory),
        nn.Linear(width, HIDDEN, **factory),
        nn.GELU(),
        QuietLinear(HIDDEN, 2, start=OPEN, **factory),
    )
