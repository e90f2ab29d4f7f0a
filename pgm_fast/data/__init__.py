"""Feature sets: readers, checks, batches, sampling, synthetic data with known interactions; nothing of methods."""

from .batch import Batch
from .checks import check_features
from .feature_set import SPLITS, TASKS, DataSpec, FeatureSet, ModalitySpec
from .loading import Loader
from .media_settings import MediaConfig
from .normalize import Normalizer
from .raw import Problem, Request
from .sources import check, load
from .synthetic import Synthetic, draw, generate

__all__ = [
    "SPLITS",
    "TASKS",
    "Batch",
    "DataSpec",
    "FeatureSet",
    "Loader",
    "MediaConfig",
    "ModalitySpec",
    "Normalizer",
    "Problem",
    "Request",
    "Synthetic",
    "check",
    "check_features",
    "draw",
    "generate",
    "load",
]
