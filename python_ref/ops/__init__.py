"""Reference operators: the same signatures as torch.ops.hybrid, in plain PyTorch and einops."""

from collections.abc import Callable
from dataclasses import dataclass

from python_ref.ops.atrous_attention import (
    atrous_attention,
    atrous_attention_backward,
    atrous_attention_out,
)
from python_ref.ops.atrous_dwconv import atrous_dwconv
from python_ref.ops.atrous_partition import atrous_merge, atrous_partition
from python_ref.ops.branch_linear import branch_project_in, branch_project_out
from python_ref.ops.gated_fuse import gated_fuse, gated_fuse_backward
from python_ref.ops.multiscale_attention import (
    multiscale_attention,
    multiscale_attention_backward,
    multiscale_attention_out,
)

__all__ = [
    "REFERENCE",
    "OpTable",
    "atrous_attention",
    "atrous_attention_backward",
    "atrous_attention_out",
    "atrous_dwconv",
    "atrous_merge",
    "atrous_partition",
    "branch_project_in",
    "branch_project_out",
    "gated_fuse",
    "gated_fuse_backward",
    "multiscale_attention",
    "multiscale_attention_backward",
    "multiscale_attention_out",
]


@dataclass(frozen=True)
class OpTable:
    """The operators that mixers call. Every mixer holds one in its attribute `ops`.

    Assigning another table to that attribute swaps the implementation and nothing else.
    """

    atrous_attention: Callable  # (qkv, bias, dilations, window, scale) -> out
    atrous_dwconv: Callable  # (x, weight, dilations, stride) -> n maps
    gated_fuse: Callable  # (x, m, weight, bias, scale, residual) -> y
    multiscale_attention: Callable  # (q, ks, vs, scale) -> out
    branch_project_in: Callable  # (x, norms, linears) -> (B, H, W, n * D)
    branch_project_out: Callable  # (x, linears) -> n tensors (B, H, W, C)


REFERENCE = OpTable(
    atrous_attention=atrous_attention_out,
    atrous_dwconv=atrous_dwconv,
    gated_fuse=gated_fuse,
    multiscale_attention=multiscale_attention_out,
    branch_project_in=branch_project_in,
    branch_project_out=branch_project_out,
)
