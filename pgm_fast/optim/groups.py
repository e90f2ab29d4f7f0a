"""Param groups with one learning rate per modality and part of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..nn.arguments import NOT_NEGATIVE, check_mapping, check_module, check_number
from ..nn.parts import PARTS, parameter_parts

__all__ = ["NO_DECAY", "multi_rate_groups", "without_decay"]

NO_DECAY = ".no_decay"  # ends the name of a group that goes without weight decay
_FORM = """{"*": {"encoder": 0.1, "head": 1.0}}"""


def multi_rate_groups(
    model: nn.Module,
    base_lr: float,
    rates: Mapping[str, Mapping[str, float]],
    default: float | None = None,
    *,
    no_decay: bool = False,
) -> list[dict]:
    """Param groups for any ``torch.optim`` optimizer, one per (modality, part), each at a rate of its own.

    Which parameter belongs where is said by :func:`pgm_fast.nn.mark_part`; the modules of this package are marked, in a
    model of your own mark your encoders and heads. Learning rates that differ across modalities and partitions: PgM (Hu
    et al., arXiv 2507.11661).

    Args:
        model: its trainable parameters are grouped, each once (a shared parameter where ``named_modules`` first meets
            it).
        base_lr: learning rate of multiplier 1.
        rates: ``{modality, "shared" or "*": {part: multiplier}}`` with the parts of :data:`pgm_fast.nn.PARTS` and
            those that ``model`` has of its own. ``"*"`` stands for every modality and for what the modalities share; an
            exact name wins over it.
        default: multiplier of what no entry names; None makes that an error.
        no_decay: biases, gains and whatever else is no matrix go without weight decay, see :func:`without_decay`.

    Returns:
        Groups ``{"name": "<modality>.<part>", "lr": float, "params": list}`` in the order in which the model meets
        them; with ``no_decay`` as :func:`without_decay` gives them.

    Raises:
        ConfigError: ``model`` is no module, a parameter that has no mark or (without ``default``) no entry, an
            entry that names no trainable parameter, a learning rate or a multiplier that is no number,
            negative or not finite.
    """
    check_module("model", model, "whose parameters are grouped by their names")
    if not isinstance(base_lr, Tensor):
        check_number("base_lr", base_lr, NOT_NEGATIVE)
    if default is not None:
        check_number("default", default, NOT_NEGATIVE, ", or None to have every part named")
    owners = parameter_parts(model)
    parameters = dict(model.named_parameters())
    grouped: dict[tuple[str, str], list] = {}
    for name, (modality, part) in owners.items():
        if not parameters[name].requires_grad:
            continue
        if modality is None or part is None:
            missing = "modality" if modality is None else "part"
            raise ConfigError(
                f"parameter {name} belongs to no {missing}: mark its module with "
                f"pgm_fast.nn.mark_part(module, modality, part), or freeze it with requires_grad_(False)"
            )
        grouped.setdefault((modality, part), []).append(parameters[name])
    modalities = list(dict.fromkeys(modality for modality, _ in grouped))
    _check_rates(rates, modalities, list(dict.fromkeys([*PARTS, *(part for _, part in grouped)])))
    used: set[tuple[str, str]] = set()
    groups = []
    for (modality, part), members in grouped.items():
        multiplier = default
        for key in (modality, "*"):
            if part in rates.get(key, {}):
                multiplier = rates[key][part]
                used.add((key, part))
                break
        if multiplier is None:
            raise ConfigError(
                f"rates have no entry for {modality}.{part} ({len(members)} parameters): add "
                f"{modality!r}: {{{part!r}: 1.0}} or '*': {{{part!r}: 1.0}}; they have {_entries(rates) or 'none'}"
            )
        groups.append({"name": f"{modality}.{part}", "lr": base_lr * multiplier, "params": members})
    for key, parts in rates.items():
        for part in parts:
            if (key, part) not in used:
                names = [f"{m}.{p}" for m, p in grouped]
                raise ConfigError(
                    f"rate {key}.{part} sets the learning rate of no parameter{did_you_mean(f'{key}.{part}', names)}; "
                    f"the model has {', '.join(names) or 'no trainable parameter'}"
                )
    return without_decay(groups) if no_decay else groups


def without_decay(groups: Iterable[Mapping]) -> list[dict]:
    """The param groups with what is no matrix in groups of their own, whose weight decay is 0.

    Biases, the gains of norms and single numbers have at most one dimension. To pull them towards 0 does not make a
    model simpler, so that the field leaves them out.

    Args:
        groups: with ``name`` and ``params``; all else in them is kept.

    Returns:
        Every group without its vectors, followed by one called ``<name>.no_decay`` that holds them; neither is there
        without parameters.
    """
    found = []
    for group in groups:
        members = list(group["params"])
        matrices = [p for p in members if p.ndim > 1]
        vectors = [p for p in members if p.ndim <= 1]
        if matrices or not members:
            found.append({**group, "params": matrices})
        if vectors:
            found.append({**group, "name": group["name"] + NO_DECAY, "params": vectors, "weight_decay": 0.0})
    return found


def _check_rates(
    rates: Mapping[str, Mapping[str, float]], modalities: Iterable[str], known_parts: Iterable[str]
) -> None:
    check_mapping("rates", rates, _FORM)
    known = ["*", *modalities]
    for key, parts in rates.items():
        if key not in known:
            raise ConfigError(
                f"rates name {key!r}, which is no modality here{did_you_mean(key, known)}; allowed: {', '.join(known)}"
            )
        check_mapping(f"the entry of {key!r} in rates", parts, f"{{{next(iter(known_parts))!r}: 0.1}}")
        for part, multiplier in parts.items():
            if part not in known_parts:
                near, allowed = did_you_mean(part, known_parts), ", ".join(known_parts)
                raise ConfigError(f"rates of {key!r} name the part {part!r}{near}; allowed: {allowed}")
            check_number(f"rate {key}.{part}", multiplier, NOT_NEGATIVE)


def _entries(rates: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{key}.{part}" for key, parts in rates.items() for part in parts)
