"""Drop-in modules: the papers' mixers on fused ops, for a backbone of your own.

Each is the module of `python_ref` with that name: same arguments, same state dict, same errors;
read there for the arguments and the mathematics. Maps are (B, H, W, C) of any size, float32,
bfloat16, float16 (float64 on CPU), and keep their shape unless a module says otherwise.
"""

from torch import nn

from python_ref import layers
from python_ref.layers.dynamic_branch import ConvAttention as ReferenceConvAttention
from python_ref.layers.dynamic_branch import DynamicBranch as ReferenceDynamicBranch
from python_ref.layers.dynamic_branch import GlobalAttention as ReferenceGlobalAttention
from python_ref.layers.mscsa import ConvFeedForward as ReferenceConvFeedForward
from python_ref.layers.mscsa import CrossScaleAttention as ReferenceCrossScaleAttention
from python_ref.layers.static_branch import StaticBranch as ReferenceStaticBranch
from python_ref.models.mat import AbstractTokenAttention as ReferenceAbstractTokenAttention
from python_ref.models.mcga import MCGAttention as ReferenceMCGAttention
from python_ref.models.partialformer import PartialAttention as ReferencePartialAttention
from python_ref.ops import OpTable

from .fused import FUSED


class OnFusedOps(nn.Module):
    """Gives the fused ops to every block of a module, once that is built."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(getattr(module, "ops", None), OpTable):
                module.ops = FUSED


class AtrousAttention(OnFusedOps, layers.AtrousAttention):
    """Attention in the windows of every dilation, mixed by gates: `atrous_attention`, `gated_fuse`.

    Source: ACC-ViT ("Fusion of regional and sparse attention in Vision Transformers"), Sec. 2.1
    and 2.2.
    """


class AtrousInvertedResidual(OnFusedOps, layers.AtrousInvertedResidual):
    """Inverted residual with parallel dilated convolutions: `atrous_dwconv`, `gated_fuse`.

    x (B, dim_in, H, W), channels first -> (B, dim, ceil(H / stride), ceil(W / stride)).

    Source: ACC-ViT, Sec. 2.4.
    """


class WindowAttention(OnFusedOps, layers.WindowAttention):
    """Attention in shifted windows, of maps that need not tile: `atrous_attention`, dilation 1.

    Source: Swin, Sec. 3.2.
    """


class CvTAttention(OnFusedOps, layers.CvTAttention):
    """Attention of convolutional projections: `dwconv_qkv` (composed), `multiscale_attention`.

    x (B, H, W, C), or tokens (B, 1 + H * W, C) of that size.

    Source: CvT, Sec. 3.2.
    """


class RegionMixer(OnFusedOps, layers.MRLMixer):
    """Regions attend to each other, pixels mix locally: `region_fork`, attention, `region_mix`.

    x (B, H, W, C), or tokens (B, 1 + H * W, C) of that size. The gradient of x is written once: see
    `hybrid_kernels.region_fork`.

    Source: MRL ("Learning to mix with attention and convolutions"), Sec. 2.1, 2.2 and A.2; there,
    and in `python_ref.layers`, MRLMixer.
    """


class CrossScaleAttention(OnFusedOps, ReferenceCrossScaleAttention):
    """Attention of every pixel over three scales of the map, and a stencil over the values.

    On `downsample_pair`, `multiscale_attention` and `value_conv`.

    Source: MSCSA ("Vision backbone enhancement via multi-stage cross-scale attention"), Eq. 1-9.
    """


class ConvFeedForward(OnFusedOps, ReferenceConvFeedForward):
    """Feed-forward layer with a depthwise convolution inside: `dwconv_act`.

    Source: MSCSA, Sec. 3.3 and 3.4.
    """


class MSCSA(OnFusedOps, layers.MSCSA):
    """The stages of a backbone attend to each other: `pool_cat`, and the two modules above.

    maps: list of (B, C_i, H_i, W_i), size (H, W) of a grid -> (B, H, W, C), C their sum.

    Source: MSCSA, Sec. 3.1.
    """


class Injection(OnFusedOps, layers.Injection):
    """Semantics of a small grid injected into a map, all channels first: `inject_fuse`.

    x (B, in_dim, H_i, W_i), semantics (B, semantic_dim, H, W) -> (B, dim, H_i, W_i).

    Source: MSCSA, Fig. 5; TopFormer.
    """


class AbstractTokenAttention(OnFusedOps, ReferenceAbstractTokenAttention):
    """Windows, their abstract tokens, and pixels that read those: MAT's three kinds of attention.

    On `abstract_token_fork`, `multiscale_attention` and `token_fusion`.

    Source: thesis "Efficient Vision Transformers with Multi-Scale and Partial Attentions", chapter
    4, Eq. 4.1-4.5.
    """


class PartialAttention(OnFusedOps, ReferencePartialAttention):
    """Full attention for the foreground, one vector for the background; holds its LayerNorm.

    On `context_topk`, `mixed_head_attention`, `single_query_attention` and `partial_combine`.

    Source: the same thesis, chapter 5, Eq. 5.3-5.7.
    """


class MCGAttention(OnFusedOps, ReferenceMCGAttention):
    """Learned groups read the map, and every pixel reads them: group attention and propagation.

    On `single_query_attention` and `group_propagate`.

    Source: MCGA ("Multi-scale convolutions meet group attention"), Eq. 2 and 3.
    """


class ConvAttention(OnFusedOps, ReferenceConvAttention):
    """C-MHSA, windows mixed by generated weights: `conv_attention_fused`.

    Source: the same thesis, chapter 3, Eq. 3.8-3.11.
    """


class GlobalAttention(OnFusedOps, ReferenceGlobalAttention):
    """G-MHSA, attention between all patches in heads of width 8: `multiscale_attention`.

    Source: the same thesis, chapter 3, Sec. 3.3.
    """


class StaticBranch(OnFusedOps, ReferenceStaticBranch):
    """Convolutions at three scales and a gate.

    On `centred_dwconv`, `patch_embed`, `dwconv_act` and `propagate_cat`.

    Source: the same thesis, chapter 3, Eq. 3.1-3.5.
    """


class DynamicBranch(OnFusedOps, ReferenceDynamicBranch):
    """Attention between pooled patches at several scales.

    On `patch_embed`, `propagate_cat` and the given mixers.

    Source: the same thesis, chapter 3, Eq. 3.6-3.11.
    """
