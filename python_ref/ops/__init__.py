"""Reference operators: the same signatures as torch.ops.hybrid, in plain PyTorch and einops."""

from collections.abc import Callable
from dataclasses import dataclass

from python_ref.ops.abstract_token_attention import (
    abstract_token_attention,
    abstract_token_attention_backward,
    abstract_token_attention_out,
)
from python_ref.ops.abstract_token_fork import abstract_token_fork
from python_ref.ops.atrous_attention import (
    atrous_attention,
    atrous_attention_backward,
    atrous_attention_out,
)
from python_ref.ops.atrous_dwconv import atrous_dwconv, atrous_dwconv_backward
from python_ref.ops.atrous_partition import atrous_merge, atrous_partition
from python_ref.ops.bilinear_sample import bilinear_sample, bilinear_sample_backward
from python_ref.ops.branch_linear import branch_project_in, branch_project_out
from python_ref.ops.centred_dwconv import (
    centred_dwconv,
    centred_dwconv_backward,
    centred_dwconv_out,
)
from python_ref.ops.context_topk import context_topk
from python_ref.ops.conv_attention import conv_attention, conv_attention_backward
from python_ref.ops.conv_attention_fused import conv_attention_fused, conv_attention_fused_backward
from python_ref.ops.downsample_pair import downsample_pair, downsample_pair_backward
from python_ref.ops.dwconv_act import dwconv_act, dwconv_act_backward
from python_ref.ops.dwconv_qkv import dwconv_qkv, dwconv_qkv_backward
from python_ref.ops.gated_fuse import gated_fuse, gated_fuse_backward
from python_ref.ops.group_propagate import group_propagate, group_propagate_backward
from python_ref.ops.grouped_pointwise import grouped_pointwise, grouped_pointwise_backward
from python_ref.ops.inject_fuse import inject_fuse, inject_fuse_backward
from python_ref.ops.lift_pool import lift_pool, lift_pool_backward
from python_ref.ops.mixed_head_attention import (
    mixed_head_attention,
    mixed_head_attention_backward,
    mixed_head_attention_out,
)
from python_ref.ops.multiscale_attention import (
    multiscale_attention,
    multiscale_attention_backward,
    multiscale_attention_out,
)
from python_ref.ops.partial_combine import partial_combine, partial_combine_backward
from python_ref.ops.patch_embed import patch_embed, patch_embed_backward, patch_embed_out
from python_ref.ops.pool_cat import pool_cat, pool_cat_backward
from python_ref.ops.propagate_cat import propagate_cat, propagate_cat_backward
from python_ref.ops.propagate_conv import propagate, propagate_conv, propagate_conv_backward
from python_ref.ops.region_fork import region_fork
from python_ref.ops.region_mix import region_mix, region_mix_backward
from python_ref.ops.region_sample import region_sample, region_sample_backward
from python_ref.ops.single_query_attention import (
    single_query_attention,
    single_query_attention_backward,
    single_query_attention_out,
)
from python_ref.ops.single_query_attention_absorbed import (
    single_query_attention_absorbed,
    single_query_attention_absorbed_backward,
    single_query_attention_absorbed_out,
    single_query_pool,
    single_query_pool_backward,
)
from python_ref.ops.strip_dwconv import strip_dwconv, strip_dwconv_backward
from python_ref.ops.token_fusion import token_fusion, token_fusion_backward
from python_ref.ops.value_conv import value_conv, value_conv_backward
from python_ref.ops.whiten_conv import whiten_conv, whiten_conv_backward

__all__ = [
    "REFERENCE",
    "OpTable",
    "abstract_token_attention",
    "abstract_token_attention_backward",
    "abstract_token_attention_out",
    "abstract_token_fork",
    "atrous_attention",
    "atrous_attention_backward",
    "atrous_attention_out",
    "atrous_dwconv",
    "atrous_dwconv_backward",
    "atrous_merge",
    "atrous_partition",
    "bilinear_sample",
    "bilinear_sample_backward",
    "branch_project_in",
    "branch_project_out",
    "centred_dwconv",
    "centred_dwconv_backward",
    "centred_dwconv_out",
    "context_topk",
    "conv_attention",
    "conv_attention_backward",
    "conv_attention_fused",
    "conv_attention_fused_backward",
    "downsample_pair",
    "downsample_pair_backward",
    "dwconv_act",
    "dwconv_act_backward",
    "dwconv_qkv",
    "dwconv_qkv_backward",
    "gated_fuse",
    "gated_fuse_backward",
    "group_propagate",
    "group_propagate_backward",
    "grouped_pointwise",
    "grouped_pointwise_backward",
    "inject_fuse",
    "inject_fuse_backward",
    "lift_pool",
    "lift_pool_backward",
    "mixed_head_attention",
    "mixed_head_attention_backward",
    "mixed_head_attention_out",
    "multiscale_attention",
    "multiscale_attention_backward",
    "multiscale_attention_out",
    "partial_combine",
    "partial_combine_backward",
    "patch_embed",
    "patch_embed_backward",
    "patch_embed_out",
    "pool_cat",
    "pool_cat_backward",
    "propagate",
    "propagate_cat",
    "propagate_cat_backward",
    "propagate_conv",
    "propagate_conv_backward",
    "region_fork",
    "region_mix",
    "region_mix_backward",
    "region_sample",
    "region_sample_backward",
    "single_query_attention",
    "single_query_attention_absorbed",
    "single_query_attention_absorbed_backward",
    "single_query_attention_absorbed_out",
    "single_query_attention_backward",
    "single_query_attention_out",
    "single_query_pool",
    "single_query_pool_backward",
    "strip_dwconv",
    "strip_dwconv_backward",
    "token_fusion",
    "token_fusion_backward",
    "value_conv",
    "value_conv_backward",
    "whiten_conv",
    "whiten_conv_backward",
]


