"""Optimizers that update every param group in one kernel launch, and groups with rates by part or by name."""

from .adamw import MultiRateAdamW
from .groups import multi_rate_groups
from .multi_rate import MultiRateOptimizer
from .patterns import pattern_groups
from .sgd import MultiRateSGD

__all__ = ["MultiRateAdamW", "MultiRateOptimizer", "MultiRateSGD", "multi_rate_groups", "pattern_groups"]
