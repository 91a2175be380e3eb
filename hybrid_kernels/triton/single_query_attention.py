"""Attention of a few queries over very many tokens in Triton: forward and backward.

A program owns a run of tokens of one image and head and all queries, padded to a tile of 16. The
forward leaves partial results (largest score, sum of exponentials, weighed values) of every run,
and `merge` joins those of a query in ascending order; the backward leaves partial gradients of the
queries likewise. Exponents are base 2, sums are float32; there are no atomics.
"""

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

TILE = 16  # queries of a program: the least that a matrix product takes


@triton.jit
def token_scores(query, k, key, count, excluded, image, scale):
    """Base-2 scores (queries, tokens), -inf where a token does not exist or is excluded."""
    s = tl.dot(query, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    is_key = key < count
    if excluded is not None:
        is_key = is_key & (tl.load(excluded + image * count + key, mask=is_key, other=1) == 0)
    return tl.where(is_key[None, :], s, float("-inf"))


@triton.jit(do_not_specialize=["queries", "heads", "count", "runs"])
def forward(
    query,  # (tensor (B, G, h, d), strides); image stride 0 where images share queries
    k,
    v,  # None: the keys
    excluded,  # (B, N) int8 or None
    partial,  # (B, h, runs, TILE, 2 + VALUE_CHANNELS) float32
    queries,
    heads,
    count,
    runs,
    scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TILES: tl.constexpr,  # of KEYS tokens, in a run
):
    program = tl.program_id(0).to(tl.int64)
    image = program // runs // heads
    head = program // runs % heads
    g = tl.arange(0, QUERIES)
    q = load_rows(query, image, head, g, g < queries, D, CHANNELS)
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, VALUE_CHANNELS), tl.float32)
    for tile in range(TILES):
        key = (program % runs * TILES + tile) * KEYS + tl.arange(0, KEYS)
        keys = load_rows(k, image, head, key, key < count, D, CHANNELS)
        values = keys
        if v is not None:
            values = load_rows(v, image, head, key, key < count, DV, VALUE_CHANNELS)
        s = token_scores(q, keys, key, count, excluded, image, scale)
        new_peak = tl.maximum(peak, tl.max(s, axis=1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # excluded tokens alone
        weight = tl.exp2(s - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weight, axis=1)
        mixed = mixed * shrink[:, None]
        mixed += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        peak = new_peak
    row = partial + (program * QUERIES + g) * (2 + VALUE_CHANNELS)
    tl.store(row, peak)
    tl.store(row + 1, total)
    tl.store(row[:, None] + 2 + tl.arange(0, VALUE_CHANNELS)[None, :], mixed)


@triton.jit(do_not_specialize=["queries", "heads", "runs"])
def merge(
    partial,
    out,  # (tensor (B, G, h, dv), strides)
    lse,  # (B, h, G)
    queries,
    heads,
    runs,
    DV: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    RUNS: tl.constexpr,  # loaded at once
):
    program = tl.program_id(0).to(tl.int64)
    pair = program // queries
    g = program % queries
    c = tl.arange(0, VALUE_CHANNELS)
    peak = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    mixed = tl.zeros((VALUE_CHANNELS,), tl.float32)
    for first in range(0, runs, RUNS):
        run = first + tl.arange(0, RUNS)
        exists = run < runs
        row = partial + ((pair * runs + run) * QUERIES + g) * (2 + VALUE_CHANNELS)
        peaks = tl.load(row, mask=exists, other=float("-inf"))
        new_peak = tl.maximum(peak, tl.max(peaks, axis=0))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # excluded tokens alone
        weight = tl.exp2(peaks - base)
        shrink = tl.exp2(peak - base)
        totals = tl.load(row + 1, mask=exists, other=0.0)
        values = tl.load(row[:, None] + 2 + c[None, :], mask=exists[:, None], other=0.0)
        total = total * shrink + tl.sum(weight * totals, axis=0)
        mixed = mixed * shrink + tl.sum(weight[:, None] * values, axis=0)
        peak = new_peak
    start = pair // heads * out[1][0] + g * out[1][1] + pair % heads * out[1][2]
    values = (mixed / total).to(out[0].dtype.element_ty)
    tl.store(out[0] + start + c * out[1][3], values, mask=c < DV)
    one = tl.arange(0, 1)
    tl.store(lse + program + one, (peak + tl.log2(total)) * LN_2)


@triton.jit(do_not_specialize=["queries", "heads", "count", "runs"])
def backward(
    query,
    k,
    v,
    excluded,
    saved,  # (grad_out, out, lse), the first two as (tensor (B, G, h, dv), strides)
    grad_k,  # (tensor (B, N, h, d), strides), of values too if these are the keys; or None
    grad_v,
    partial,  # (B, h, runs, TILE, CHANNELS) float32; None when not asked for
    queries,
    heads,
    count,
    runs,
    scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TILES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // runs // heads
    head = program // runs % heads
    g = tl.arange(0, QUERIES)
    exists = g < queries
    q = load_rows(query, image, head, g, exists, D, CHANNELS)
    u = load_rows(saved[0], image, head, g, exists, DV, VALUE_CHANNELS)
    o = load_rows(saved[1], image, head, g, exists, DV, VALUE_CHANNELS)
    row_dot = tl.sum(u.to(tl.float32) * o.to(tl.float32), axis=1)
    # An infinite log-sum-exp makes all weights of a missing query 0.
    row = (image * heads + head) * queries + g
    row_lse = tl.load(saved[2] + row, mask=exists, other=float("inf")) * LOG2_E
    dq = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for tile in range(TILES):
        key = (program % runs * TILES + tile) * KEYS + tl.arange(0, KEYS)
        keys = load_rows(k, image, head, key, key < count, D, CHANNELS)
        values = keys
        if v is not None:
            values = load_rows(v, image, head, key, key < count, DV, VALUE_CHANNELS)
        s = token_scores(q, keys, key, count, excluded, image, scale)
        weight = tl.exp2(s - row_lse[:, None])
        grad = tl.dot(u, tl.trans(values), input_precision="ieee")
        ds = (weight * (grad - row_dot[:, None])).to(keys.dtype)
        if grad_v is not None:
            dv = tl.dot(tl.trans(weight.to(u.dtype)), u, input_precision="ieee")
            store_rows(grad_v, dv, image, head, key, key < count, DV)
        if grad_k is not None:
            dk = tl.dot(tl.trans(ds), q, input_precision="ieee") * scale
            if v is None:
                dk += tl.dot(tl.trans(weight.to(u.dtype)), u, input_precision="ieee")
            store_rows(grad_k, dk, image, head, key, key < count, D)
        dq += tl.dot(ds, keys, input_precision="ieee")
    if partial is not None:
        row = partial + (program * QUERIES + g) * CHANNELS
        tl.store(row[:, None] + tl.arange(0, CHANNELS)[None, :], dq * scale)


def single_query_attention(
    query: Tensor, k: Tensor, v: Tensor, scale: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.single_query_attention: (out, lse). Raises RuntimeError for float64."""
    return attend(query, k, v, scale, exclude)


def single_query_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    exclude: Tensor | None,
    need_query: bool,
    need_k: bool,
    need_v: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.single_query_attention_backward: (grad_query, grad_k, grad_v).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    grad_k, grad_v = new_like(k, need_k), new_like(v, need_v)
    saved, grads = (grad_out, out, lse), (grad_k, grad_v)
    grad_query = gradients(saved, query, k, v, scale, exclude, need_query, grads)
    return grad_query, grad_k, grad_v


def attend(
    query: Tensor, k: Tensor, v: Tensor | None, scale: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(out, lse); without v the keys are the values, and are read once."""
    check_dtype("k", k)
    B, N, h, d = k.shape
    G, dv = query.shape[-3], d if v is None else v.shape[3]
    out = torch.empty((B, G, h, dv), dtype=k.dtype, device=k.device)
    lse = torch.empty((B, h, G), dtype=torch.float32, device=k.device)
    sizes, runs, chosen = _plan("forward", k, dv)
    channels = sizes["VALUE_CHANNELS"]
    partial = torch.empty((B, h, runs, TILE, 2 + channels), dtype=torch.float32, device=k.device)
    inputs = (_queries(query, k), rows_of(k), _rows_or_none(v), _mask(exclude, k))
    numbers = (G, h, N, runs, scale)
    launch(forward, B * h * runs, k, *inputs, partial, *numbers, **sizes, **chosen)
    sizes = {name: sizes[name] for name in ("DV", "VALUE_CHANNELS", "QUERIES")}
    chosen = settings("single_query_attention.merge", f"32-bit, e <= {channels}", k.device)
    arguments = (partial, rows_of(out), lse, G, h, runs)
    launch(merge, B * h * G, k, *arguments, **sizes, **chosen)
    return out, lse


def gradients(
    saved: tuple[Tensor, Tensor, Tensor],
    query: Tensor,
    k: Tensor,
    v: Tensor | None,
    scale: float,
    exclude: Tensor | None,
    need_query: bool,
    grads: tuple[Tensor, Tensor],
) -> Tensor:
    """Fills grads = (of k, and of v), where they have elements, and returns that of the queries.

    saved: (gradient of out, out, lse). Without v, k's takes both.
    """
    check_dtype("k", k)
    B, N, h, d = k.shape
    G = query.shape[-3]
    sizes, runs, chosen = _plan("backward", k, d if v is None else v.shape[3])
    partial = None
    if need_query:
        shape = (B, h, runs, TILE, sizes["CHANNELS"])
        partial = torch.empty(shape, dtype=torch.float32, device=k.device)
    inputs = (_queries(query, k), rows_of(k), _rows_or_none(v), _mask(exclude, k))
    results = (rows_of(saved[0]), rows_of(saved[1]), saved[2].contiguous())
    wanted = tuple(_rows_or_none(grad if grad.numel() else None) for grad in grads)
    if need_query or any(wanted):
        arguments = (*inputs, results, *wanted, partial, G, h, N, runs, scale)
        launch(backward, B * h * runs, k, *arguments, **sizes, **chosen)
    grad_query = new_like(query, False)
    if partial is not None:
        over = (0, 2) if query.ndim == 3 else 2  # torch sums in a fixed order
        grad_query = partial[..., :G, :d].sum(dim=over).transpose(-3, -2).to(query.dtype)
    return grad_query.contiguous()


def _plan(kernel: str, k: Tensor, dv: int) -> tuple[dict[str, int], int, dict[str, Any]]:
    """Constants of the kernels, runs of tokens per image and head, launch settings."""
    B, N, h, d = k.shape
    check_index("tokens", N)
    channels, value_channels = (max(16, triton.next_power_of_2(w)) for w in (d, dv))
    problem = f"{k.element_size() * 8}-bit, e <= {max(channels, value_channels)}"
    chosen = settings(f"single_query_attention.{kernel}", problem, k.device)
    # Enough runs to fill a GPU, by the shape alone; each as long as that leaves it.
    tiles, programs = triton.cdiv(N, chosen["KEYS"]), chosen.pop("programs")
    per_run = triton.next_power_of_2(max(1, tiles * B * h // programs))
    sizes = {"D": d, "DV": dv, "CHANNELS": channels, "VALUE_CHANNELS": value_channels}
    sizes |= {"QUERIES": TILE, "TILES": per_run}
    return sizes, triton.cdiv(tiles, per_run), chosen


def _rows_or_none(x: Tensor | None) -> tuple[Tensor, tuple[int, ...]] | None:
    return None if x is None else rows_of(x)


def _queries(query: Tensor, k: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    return rows_of(query if query.ndim == 4 else query.expand(k.shape[0], -1, -1, -1))


def _mask(exclude: Tensor | None, k: Tensor) -> Tensor | None:
    """1 where a token is excluded, (B, N) int8."""
    if exclude is None:
        return None
    mask = torch.zeros(k.shape[:2], dtype=torch.int8, device=k.device)
    return mask.scatter_(1, exclude.long(), 1)
