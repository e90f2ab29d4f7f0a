"""Param groups with one learning rate per modality and part."""

from .groups import multi_rate_groups

__all__ = ["multi_rate_groups"]
