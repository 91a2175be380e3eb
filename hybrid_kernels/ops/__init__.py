"""The ops: one file each, its public function first."""

from .abstract_token_attention import abstract_token_attention
from .abstract_token_fork import abstract_token_fork
from .atrous_attention import atrous_attention
from .atrous_dwconv import atrous_dwconv
from .atrous_partition import atrous_merge, atrous_partition
from .bilinear_sample import bilinear_sample
from .centred_dwconv import centred_dwconv
from .context_topk import context_topk
from .conv_attention import conv_attention
from .conv_attention_fused import conv_attention_fused
from .downsample_pair import downsample_pair
from .dwconv_act import dwconv_act
from .gated_fuse import gated_fuse
from .group_propagate import group_propagate
from .inject_fuse import inject_fuse
from .lift_pool import lift_pool
from .mixed_head_attention import mixed_head_attention
from .multiscale_attention import multiscale_attention, multiscale_fits_cache
from .partial_combine import partial_combine
from .patch_embed import patch_embed
from .pool_cat import pool_cat
from .propagate_cat import propagate_cat
from .region_attention import region_attention, region_fork
from .region_mix import region_mix
from .region_sample import region_sample
from .single_query_attention import single_query_attention
from .single_query_attention_absorbed import single_query_attention_absorbed, single_query_form
from .token_fusion import token_fusion
from .value_conv import value_conv

__all__ = [
    "abstract_token_attention",
    "abstract_token_fork",
    "atrous_attention",
    "atrous_dwconv",
    "atrous_merge",
    "atrous_partition",
    "bilinear_sample",
    "centred_dwconv",
    "context_topk",
    "conv_attention",
    "conv_attention_fused",
    "downsample_pair",
    "dwconv_act",
    "gated_fuse",
    "group_propagate",
    "inject_fuse",
    "lift_pool",
    "mixed_head_attention",
    "multiscale_attention",
    "multiscale_fits_cache",
    "partial_combine",
    "patch_embed",
    "pool_cat",
    "propagate_cat",
    "region_attention",
    "region_fork",
    "region_mix",
    "region_sample",
    "single_query_attention",
    "single_query_attention_absorbed",
    "single_query_form",
    "token_fusion",
    "value_conv",
]