@dataclass(frozen=True)
class OpTable:
    """The operators that mixers call. Every mixer holds one in its attribute `ops`.

    Assigning another table to that attribute swaps the implementation and nothing else. A mixer's
    `used_ops` names exactly those that it calls, with the options that it was built with.
    """

    abstract_token_fork: Callable  # (qkv, token, window, scale, pad_kv) -> out, summary, query
    atrous_attention: Callable  # (qkv, bias, dilations, window, scale) -> out
    atrous_dwconv: Callable  # (x, weight, dilations, stride) -> n maps
    bilinear_sample: Callable  # (x, offset) -> y
    branch_project_in: Callable  # (x, norms, linears) -> (B, H, W, n * D)
    branch_project_out: Callable  # (x, linears) -> n tensors (B, H, W, C)
    context_topk: Callable  # (u, n) -> index
    conv_attention: Callable  # (v, logits, scale, kernel, stride, padding) -> y
    conv_attention_fused: Callable  # (x, dw, logit_weight, logit_bias, value_weight, heads, scale)
    downsample_pair: Callable  # (x, weight3, weight5, scale, shift) -> (x1, x2)
    dwconv_act: Callable  # (x, weight, bias, act) -> y
    dwconv_qkv: Callable  # (x, wq, wk, wv, 3 affines, stride_q, stride_kv, cls) -> q, k, v
    gated_fuse: Callable  # (x, m, weight, bias, scale, residual) -> y
    group_propagate: Callable  # (x, w3, b3, w5, b5, kv3, kv5, scale) -> y
    grouped_pointwise: Callable  # (x, weights, biases) -> y
    inject_fuse: Callable  # (local, logit, offset) -> y
    lift_pool: Callable  # (x, weight, group, reduce) -> y
    mixed_head_attention: Callable  # (q, k, v, w1, b1, w2, b2, scale) -> out
    multiscale_attention: Callable  # (q, ks, vs, scale) -> out
    partial_combine: Callable  # (x, update, foreground, index) -> out
    patch_embed: Callable  # (x, weight, patch, kind, pool_mode) -> (B, H', W', C')
    pool_cat: Callable  # (xs, height, width) -> y
    propagate_conv: Callable  # (maps, kernels, weight, H, W, gate_x, gate_weight) -> y
    region_fork: Callable  # (x, weight, bias) -> (B, H', W', C), x
    region_mix: Callable  # (x, g, weight, region, bias) -> y
    single_query_attention: Callable  # (query, k, v, scale, exclude) -> out
    single_query_attention_absorbed: Callable  # (query, x, wk, wv, bv, scale, exclude) -> out
    strip_dwconv: Callable  # (x, horizontal, vertical) -> (B, H, W, C)
    token_fusion: Callable  # (q, kv, y, scale) -> z
    value_conv: Callable  # (out, v, weight, bias, scale, shift) -> y
    whiten_conv: Callable  # (x, weight, dw_weight, axis) -> (B, H, W, C')


REFERENCE = OpTable(
    abstract_token_fork=abstract_token_fork,
    atrous_attention=atrous_attention_out,
    atrous_dwconv=atrous_dwconv,
    bilinear_sample=bilinear_sample,
    branch_project_in=branch_project_in,
    branch_project_out=branch_project_out,
    context_topk=context_topk,
    conv_attention=conv_attention,
    conv_attention_fused=conv_attention_fused,
    downsample_pair=downsample_pair,
    dwconv_act=dwconv_act,
    dwconv_qkv=dwconv_qkv,
    gated_fuse=gated_fuse,
    group_propagate=group_propagate,
    grouped_pointwise=grouped_pointwise,
    inject_fuse=inject_fuse,
    lift_pool=lift_pool,
    mixed_head_attention=mixed_head_attention_out,
    multiscale_attention=multiscale_attention_out,
    partial_combine=partial_combine,
    patch_embed=patch_embed_out,
    pool_cat=pool_cat,
    propagate_conv=propagate_conv,
    region_fork=region_fork,
    region_mix=region_mix,
    single_query_attention=single_query_attention_out,
    single_query_attention_absorbed=single_query_attention_absorbed_out,
    strip_dwconv=strip_dwconv,
    token_fusion=token_fusion,
    value_conv=value_conv,
    whiten_conv=whiten_conv,
)
