"""What a partition's shares are to be: the parts of the label's information that are unique, redundant, synergistic.

With i_m what modality m alone knows of a row's label, i_together what the heads that see all modalities know, each in
[0, 1] (:class:`~pgm_fast.nn.calibration.Calibration`), and i the largest of them:

    redundant    r_m = min(i_m, largest i of another modality)
    synergistic  s = max(0, i_together - largest i_m)
    uni target     u_m = (i_m + k) / (i + k)
    paired target  p_m = (r_m + s + k) / (i + k)

so that uni-only mass means unique information, paired-only synergy, shared redundancy, and unused is what the task does
not need. k keeps gates open until something is known. Ours, after the minimum of redundancy measures (Williams, Beer,
"Nonnegative Decomposition of Multivariate Information", arXiv 1004.2515) and the pointwise estimates of LSMI (Yang et
al., ICML 2025, arXiv 2506.17248).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["KAPPA", "information_targets", "share_error"]

KAPPA = 0.1


def information_targets(
    alone: Mapping[str, Tensor], together: Tensor, presence: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """modality -> ``(u_m, p_m)``, each ``[n]`` in (0, 1].

    Args:
        alone: modality -> i_m ``[n]``.
        together: i_together ``[n]``.
        presence: modality -> bool ``[n]``: an absent modality knows nothing.
    """
    presence = presence or {}
    known = torch.stack([i * presence[m] if m in presence else i for m, i in alone.items()])
    best = known.amax(0)
    every = torch.maximum(best, together)
    # a modality's information is redundant up to the second largest, which for all but the first is no bound
    second = known.topk(2, dim=0).values[1] if len(known) > 1 else torch.zeros_like(best)
    uni = (known + KAPPA) / (every + KAPPA)
    paired = (torch.minimum(known, second) + (every - best) + KAPPA) / (every + KAPPA)
    return dict(zip(alone, zip(uni.unbind(), paired.unbind(), strict=True), strict=True))


def share_error(share: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """``[n]``: squared distances of what each side takes from its target.

    Args:
        share: ``[n, 4]``, uni-only, paired-only, shared, unused.
        target: ``(u, p)`` of :func:`information_targets`.
    """
    uni, paired = share[..., 0] + share[..., 2], share[..., 1] + share[..., 2]
    return (uni - target[0]).square() + (paired - target[1]).square()
