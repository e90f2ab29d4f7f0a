"""Training engine for multimodal models that split representations into uni-modal and paired-modal features.

Importing this package touches no device and needs torch alone.
"""

from .backends import backend
from .errors import PgmFastError

__version__ = "0.1.0"
__all__ = ["PgmFastError", "__version__", "backend"]
