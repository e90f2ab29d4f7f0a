"""What a run found about its modalities, in words: for shares that follow measured information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["sentences"]

_STEADY = 0.05  # half of what stays open on each side

_TELLS = {
    "uni_only": "{} it alone tells",
    "shared": "{} another modality tells as well",
    "paired_only": "{} is only told together with others",
    "unused": "{} it does not tell",
}


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What the shares of a report say, a sentence per modality, a caution where they had not come to rest, and at last
    what they rest on.

    Empty for shares that no measured information stands behind (``report["calibration"]`` is not there), and for those
    of a model that diverged, which are no numbers.
    """
    found = report.get("shares") or {}
    if not report.get("calibration") or not found or any(None in shares.values() for shares in found.values()):
        return []
    intervals = report.get("share_intervals", {})
    lines = []
    for modality, shares in report["shares"].items():
        told = [
            template.format(_percent(shares[name], intervals.get(modality, {}).get(name)))
            for name, template in _TELLS.items()
        ]
        lines.append(f"{modality}: of what is known of the label {', '.join(told[:-1])}; {told[-1]}.")
    drift = report.get("share_drift", 0.0)  # reports from before there was one do not say
    if drift is None or drift > _STEADY:
        moved = "" if drift is None else f" (by up to {drift:.2f} in the last fifth of the epochs)"
        lines.append(
            f"After {report['best_epoch']} of {report['epochs']} epochs shares still move with what the heads "
            f"learn{moved}: train longer (train.epochs) before you read them."
        )
    heads = ", ".join(f"{head} {value:.2f}" for head, value in report["calibration"]["temperature"].items())
    lines.append(
        "These are mean shares over rows, with 95 % intervals over rows. What a head knows is measured by its "
        f"likelihood of the label after calibration on the validation split (temperatures: {heads}); about 0.1 on each "
        "side stays open to what is not known yet."
    )
    return lines


def _percent(share: float, half: float | None) -> str:
    return f"{100 * share:.0f} %" if half is None else f"{100 * share:.0f} ± {100 * half:.0f} %"
