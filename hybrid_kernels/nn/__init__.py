"""Modules and op tables that put the fused ops into a model."""

from .dwconv_qkv import dwconv_qkv
from .fused import FUSED, fused_ops, is_fused
from .modules import (
    MSCSA,
    AbstractTokenAttention,
    AtrousAttention,
    AtrousInvertedResidual,
    ConvAttention,
    ConvFeedForward,
    CrossScaleAttention,
    CvTAttention,
    DynamicBranch,
    GlobalAttention,
    Injection,
    MCGAttention,
    PartialAttention,
    RegionMixer,
    StaticBranch,
    WindowAttention,
)
from .propagate_conv import propagate_conv
from .strip_dwconv import strip_dwconv
from .whiten_conv import whiten_conv

__all__ = [
    "FUSED",
    "MSCSA",
    "AbstractTokenAttention",
    "AtrousAttention",
    "AtrousInvertedResidual",
    "ConvAttention",
    "ConvFeedForward",
    "CrossScaleAttention",
    "CvTAttention",
    "DynamicBranch",
    "GlobalAttention",
    "Injection",
    "MCGAttention",
    "PartialAttention",
    "RegionMixer",
    "StaticBranch",
    "WindowAttention",
    "dwconv_qkv",
    "fused_ops",
    "is_fused",
    "propagate_conv",
    "strip_dwconv",
    "whiten_conv",
]
