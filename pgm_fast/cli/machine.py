"""``doctor``: the facts about this machine as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .terminal import say, show_table

__all__ = ["show_choice", "show_doctor"]


def show_doctor(facts: Mapping[str, Any]) -> None:
    """Print what :func:`pgm_fast.env.doctor` found."""
    versions = facts["versions"]
    say(f"pgm_fast {versions['pgm_fast']}, Python {versions['python']}, torch {versions['torch']}")
    say(f"{versions['platform']}\n")
    rows = []
    for fact in facts["facts"]:
        remedy = "" if fact["usable"] else fact["fix"] or "no command changes that"
        rows.append([fact["group"], fact["name"], "yes" if fact["usable"] else "no", fact["detail"], remedy])
    show_table(["", "name", "usable", "what, or why not", "to change that"], rows, numbers=False)
    # The backward of an op is served by the backend that served the op.
    forward = {op: devices for op, devices in facts["ops"].items() if not op.endswith("_backward")}
    rows, reasons = [], {}
    for op, devices in forward.items():
        for device, backends in devices.items():
            rows.append([op, device, *("no" if reason else "yes" for reason in backends.values())])
            for name, reason in backends.items():
                if reason:
                    reasons.setdefault(f"{name} on {device} {reason.replace(f'{op} ', '')}", []).append(op)
    say("\nBackends per operation; a call takes the first that serves it")
    show_table(["op", "device", *next(iter(next(iter(forward.values())).values()))], rows, numbers=False)
    for reason, ops in reasons.items():
        say(f"{reason}: {', '.join(ops)}")


def show_choice(choice: Mapping[str, Any]) -> None:
    """Print what :func:`pgm_fast.env.choice` found."""
    shapes = " ".join(choice["shapes"]) or "any shape"
    taken = choice["backend"] or "none: the call raises"
    say(f"{choice['op']} on {choice['device']}, {choice['dtype']}, {shapes}: {taken}")
    show_table(["backend", "why, or why not"], [list(row) for row in choice["reasons"].items()], numbers=False)
