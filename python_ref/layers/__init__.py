"""Blocks of the backbones, in plain PyTorch. Maps are (B, H, W, C) unless a name says NCHW."""

from python_ref.layers.atrous_attention import AtrousAttention
from python_ref.layers.atrous_conv import AtrousInvertedResidual
from python_ref.layers.block import Block, PositionConv
from python_ref.layers.class_token import split_class_token, to_tokens
from python_ref.layers.conv_norm import ConvHead, ConvNorm, ConvStem, PatchEmbed, PoolHead
from python_ref.layers.conv_projection import ConvProjection, CvTAttention
from python_ref.layers.drop_path import DropPath, drop_path_rates
from python_ref.layers.gate import BranchGate
from python_ref.layers.init import init_conv_fan_out, init_linear, init_transformer
from python_ref.layers.injection import Injection
from python_ref.layers.layout import to_nchw, to_nhwc, to_stencil
from python_ref.layers.mlp import ConvNextMlp, Mlp, quick_gelu
from python_ref.layers.mrl import MRLMixer
from python_ref.layers.mscsa import MSCSA
from python_ref.layers.norm import Fold, batch_norm
from python_ref.layers.patch_merging import PatchMerging
from python_ref.layers.squeeze_excite import SqueezeExcite
from python_ref.layers.window_attention import WindowAttention

__all__ = [
    "MSCSA",
    "AtrousAttention",
    "AtrousInvertedResidual",
    "Block",
    "BranchGate",
    "ConvHead",
    "ConvNextMlp",
    "ConvNorm",
    "ConvProjection",
    "ConvStem",
    "CvTAttention",
    "DropPath",
    "Fold",
    "Injection",
    "MRLMixer",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "PoolHead",
    "PositionConv",
    "SqueezeExcite",
    "WindowAttention",
    "batch_norm",
    "drop_path_rates",
    "init_conv_fan_out",
    "init_linear",
    "init_transformer",
    "quick_gelu",
    "split_class_token",
    "to_nchw",
    "to_nhwc",
    "to_stencil",
    "to_tokens",
]
