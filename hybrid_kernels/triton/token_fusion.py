"""Pixels that read a few tokens in Triton: forward, and backward by queries and by keys.

A program owns a tile of queries of one image and head and walks over the keys; in the second pass
of the backward it owns a tile of keys and walks over a run of queries, and `fold_terms` adds the
runs in a fixed order. Exponents are base 2, sums float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import check_dtype, check_index, launch, settings
from hybrid_kernels.triton.reduction import fold_terms
from hybrid_kernels.triton.token_rows import LOG2_E, load_rows, new_like, rows_of, store_rows


@triton.jit
def key_scores(q, k, key, tokens, scale):
    """Base-2 scores (queries, keys), -inf where there is no key."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    return tl.where((key < tokens)[None, :], s, float("-inf"))


@triton.jit
def attend(query, k, v, image, head, tokens, scale, D: tl.constexpr, KEYS: tl.constexpr):
    """What rows of queries (queries, channels) read of all tokens, the same shape in float32."""
    peak = tl.full((query.shape[0],), -1e38, tl.float32)
    total = tl.zeros((query.shape[0],), tl.float32)
    mixed = tl.zeros(query.shape, tl.float32)
    for first in range(0, tokens, KEYS):
        key = first + tl.arange(0, KEYS)
        keys = load_rows(k, image, head, key, key < tokens, D, query.shape[1])
        values = load_rows(v, image, head, key, key < tokens, D, query.shape[1])
        s = key_scores(query, keys, key, tokens, scale)
        new_peak = tl.maximum(peak, tl.max(s, axis=1))
        weight = tl.exp2(s - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weight, axis=1)
        mixed = mixed * shrink[:, None]
        mixed += tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        peak = new_peak
    return mixed / total[:, None]


@triton.jit
def load_softmax(saved, row, exists):
    """Largest score (base 2) of rows of queries, 1 / sum of the weights relative to it, and D.

    One log-sum-exp instead of the first two would spoil weights by the rounding of large scores.
    """
    row = saved + row * 3
    peak = tl.load(row, mask=exists, other=float("inf"))  # weights of 0
    inverse = tl.load(row + 1, mask=exists, other=0.0)
    return peak, inverse, tl.load(row + 2, mask=exists, other=0.0)


