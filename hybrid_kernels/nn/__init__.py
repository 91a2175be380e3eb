"""Modules and op tables that put the fused ops into a model."""

from .atrous_attention import AtrousAttention
from .fused import FUSED

__all__ = ["FUSED", "AtrousAttention"]
