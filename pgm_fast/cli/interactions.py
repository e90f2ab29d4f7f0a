"""``interactions``: an estimate from the command line, its folder and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import ConfigError
from ..interactions import Interactions, Settings, estimate, estimate_run
from ..interactions.output import quantity_labels
from ..train.configure import make_config
from .inspection import READING
from .terminal import say, show_table

__all__ = ["measure"]


def measure(
    source: str | None,
    run: Path | None,
    out: Path | None,
    *,
    split: str | None,
    measured_on: str | None,
    overrides: Sequence[str],
    settings: Settings,
    device: str,
    progress: bool,
    quiet: bool,
) -> None:
    """Estimate, write the folder, and print the means.

    Args:
        source, run: one of them.
        out: folder to write; with a run, None for ``interactions`` inside it.
        split: None for ``test`` with a run and for all rows with a source; ``all`` for all rows.
        measured_on: with a run only; None for ``learned``.
        overrides: ``data.key=value``, how to read a source.
        settings, device, progress: as for :func:`pgm_fast.interactions.estimate`.
        quiet: print nothing.

    Raises:
        ConfigError: arguments that do not go together.
    """
    if (source is None) == (run is None):
        raise ConfigError("interactions takes a SOURCE or --run RUN, one of them")
    if run is not None:
        if overrides:
            raise ConfigError(
                f"{overrides[0]!r} is not allowed with --run; a run's data is read as it was for training"
            )
        found = estimate_run(
            run,
            measured_on=measured_on or "learned",
            split=None if split == "all" else split or "test",
            settings=settings,
            device=device,
            progress=progress,
        )
        folder = out or run / "interactions"
    else:
        if out is None:
            raise ConfigError("--out is missing; it names the folder to write")
        if measured_on is not None:
            raise ConfigError("--on says which features of a run are measured; it needs --run RUN")
        others = [text for text in overrides if not text.lstrip().startswith("data.")]
        if others:
            keys = ", ".join(f"data.{key}" for key in READING)
            raise ConfigError(
                f"{others[0]!r} is not allowed here; interactions takes the keys that say how to read: {keys}"
            )
        reading = asdict(make_config(None, overrides).data)
        found = estimate(
            source,
            split=None if split == "all" else split,
            settings=settings,
            device=device,
            progress=progress,
            **{key: reading[key] for key in READING},
        )
        folder = out
    files = found.write(folder)
    if not quiet:
        _show(found, files)


def _show(found: Interactions, files: Sequence[Path]) -> None:
    rows = []
    for name, pair in found.pairs.items():
        for label, mean, (low, high) in zip(quantity_labels(pair), pair.means, pair.intervals, strict=True):
            rows.append([name, label, f"{mean:.4f}", f"{low:.4f} to {high:.4f}"])
            name = ""
    title = f"{found.data}, {found.split or 'all'} rows ({len(found.index)}), nats"
    show_table(["pair", "information", "mean", f"{100 * found.settings.level:g} % interval"], rows, title=title)
    say()
    for file in files:
        say(f"{file.suffix.removeprefix('.').ljust(5)} {file}")