@triton.jit(do_not_specialize=["pixels", "tokens", "heads"])
def forward(
    q,  # (tensor (B, N, h, d), strides)
    k,  # (tensor (B, M, h, d), strides)
    v,
    y,
    out,
    pixels,
    tokens,
    heads,
    scale,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    program = tl.program_id(0)
    blocks = tl.cdiv(pixels, QUERIES)
    image = (program // blocks // heads).to(tl.int64)
    head = program // blocks % heads
    pixel = program % blocks * QUERIES + tl.arange(0, QUERIES)
    exists = pixel < pixels
    query = load_rows(q, image, head, pixel, exists, D, CHANNELS)
    read = attend(query, k, v, image, head, tokens, scale, D, KEYS)
    row = load_rows(y, image, head, pixel, exists, D, CHANNELS).to(tl.float32)
    store_rows(out, row + read, image, head, pixel, exists, D)


@triton.jit(do_not_specialize=["pixels", "tokens", "heads"])
def by_query(
    q,
    k,
    v,
    grad,  # (tensor (B, N, h, d), strides)
    grad_q,
    saved,  # (B, h, N, 3) float32: see `load_softmax`, written for by_key
    pixels,
    tokens,
    heads,
    scale,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    program = tl.program_id(0)
    blocks = tl.cdiv(pixels, QUERIES)
    pair = (program // blocks).to(tl.int64)
    image = pair // heads
    head = pair % heads
    pixel = program % blocks * QUERIES + tl.arange(0, QUERIES)
    exists = pixel < pixels
    query = load_rows(q, image, head, pixel, exists, D, CHANNELS)
    g = load_rows(grad, image, head, pixel, exists, D, CHANNELS)
    peak = tl.full((QUERIES,), -1e38, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    row_dot = tl.zeros((QUERIES,), tl.float32)
    for first in range(0, tokens, KEYS):
        key = first + tl.arange(0, KEYS)
        keys = load_rows(k, image, head, key, key < tokens, D, CHANNELS)
        values = load_rows(v, image, head, key, key < tokens, D, CHANNELS)
        s = key_scores(query, keys, key, tokens, scale)
        new_peak = tl.maximum(peak, tl.max(s, axis=1))
        weight = tl.exp2(s - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weight, axis=1)
        product = weight * tl.dot(g, tl.trans(values), input_precision="ieee")
        row_dot = row_dot * shrink + tl.sum(product, axis=1)
        peak = new_peak
    inverse = 1.0 / total
    row_dot = row_dot * inverse
    row = saved + (pair * pixels + pixel) * 3
    tl.store(row, peak, mask=exists)
    tl.store(row + 1, inverse, mask=exists)
    tl.store(row + 2, row_dot, mask=exists)
    if grad_q is None:
        return
    dq = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for first in range(0, tokens, KEYS):
        key = first + tl.arange(0, KEYS)
        keys = load_rows(k, image, head, key, key < tokens, D, CHANNELS)
        values = load_rows(v, image, head, key, key < tokens, D, CHANNELS)
        s = key_scores(query, keys, key, tokens, scale)
        weight = tl.exp2(s - peak[:, None]) * inverse[:, None]
        dp = tl.dot(g, tl.trans(values), input_precision="ieee")
        ds = weight * (dp - row_dot[:, None])
        dq += tl.dot(ds.to(keys.dtype), keys, input_precision="ieee")
    store_rows(grad_q, dq * scale, image, head, pixel, exists, D)


@triton.jit(do_not_specialize=["pixels", "tokens", "heads", "runs", "steps"])
def by_key(
    q,
    k,
    v,
    grad,
    saved,
    partial,  # (B, runs, M, 2, h, d) float32
    pixels,
    tokens,
    heads,
    runs,  # of queries, of an image
    steps,  # tiles of queries in a run
    scale,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    program = tl.program_id(0)
    blocks = tl.cdiv(tokens, KEYS)
    key = program % blocks * KEYS + tl.arange(0, KEYS)
    run = program // blocks % runs
    pair = (program // blocks // runs).to(tl.int64)
    image = pair // heads
    head = pair % heads
    keys = load_rows(k, image, head, key, key < tokens, D, CHANNELS)
    values = load_rows(v, image, head, key, key < tokens, D, CHANNELS)
    dk = tl.zeros((KEYS, CHANNELS), tl.float32)
    dv = tl.zeros((KEYS, CHANNELS), tl.float32)
    for step in range(steps):
        pixel = (run * steps + step) * QUERIES + tl.arange(0, QUERIES)
        exists = pixel < pixels
        query = load_rows(q, image, head, pixel, exists, D, CHANNELS)
        g = load_rows(grad, image, head, pixel, exists, D, CHANNELS)
        peak, inverse, row_dot = load_softmax(saved, pair * pixels + pixel, exists)
        s = key_scores(query, keys, key, tokens, scale)
        weight = tl.exp2(s - peak[:, None]) * inverse[:, None]
        dp = tl.dot(g, tl.trans(values), input_precision="ieee")
        ds = weight * (dp - row_dot[:, None])
        dk += tl.dot(tl.trans(ds.to(query.dtype)), query, input_precision="ieee")
        dv += tl.dot(tl.trans(weight.to(g.dtype)), g, input_precision="ieee")
    c = tl.arange(0, CHANNELS)
    row = ((image * runs + run) * tokens + key) * 2 * heads + head
    where = (row * D)[:, None] + c[None, :]
    mask = (key < tokens)[:, None] & (c < D)[None, :]
    tl.store(partial + where, dk * scale, mask=mask)
    tl.store(partial + where + heads * D, dv, mask=mask)


def token_fusion(q: Tensor, kv: Tensor, y: Tensor, scale: float) -> Tensor:
    """torch.ops.hybrid.token_fusion: (B, N, h, d). Raises RuntimeError for float64."""
    sizes, chosen = _plan("forward", q, kv)
    B, N, h, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    tensors = [rows_of(t) for t in (q, kv[:, :, 0], kv[:, :, 1], y, out)]
    programs = B * h * triton.cdiv(N, chosen["QUERIES"])
    launch(forward, programs, q, *tensors, N, kv.shape[1], h, scale, **sizes, **chosen)
    return out


def token_fusion_backward(
    grad: Tensor, q: Tensor, kv: Tensor, scale: float, need_q: bool, need_kv: bool
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.token_fusion_backward: (grad_q, grad_kv).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    sizes, chosen = _plan("by_query", q, kv)
    B, N, h, _ = q.shape
    grad_q, grad_kv = new_like(q, need_q), new_like(kv, need_kv)
    if not (need_q or need_kv):
        return grad_q, grad_kv
    saved = torch.empty((B, h, N, 3), dtype=torch.float32, device=q.device)
    tensors = [rows_of(t) for t in (q, kv[:, :, 0], kv[:, :, 1], grad)]
    numbers = (N, kv.shape[1], h)
    programs = B * h * triton.cdiv(N, chosen["QUERIES"])
    result = rows_of(grad_q) if need_q else None
    launch(by_query, programs, q, *tensors, result, saved, *numbers, scale, **sizes, **chosen)
    if need_kv:
        grad_kv = _sum_by_key(tensors, saved, q, kv, scale)
    return grad_q, grad_kv


def _sum_by_key(tensors: list, saved: Tensor, q: Tensor, kv: Tensor, scale: float) -> Tensor:
    """The gradient of keys and values, in runs of queries enough to fill a GPU."""
    sizes, chosen = _plan("by_key", q, kv)
    (B, N, h, d), M = q.shape, kv.shape[1]
    tiles, key_tiles = triton.cdiv(N, chosen["QUERIES"]), triton.cdiv(M, chosen["KEYS"])
    wanted = max(1, chosen.pop("programs") // max(1, B * h * key_tiles))
    steps = max(1, triton.cdiv(tiles, wanted))
    runs = triton.cdiv(tiles, steps)
    partial = torch.empty((B, runs, M * 2 * h * d), dtype=torch.float32, device=q.device)
    numbers = (N, M, h, runs, steps, scale)
    programs = B * h * runs * key_tiles
    launch(by_key, programs, q, *tensors, saved, partial, *numbers, **sizes, **chosen)
    return fold_terms(partial).view(kv.shape).to(kv.dtype)


def _plan(kernel: str, q: Tensor, kv: Tensor) -> tuple[dict[str, int], dict[str, Any]]:
    """Constants of the kernels, launch settings."""
    check_dtype("q", q)
    check_index("pixels", q.shape[1])
    check_index("tokens", kv.shape[1])
    channels = max(16, triton.next_power_of_2(q.shape[3]))
    problem = f"{q.element_size() * 8}-bit, e <= {channels}"
    chosen = settings(f"token_fusion.{kernel}", problem, q.device)
    return {"D": q.shape[3], "CHANNELS": channels}, chosen
