"""Training engine for multimodal models that split representations into uni-modal and paired-modal features.

Importing this package touches no device and loads nothing; its parts need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import PgmFastError

if TYPE_CHECKING:
    from .backends import backend

__version__ = "0.1.0"
__all__ = ["PgmFastError", "__version__", "backend"]


def __getattr__(name: str) -> Any:
    if name == "backend":  # needs torch, which help and version must not wait for
        from .backends import backend

        return backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
