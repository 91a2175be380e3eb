"""Modules and op tables that put the fused ops into a model."""

from .atrous_attention import AtrousAttention
from .fused import FUSED, fused_ops, is_fused

__all__ = ["FUSED", "AtrousAttention", "fused_ops", "is_fused"]
