"""Softmax attention over segments of keys in Triton: forward and backward.

A program owns a tile of the queries of one image and head, and walks over the keys of one segment
after the other with one online softmax: running maximum and sum carry across segments. Exponents
are base 2, sums are float32.

The backward recomputes A = exp(S - lse) and dS = A (dout v^T - D), D_s = <dout_s, out_s>, in two
kernels: `by_query` owns queries and computes dq, `by_key` owns keys of one segment and computes
their dk and dv. Nothing is added to memory twice, so there are no atomics.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import check_dtype, check_index, launch, settings
from hybrid_kernels.triton.token_rows import (
    LN_2,
    LOG2_E,
    load_rows,
    new_like,
    rows_of,
    store_rows,
)


@triton.jit
def place(count, heads, TILE: tl.constexpr):
    """Image and head (64-bit) and tokens of this program's tile, and which of them exist."""
    program = tl.program_id(0)
    tiles = tl.cdiv(count, TILE)
    pair = (program // tiles).to(tl.int64)
    token = program % tiles * TILE + tl.arange(0, TILE)
    return pair // heads, pair % heads, token, token < count


@triton.jit
def scores(q, k, key_exists, scale):
    """Base-2 scores (queries, keys), -inf where there is no key."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    return tl.where(key_exists[None, :], s, float("-inf"))


@triton.jit
def statistics(saved, image, head, heads, token, exists, count, g, DV: tl.constexpr):
    """Log-sum-exp (base 2) and D of queries; an infinite log-sum-exp makes all weights of a
    missing query 0."""
    o = load_rows(saved[1], image, head, token, exists, DV, g.shape[1])
    row = (image * heads + head) * count + token
    row_lse = tl.load(saved[2] + row, mask=exists, other=float("inf")) * LOG2_E
    return row_lse, tl.sum(g.to(tl.float32) * o.to(tl.float32), axis=1)


@triton.jit
def weights(q, k, v, g, key_exists, row_lse, row_dot, scale):
    """A and dS (queries, keys), both 0 where a query or key is missing."""
    weight = tl.exp2(scores(q, k, key_exists, scale) - row_lse[:, None])
    grad = tl.dot(g, tl.trans(v), input_precision="ieee")
    return weight, weight * (grad - row_dot[:, None])


@triton.jit(do_not_specialize=["queries", "heads"])
def forward(
    q,  # (tensor (B, N, h, d), strides)
    segments,  # of each: (k, v, number of keys), k and v like q
    out,  # like q
    lse,  # (B, h, N)
    queries,
    heads,
    scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    image, head, query, exists = place(queries, heads, QUERIES)
    rows = load_rows(q, image, head, query, exists, D, CHANNELS)
    peak = tl.full((QUERIES,), -1e38, tl.float32)  # finite, so that nothing gives inf - inf
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, VALUE_CHANNELS), tl.float32)
    for i in tl.static_range(len(segments)):
        count = segments[i][2]
        for first in range(0, count, KEYS):
            key = first + tl.arange(0, KEYS)
            key_exists = key < count
            k = load_rows(segments[i][0], image, head, key, key_exists, D, CHANNELS)
            v = load_rows(segments[i][1], image, head, key, key_exists, DV, VALUE_CHANNELS)
            s = scores(rows, k, key_exists, scale)
            new_peak = tl.maximum(peak, tl.max(s, axis=1))
            weight = tl.exp2(s - new_peak[:, None])
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(weight, axis=1)
            mixed = mixed * shrink[:, None]
            mixed += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            peak = new_peak
    store_rows(out, mixed / total[:, None], image, head, query, exists, DV)
    row = (image * heads + head) * queries + query
    tl.store(lse + row, (peak + tl.log2(total)) * LN_2, mask=exists)


@triton.jit(do_not_specialize=["queries", "heads"])
def by_query(
    q,
    segments,
    saved,  # (grad_out, out, lse), the first two like q
    grad_q,  # like q
    queries,
    heads,
    scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    image, head, query, exists = place(queries, heads, QUERIES)
    rows = load_rows(q, image, head, query, exists, D, CHANNELS)
    g = load_rows(saved[0], image, head, query, exists, DV, VALUE_CHANNELS)
    row_lse, row_dot = statistics(saved, image, head, heads, query, exists, queries, g, DV)
    dq = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for i in tl.static_range(len(segments)):
        count = segments[i][2]
        for first in range(0, count, KEYS):
            key = first + tl.arange(0, KEYS)
            key_exists = key < count
            k = load_rows(segments[i][0], image, head, key, key_exists, D, CHANNELS)
            v = load_rows(segments[i][1], image, head, key, key_exists, DV, VALUE_CHANNELS)
            _, ds = weights(rows, k, v, g, key_exists, row_lse, row_dot, scale)
            dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    store_rows(grad_q, dq * scale, image, head, query, exists, D)


@triton.jit(do_not_specialize=["queries", "heads"])
def by_key(
    q,
    segment,
    saved,
    grad_k,  # like q; None when not asked for
    grad_v,
    queries,
    heads,
    scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    image, head, key, key_exists = place(segment[2], heads, KEYS)
    k = load_rows(segment[0], image, head, key, key_exists, D, CHANNELS)
    v = load_rows(segment[1], image, head, key, key_exists, DV, VALUE_CHANNELS)
    dk = tl.zeros((KEYS, CHANNELS), tl.float32)
    dv = tl.zeros((KEYS, VALUE_CHANNELS), tl.float32)
    for first in range(0, queries, QUERIES):
        query = first + tl.arange(0, QUERIES)
        exists = query < queries
        rows = load_rows(q, image, head, query, exists, D, CHANNELS)
        g = load_rows(saved[0], image, head, query, exists, DV, VALUE_CHANNELS)
        row_lse, row_dot = statistics(saved, image, head, heads, query, exists, queries, g, DV)
        weight, ds = weights(rows, k, v, g, key_exists, row_lse, row_dot, scale)
        dv += tl.dot(tl.trans(weight.to(g.dtype)), g, input_precision="ieee")
        dk += tl.dot(tl.trans(ds.to(rows.dtype)), rows, input_precision="ieee")
    if grad_k is not None:
        store_rows(grad_k, dk * scale, image, head, key, key_exists, D)
    if grad_v is not None:
        store_rows(grad_v, dv, image, head, key, key_exists, DV)


def multiscale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.multiscale_attention: (out, lse). Raises RuntimeError for float64."""
    check_dtype("q", q)
    B, N, h, _ = q.shape
    out = torch.empty((B, N, h, vs[0].shape[3]), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, h, N), dtype=torch.float32, device=q.device)
    _launch("forward", forward, N, q, ks, vs, _segments(ks, vs), rows_of(out), lse, scale)
    return out, lse


