"""Optimizers that update every param group in one kernel launch, and groups with one rate per modality and part."""

from .adamw import MultiRateAdamW
from .groups import multi_rate_groups
from .multi_rate import MultiRateOptimizer
from .sgd import MultiRateSGD

__all__ = ["MultiRateAdamW", "MultiRateOptimizer", "MultiRateSGD", "multi_rate_groups"]
