"""Attention whose heads are mixed around the softmax in Triton, forward.

Values can only be summed with normalised weights, as the second layer mixes softmaxes of different
sums: `statistics` finds the log-sum-exp of Z, `forward` computes the weights again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.mixed_head_attention_backward import mixed_head_attention_backward
from hybrid_kernels.triton.mixed_heads import (
    BLOCK,
    CHUNK,
    launch_by_head,
    launch_by_mixed_head,
    load_bias,
    load_heads,
    logits,
    mixed_again,
    store_heads,
    store_statistic,
    tile_of_tokens,
)
from hybrid_kernels.triton.token_rows import LN_2, rows_of

__all__ = ["mixed_head_attention", "mixed_head_attention_backward"]


@triton.jit(do_not_specialize=["tokens", "heads", "mixed", "blocks"])
def statistics(
    rows,
    layers,
    lse,  # (B, g, M)
    tokens,
    heads,
    mixed,
    scale,
    blocks,  # of mixed heads
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    image, query, exists, block = tile_of_tokens(tokens, blocks, QUERIES)
    sizes, first = (tokens, heads, mixed, scale), block * BLOCK
    peak = tl.full((BLOCK, QUERIES), -1e38, tl.float32)
    total = tl.zeros((BLOCK, QUERIES), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        z = logits(rows, layers, (image, query, exists, key, key < tokens), sizes, first, D)
        z = tl.where((key < tokens)[None, None, :], z, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(z, axis=2))
        weight = tl.sum(tl.exp2(z - new_peak[:, :, None]), axis=2)
        total = total * tl.exp2(peak - new_peak) + weight
        peak = new_peak
    value = (peak + tl.log2(total)) * LN_2 + load_bias(layers[1], first, mixed)[:, None]
    store_statistic(lse, value, image, query, exists, sizes, first)


@triton.jit(do_not_specialize=["tokens", "heads", "mixed", "chunks", "parts"])
def forward(
    rows,
    layers,
    lse,
    out,  # like q
    tokens,
    heads,
    mixed,
    scale,
    chunks,  # of channels
    parts,  # chunks of all blocks of heads
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    image, query, exists, part = tile_of_tokens(tokens, parts, QUERIES)
    sizes, block, channel = (tokens, heads, mixed, scale), part // chunks * BLOCK, part % chunks
    mean = tl.zeros((BLOCK, QUERIES, CHUNK), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        tile = (image, query, exists, key, key < tokens)
        a = mixed_again(rows, layers, lse, tile, sizes, block, D)
        v = load_heads(rows[2], image, key, key < tokens, block, heads, channel * CHUNK, D)
        mean += tl.dot(a.to(v.dtype), v, input_precision="ieee")
    store_heads(out, mean, image, query, exists, block, heads, channel * CHUNK, D)


def mixed_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.mixed_head_attention: (out, lse). Raises RuntimeError for float64."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    shape = (q.shape[0], w1.shape[0], q.shape[1])
    lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    rows = tuple(rows_of(t) for t in (q, k, v))
    layers = tuple(t.contiguous() for t in (w1, b1, w2, b2))
    launch_by_mixed_head("statistics", statistics, q, w1, (rows, layers, lse), scale)
    args = (rows, layers, lse, rows_of(out))
    launch_by_head("forward", forward, "QUERIES", q, w1, args, scale)
    return out, lse