def multiscale_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    out: Tensor,
    lse: Tensor,
    scale: float,
    need_q: bool,
    need_ks: Sequence[bool],
    need_vs: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """torch.ops.hybrid.multiscale_attention_backward: (grad_q, grad_ks, grad_vs).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    check_dtype("q", q)
    saved = (rows_of(grad_out), rows_of(out), lse.contiguous())
    grad_q, grad_ks, grad_vs = new_like(q, need_q), [], []
    if need_q:
        segments = _segments(ks, vs)
        _launch(
            "by_query", by_query, q.shape[1], q, ks, vs, segments, saved, rows_of(grad_q), scale
        )
    for k, v, need_k, need_v in zip(ks, vs, need_ks, need_vs, strict=True):
        grad_ks.append(new_like(k, need_k))
        grad_vs.append(new_like(v, need_v))
        if not need_k and not need_v:
            continue
        grads = (rows_of(g) if g.ndim == 4 else None for g in (grad_ks[-1], grad_vs[-1]))
        (segment,) = _segments([k], [v])
        _launch("by_key", by_key, k.shape[1], q, ks, vs, segment, saved, *grads, scale)
    return grad_q, grad_ks, grad_vs


def _launch(
    name: str,
    kernel: Any,
    count: int,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    *args: Any,
) -> None:
    """Run a kernel on tiles of `count` tokens of every image and head."""
    B, N, h, d = q.shape
    dv = vs[0].shape[3]
    check_index("tokens", max(N, *(k.shape[1] for k in ks)))
    channels, value_channels = (max(16, triton.next_power_of_2(width)) for width in (d, dv))
    problem = f"{q.element_size() * 8}-bit, e <= {max(channels, value_channels)}"
    chosen = settings(f"multiscale_attention.{name}", problem, q.device)
    tile = chosen["KEYS" if name == "by_key" else "QUERIES"]
    *inputs, scale = args
    launch(
        kernel,
        B * h * triton.cdiv(count, tile),
        q,
        rows_of(q),
        *inputs,
        N,
        h,
        scale,
        D=d,
        DV=dv,
        CHANNELS=channels,
        VALUE_CHANNELS=value_channels,
        **chosen,
    )


def _segments(ks: Sequence[Tensor], vs: Sequence[Tensor]) -> tuple:
    return tuple((rows_of(k), rows_of(v), k.shape[1]) for k, v in zip(ks, vs, strict=True))
