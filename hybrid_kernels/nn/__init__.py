"""Modules and op tables that put the fused ops into a model."""

from .atrous_attention import AtrousAttention
from .dwconv_qkv import dwconv_qkv
from .fused import FUSED, fused_ops, is_fused
from .region_mixer import RegionMixer

__all__ = ["FUSED", "AtrousAttention", "RegionMixer", "dwconv_qkv", "fused_ops", "is_fused"]
