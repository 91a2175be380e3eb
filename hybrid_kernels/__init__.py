"""Fused kernels for vision backbones that mix attention and convolution."""

import os

from .backends import get_backend, set_backend, use_backend
from .models import accelerate, create_model, list_models, load_weights, save_weights
from .ops import (
    abstract_token_attention,
    atrous_attention,
    atrous_dwconv,
    atrous_merge,
    atrous_partition,
    bilinear_sample,
    context_topk,
    conv_attention,
    conv_attention_fused,
    downsample_pair,
    dwconv_act,
    gated_fuse,
    group_propagate,
    inject_fuse,
    mixed_head_attention,
    multiscale_attention,
    partial_combine,
    patch_embed,
    pool_cat,
    region_attention,
    region_fork,
    region_mix,
    region_sample,
    single_query_attention,
    single_query_attention_absorbed,
    single_query_form,
    token_fusion,
    value_conv,
)
from .output_cache import (
    empty_output_cache,
    limit_from_environment,
    output_cache_info,
    set_output_cache,
)

__version__ = "0.1.0"
__all__ = [
    "abstract_token_attention",
    "accelerate",
    "atrous_attention",
    "atrous_dwconv",
    "atrous_merge",
    "atrous_partition",
    "bilinear_sample",
    "context_topk",
    "conv_attention",
    "conv_attention_fused",
    "create_model",
    "downsample_pair",
    "dwconv_act",
    "empty_output_cache",
    "gated_fuse",
    "get_backend",
    "group_propagate",
    "inject_fuse",
    "list_models",
    "load_weights",
    "mixed_head_attention",
    "multiscale_attention",
    "output_cache_info",
    "partial_combine",
    "patch_embed",
    "pool_cat",
    "region_attention",
    "region_fork",
    "region_mix",
    "region_sample",
    "save_weights",
    "set_backend",
    "set_output_cache",
    "single_query_attention",
    "single_query_attention_absorbed",
    "single_query_form",
    "token_fusion",
    "use_backend",
    "value_conv",
]

set_backend(os.environ.get("HYBRID_KERNELS_BACKEND", "auto"))
limit_from_environment()
