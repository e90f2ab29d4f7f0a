"""The command line: ``pgm-fast`` and ``python -m pgm_fast``."""

from __future__ import annotations

import sys

from ..env import EXTRAS

__all__ = ["main"]


def main() -> None:
    """Run the command line on ``sys.argv`` and exit with its status."""
    try:
        from .app import app

        app()
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS["train"]:
            raise
        message = f'error: {module} is not installed, and pgm-fast needs it: pip install "pgm-fast[train]"'
        print(message, file=sys.stderr)
        sys.exit(2)
