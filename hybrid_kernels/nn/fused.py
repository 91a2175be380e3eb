"""The operators that accelerated mixers call, in the shape of `python_ref.ops.REFERENCE`."""

from dataclasses import fields, replace

from python_ref.ops import REFERENCE

from ..ops import (
    abstract_token_fork,
    atrous_attention,
    atrous_dwconv,
    bilinear_sample,
    context_topk,
    conv_attention,
    conv_attention_fused,
    downsample_pair,
    dwconv_act,
    gated_fuse,
    group_propagate,
    inject_fuse,
    lift_pool,
    mixed_head_attention,
    multiscale_attention,
    partial_combine,
    patch_embed,
    pool_cat,
    region_fork,
    region_mix,
    single_query_attention,
    single_query_attention_absorbed,
    token_fusion,
    value_conv,
)
from .branch_linear import branch_project_in, branch_project_out
from .dwconv_qkv import dwconv_qkv
from .propagate_conv import propagate_conv
from .strip_dwconv import strip_dwconv
from .whiten_conv import whiten_conv

# An operator that has no kernel yet stays the reference's.
FUSED = replace(
    REFERENCE,
    abstract_token_fork=abstract_token_fork,
    atrous_attention=atrous_attention,
    atrous_dwconv=atrous_dwconv,
    bilinear_sample=bilinear_sample,
    context_topk=context_topk,
    conv_attention=conv_attention,
    conv_attention_fused=conv_attention_fused,
    downsample_pair=downsample_pair,
    dwconv_act=dwconv_act,
    dwconv_qkv=dwconv_qkv,
    gated_fuse=gated_fuse,
    group_propagate=group_propagate,
    inject_fuse=inject_fuse,
    lift_pool=lift_pool,
    mixed_head_attention=mixed_head_attention,
    multiscale_attention=multiscale_attention,
    partial_combine=partial_combine,
    patch_embed=patch_embed,
    pool_cat=pool_cat,
    propagate_conv=propagate_conv,
    region_fork=region_fork,
    region_mix=region_mix,
    single_query_attention=single_query_attention,
    single_query_attention_absorbed=single_query_attention_absorbed,
    strip_dwconv=strip_dwconv,
    token_fusion=token_fusion,
    value_conv=value_conv,
    whiten_conv=whiten_conv,
    branch_project_in=branch_project_in,
    branch_project_out=branch_project_out,
)


def is_fused(op: str) -> bool:
    """Whether `accelerate` exchanges this operator of `python_ref.ops.OpTable`."""
    return getattr(FUSED, op) is not getattr(REFERENCE, op)


def fused_ops() -> dict[str, bool]:
    """Every operator that models call, and whether `accelerate` exchanges it."""
    return {op: is_fused(op) for op in sorted(field.name for field in fields(FUSED))}
