"""Param groups by patterns over the paths of parameters, and learning rates that fall from layer to layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import ConfigError
from ..nn.arguments import NOT_NEGATIVE, check_mapping, check_module, check_number
from .groups import without_decay

__all__ = ["LAYERS", "STEM", "pattern_groups"]

LAYERS = r"(?:^|\.)(?:layers?|blocks?|resblocks|h)\.(\d+)\."
"""Where the number of a layer stands in the names that transformers, timm and torch give."""
STEM = r"(?:^|\.)(?:\w*embed\w*|\w*_token|wte|wpe|stem|conv_proj)(?:\.|$)"
"""What comes before the first layer, by the same names."""
FACTORS = ("lr", "weight_decay")
_FORM = """{"encoder": {"lr": 0.1}}"""
WRAPPERS = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module)\.")  # torch's, in the middle of a path


def pattern_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    patterns: Mapping[str, Mapping[str, float]] | None = None,
    *,
    layer_decay: float = 1.0,
    layers: str = LAYERS,
    stem: str = STEM,
    no_decay: bool = True,
) -> list[dict]:
    """Param groups for any ``torch.optim`` optimizer, by regular expressions over the names of parameters.

    ::

        patterns = {r"^pgm\\.": {"lr": 2.0}, r"^encoder\\.text\\.": {"lr": 0.1, "weight_decay": 0.5}}
        optimizer = MultiRateAdamW(pattern_groups(model, 1e-3, 0.01, patterns, layer_decay=0.75))

    With ``layer_decay`` the learning rate of layer k of n, counted from 0, is multiplied by ``layer_decay ** (n - k)``,
    that of the stem by ``layer_decay ** (n + 1)``, and that of all else, heads above all, by 1 (BEiT: Bao et al., ICLR
    2022). It is written to ``lr``, which every optimizer and scheduler reads. Every stack of layers has its own n, and
    the stem is that of the stack it shares the longest path with.

    Args:
        model: its trainable parameters are grouped, each once.
        lr, weight_decay: of factor 1.
        patterns: regular expression, searched in a name as ``named_parameters`` gives it (without what
            ``torch.compile`` and checkpoint wrappers put in) -> factors ``lr`` and ``weight_decay``, 1 where left out.
            The first that matches wins; what none matches has factor 1.
        layer_decay: factor from one layer to the layer below; 1 for none.
        layers, stem: where a layer's number stands in a name, and what lies below the first.
        no_decay: what is no matrix (biases, gains of norms) goes without weight decay.

    Returns:
        Groups ``{"name", "lr", "weight_decay", "params"}`` in the order in which the model meets them; with
        ``no_decay`` what is no matrix follows in groups called ``<name>.no_decay``.

    Raises:
        ConfigError: ``model`` is no module, a pattern that is no regular expression or takes no parameter, factors
            that are unknown, negative or not finite, a layer decay without layers.
    """
    check_module("model", model, "whose parameters are grouped by their names")
    patterns = {} if patterns is None else patterns
    check_mapping("patterns", patterns, _FORM)
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("layer_decay", layer_decay)):
        check_number(name, value, NOT_NEGATIVE)
    compiled = {pattern: _compiled(pattern) for pattern in patterns}
    for pattern, factors in patterns.items():
        check_mapping(f"the entry of pattern {pattern!r}", factors, """{"lr": 0.1, "weight_decay": 0.5}""")
        for name, factor in factors.items():
            if name not in FACTORS:
                raise ConfigError(f"pattern {pattern!r} has a factor for {name!r}; allowed: {', '.join(FACTORS)}")
            check_number(f"{name} of pattern {pattern!r}", factor, NOT_NEGATIVE)
    named = {WRAPPERS.sub("", name): p for name, p in model.named_parameters() if p.requires_grad}
    places = {name: "" for name in named}
    scales = dict.fromkeys(named, 1.0)
    if layer_decay != 1.0:
        places, scales = _layer_scales(named, layer_decay, _compiled(layers, groups=1), _compiled(stem))
    grouped: dict[tuple[str | None, str], dict] = {}
    for name, parameter in named.items():
        pattern = next((key for key, found in compiled.items() if found.search(name)), None)
        factors = {} if pattern is None else patterns[pattern]
        key = pattern, places[name]
        if key not in grouped:
            grouped[key] = {
                "name": ":".join(part for part in ("rest" if pattern is None else pattern, places[name]) if part),
                "lr": lr * factors.get("lr", 1.0) * scales[name],
                "weight_decay": weight_decay * factors.get("weight_decay", 1.0),
                "params": [],
            }
        grouped[key]["params"].append(parameter)
    for pattern in patterns:
        if not any(key == pattern for key, _ in grouped):
            before = [name for name in named if compiled[pattern].search(name)]
            why = f"what it matches ({before[0]}, ...) earlier ones take" if before else "it matches none"
            raise ConfigError(f"pattern {pattern!r} takes no trainable parameter: {why}; names are like {_some(named)}")
    groups = list(grouped.values())
    return without_decay(groups) if no_decay else groups


def _layer_scales(
    names: Iterable[str], decay: float, layers: re.Pattern, stem: re.Pattern
) -> tuple[dict[str, str], dict[str, float]]:
    """Name -> stack and layer that it is in ("" for neither), and the factor on its learning rate."""
    found = {name: match for name in names if (match := layers.search(name))}
    if not found:
        raise ConfigError(f"layer_decay finds no layer: layers={layers.pattern!r} matches none of {_some(names)}")
    counts: dict[str, int] = {}
    for name, match in found.items():
        stack = name[: match.start(1)]
        counts[stack] = max(counts.get(stack, 0), int(match[1]) + 1)
    places, scales = dict.fromkeys(names, ""), dict.fromkeys(names, 1.0)
    for name in names:
        if name in found:
            stack, layer = name[: found[name].start(1)], int(found[name][1])
            places[name], scales[name] = f"{stack}{layer}", decay ** (counts[stack] - layer)
        elif stem.search(name):
            stack = max(counts, key=lambda stack: _shared(stack, name))
            places[name], scales[name] = f"{stack}stem", decay ** (counts[stack] + 1)
    return places, scales


def _shared(a: str, b: str) -> int:
    """How many steps two paths have in common from the start."""
    count = 0
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        count += 1
    return count


def _compiled(pattern: str, groups: int = 0) -> re.Pattern:
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"pattern {pattern!r} is no regular expression: {error}") from None
    if found.groups < groups:
        raise ConfigError(f"layers is {pattern!r}, must have a group (\\d+) where the number of a layer stands")
    return found


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "none"
