"""Atrous window attention in Triton: the forward kernel and the launchers of both directions.

A program owns a share of the windows of one branch and head, and one tile of their query slots. It
walks over the windows with the position bias in registers, gathers queries, keys and values by
index, and runs the online softmax over tiles of keys: one tile for the usual window of side 7, so
that nothing but out and the log-sum-exp is written. Exponents are base 2, sums are float32.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.atrous_attention_backward import atrous_attention_backward
from hybrid_kernels.triton.atrous_plan import Plan
from hybrid_kernels.triton.atrous_windows import (
    LN_2,
    gather,
    locate,
    position_bias,
    scatter,
    scores,
    share,
    slot_offset,
    window_start,
)
from hybrid_kernels.triton.launch import launch

__all__ = ["atrous_attention", "atrous_attention_backward"]


@triton.jit(do_not_specialize=["B", "H", "W", "heads", "per_share"])
def forward(
    qkv,  # (query, key, value, strides): each (B, H, W, n, h, e)
    bias,  # (n, (2P-1)^2, h) or None
    out,  # (B, H, W, n, h, e)
    out_strides,
    lse,  # (B, H, W, n, h)
    lse_strides,
    B,
    H,
    W,
    heads,
    per_share,
    scale,
    DILATIONS: tl.constexpr,
    WINDOW: tl.constexpr,
    RAGGED: tl.constexpr,
    INDEX: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    TILES: tl.constexpr = (WINDOW * WINDOW + TILE - 1) // TILE
    program = tl.program_id(0)
    branch, dilation, head, begin, end = share(
        program // TILES, B, H, W, heads, per_share, DILATIONS, WINDOW
    )
    query = program % TILES * TILE + tl.arange(0, TILE)
    if TILES == 1:
        only_table = position_bias(bias, branch, head, heads, query, query, WINDOW)
    for item in tl.range(begin, end, disable_licm=True):
        at = locate(item, query, H, W, dilation, WINDOW, RAGGED, INDEX)
        q = gather(qkv[0], qkv[3], at, branch, head, HEAD_DIM, CHANNELS)
        # Finite, so that a window without any pixel gives no inf - inf.
        peak = tl.full((TILE,), -1e38, tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        mixed = tl.zeros((TILE, CHANNELS), tl.float32)
        for tile in tl.range(TILES, num_stages=1, disable_licm=True):
            key = tile * TILE + tl.arange(0, TILE)
            key_at = locate(item, key, H, W, dilation, WINDOW, RAGGED, INDEX)
            k = gather(qkv[1], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
            v = gather(qkv[2], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
            if TILES == 1:
                table = only_table
            else:
                table = position_bias(bias, branch, head, heads, query, key, WINDOW)
            s = scores(q, k, table, key_at[5], scale, RAGGED)
            new_peak = tl.maximum(peak, tl.max(s, axis=1))
            weight = tl.exp2(s - new_peak[:, None])
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(weight, axis=1)
            mixed = mixed * shrink[:, None]
            mixed += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            peak = new_peak
        total = tl.where(at[5], total, 1.0)
        scatter(out, out_strides, mixed / total[:, None], at, branch, head, HEAD_DIM)
        row = window_start(at, branch, head, lse_strides) + slot_offset(at, lse_strides)
        tl.store(lse + row, (peak + tl.log2(total)) * LN_2, mask=at[5])


def atrous_attention(
    qkv: Tensor, bias: Tensor | None, dilations: Sequence[int], window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.atrous_attention: (out, lse). Raises RuntimeError for float64."""
    plan = Plan.of(qkv, dilations, window)
    out = torch.empty(*plan.row_shape, plan.head_dim, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(plan.row_shape, dtype=torch.float32, device=qkv.device)
    chosen = plan.settings("atrous_attention.forward")
    tiles = plan.tiles(chosen)
    per_share, shares = plan.cut(chosen.pop("programs") // tiles)
    launch(
        forward,
        shares * tiles,
        qkv,
        (*qkv.unbind(4), qkv.select(4, 0).stride()),
        None if bias is None else bias.contiguous(),
        out,
        out.stride(),
        lse,
        lse.stride(),
        *plan.sizes,
        per_share,
        scale,
        **plan.constants(qkv, out),
        **chosen,
    )
    return out, lse
