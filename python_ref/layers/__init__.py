"""Blocks of the backbones, in plain PyTorch. Maps are (B, H, W, C) unless a name says NCHW."""

from python_ref.layers.atrous_attention import AtrousAttention
from python_ref.layers.atrous_conv import AtrousInvertedResidual
from python_ref.layers.drop_path import DropPath
from python_ref.layers.gate import BranchGate
from python_ref.layers.layout import to_nchw, to_nhwc
from python_ref.layers.mlp import ConvNextMlp, Mlp
from python_ref.layers.norm import batch_norm
from python_ref.layers.squeeze_excite import SqueezeExcite

__all__ = [
    "AtrousAttention",
    "AtrousInvertedResidual",
    "BranchGate",
    "ConvNextMlp",
    "DropPath",
    "Mlp",
    "SqueezeExcite",
    "batch_norm",
    "to_nchw",
    "to_nhwc",
]
