"""Window attention with abstract tokens in Triton: forward and backward.

A program owns a tile of the rows of one window and head: for the usual window of side 7, whose 50
rows are one tile, everything. Exponents are base 2, sums are float32.

The backward recomputes A = exp(S - lse) and dS = A (dout v^T - D), D_r = <dout_r, out_r>. `by_key`
owns keys and computes dk and dv, and where a window is one tile dq as well; `by_query` computes dq
of larger windows. Every program leaves its window's share of the gradients of token and pad_kv in
memory, and `fold` adds the shares in a fixed order: no atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.abstract_token_rows import (
    load_rows,
    locate,
    pixels,
    place,
    store_total,
    tile_of,
)
from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, launch, settings
from hybrid_kernels.triton.reduction import fold_terms
from hybrid_kernels.triton.token_rows import LN_2, LOG2_E, new_like


@triton.jit
def load_part(part: tl.constexpr, inputs, where, mask, at, rows, heads, D: tl.constexpr):
    """Queries (part 0), keys (1) or values (2) of inputs = (q, k, v, strides, token, pad_kv)."""
    first = inputs[4] + (part * heads + at[4]) * D
    if inputs[5] is not None and part > 0:
        outside = inputs[5] + ((part - 1) * heads + at[4]) * D
        values = load_rows(inputs[part], where, mask, first, outside, rows, D)
    else:
        values = load_rows(inputs[part], where, mask, first, None, rows, D)
    return values


@triton.jit
def scores(q, k, pad_kv, keys, scale):
    """Base-2 scores (queries, keys), -inf where there is no key."""
    exists = (keys[0] == 0) | keys[1]
    if pad_kv is not None:
        exists = exists | keys[2]
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
    return tl.where(exists[None, :], s, float("-inf"))


@triton.jit
def load_gradient(
    saved, at, rows, heads, SLOTS: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr
):
    """Rows of dout and their log-sum-exp, base 2; infinite, so that all weights are 0, where there
    is no query."""
    where, mask = pixels(saved[1], at, rows, D, CHANNELS)
    head_row = at[0] * heads + at[4]
    g = load_rows(saved[0], where, mask, saved[2] + head_row * D, None, rows, D)
    lse = saved[6] + head_row * SLOTS + rows[0]
    exists = (rows[0] == 0) | rows[1]
    return g, tl.load(lse, mask=exists, other=float("inf")) * LOG2_E


@triton.jit
def row_dots(saved, g, at, rows, heads, D: tl.constexpr, CHANNELS: tl.constexpr):
    """D of queries."""
    where, mask = pixels(saved[4], at, rows, D, CHANNELS)
    summary = saved[5] + (at[0] * heads + at[4]) * D
    o = load_rows(saved[3], where, mask, summary, None, rows, D)
    return tl.sum(g.to(tl.float32) * o.to(tl.float32), axis=1)


@triton.jit
def store_queries(grads, extra, sums, dq, at, rows, D: tl.constexpr, CHANNELS: tl.constexpr):
    """dq of the pixels plus what else reaches them, and that of the token; None: not asked for."""
    if grads[0] is not None:
        total = dq
        if extra[0] is not None:
            where, mask = pixels(extra[1], at, rows, D, CHANNELS)
            total += tl.load(extra[0] + where, mask=mask, other=0.0).to(tl.float32)
        where, mask = pixels(grads[3], at, rows, D, CHANNELS)
        tl.store(grads[0] + where, total.to(grads[0].dtype.element_ty), mask=mask)
    if sums is not None:
        store_total(sums, dq, rows[0] == 0, D)


@triton.jit(do_not_specialize=["H", "W", "heads"])
def forward(
    inputs,  # q, k, v (B, H, W, h, d), their strides; token (3, h, d); pad_kv (2, h, d) or None
    out,  # (like q, strides)
    summary,  # (B, windows, h, d)
    lse,  # (B, windows, h, 1 + P^2)
    H,
    W,
    heads,
    scale,
    WINDOW: tl.constexpr,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    SLOTS: tl.constexpr = 1 + WINDOW * WINDOW
    TILES: tl.constexpr = (SLOTS + TILE - 1) // TILE
    at = place(H, W, heads, WINDOW, TILES)
    tile = tile_of(heads, TILES)
    rows = locate(at, tile * TILE + tl.arange(0, TILE), WINDOW)
    where, mask = pixels(inputs[3], at, rows, D, CHANNELS)
    q = load_part(0, inputs, where, mask, at, rows, heads, D)
    peak = tl.full((TILE,), -1e38, tl.float32)  # finite, so that nothing gives inf - inf
    total = tl.zeros((TILE,), tl.float32)
    mixed = tl.zeros((TILE, CHANNELS), tl.float32)
    for other in range(TILES):
        keys = rows
        if TILES > 1:
            keys = locate(at, other * TILE + tl.arange(0, TILE), WINDOW)
            where, mask = pixels(inputs[3], at, keys, D, CHANNELS)
        k = load_part(1, inputs, where, mask, at, keys, heads, D)
        v = load_part(2, inputs, where, mask, at, keys, heads, D)
        s = scores(q, k, inputs[5], keys, scale)
        new_peak = tl.maximum(peak, tl.max(s, axis=1))
        weight = tl.exp2(s - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weight, axis=1)
        mixed = mixed * shrink[:, None]
        mixed += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        peak = new_peak
    mixed /= total[:, None]
    head_row = at[0] * heads + at[4]
    where, mask = pixels(out[1], at, rows, D, CHANNELS)
    tl.store(out[0] + where, mixed.to(out[0].dtype.element_ty), mask=mask)
    if tile == 0:
        store_total(summary + head_row * D, mixed, rows[0] == 0, D)
    row_lse = tl.where(rows[2], 0.0, (peak + tl.log2(total)) * LN_2)
    tl.store(lse + head_row * SLOTS + rows[0], row_lse, mask=rows[0] < SLOTS)


@triton.jit(do_not_specialize=["H", "W", "heads"])
def by_key(
    inputs,
    saved,  # (grad_out, its strides, grad_summary, out, its strides, summary, lse)
    extra,  # (like q, its strides) or (None, None)
    grads,  # (dq, dk, dv, their strides) or four None
    sums,  # (B * windows * tiles, parts, h, d): of token and pad_kv; or None
    H,
    W,
    heads,
    scale,
    PARTS: tl.constexpr,
    WINDOW: tl.constexpr,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    SLOTS: tl.constexpr = 1 + WINDOW * WINDOW
    TILES: tl.constexpr = (SLOTS + TILE - 1) // TILE
    at = place(H, W, heads, WINDOW, TILES)
    tile = tile_of(heads, TILES)
    if sums is not None:
        sums += ((at[0] * TILES + tile) * PARTS * heads + at[4]) * D
    keys = locate(at, tile * TILE + tl.arange(0, TILE), WINDOW)
    where, mask = pixels(inputs[3], at, keys, D, CHANNELS)
    k = load_part(1, inputs, where, mask, at, keys, heads, D)
    v = load_part(2, inputs, where, mask, at, keys, heads, D)
    dk = tl.zeros((TILE, CHANNELS), tl.float32)
    dv = tl.zeros((TILE, CHANNELS), tl.float32)
    for other in range(TILES):
        rows = keys
        if TILES > 1:
            rows = locate(at, other * TILE + tl.arange(0, TILE), WINDOW)
            where, mask = pixels(inputs[3], at, rows, D, CHANNELS)
        q = load_part(0, inputs, where, mask, at, rows, heads, D)
        g, row_lse = load_gradient(saved, at, rows, heads, SLOTS, D, CHANNELS)
        weight = tl.exp2(scores(q, k, inputs[5], keys, scale) - row_lse[:, None])
        grad = tl.dot(g, tl.trans(v), input_precision="ieee")
        if TILES == 1:
            # By their own sum, one but for the rounding of the log-sum-exp, which is more than they
            # may be wrong where scores are large. D from them spares the reading of out.
            weight /= tl.maximum(tl.sum(weight, axis=1), 1e-30)[:, None]
            row_dot = tl.sum(weight * grad, axis=1)
        else:
            row_dot = row_dots(saved, g, at, rows, heads, D, CHANNELS)
        ds = weight * (grad - row_dot[:, None])
        dv += tl.dot(tl.trans(weight.to(g.dtype)), g, input_precision="ieee")
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
        if TILES == 1:
            dq = tl.dot(ds.to(k.dtype), k, input_precision="ieee") * scale
            store_queries(grads, extra, sums, dq, at, rows, D, CHANNELS)
    dk *= scale
    if grads[0] is not None:
        where, mask = pixels(grads[3], at, keys, D, CHANNELS)
        tl.store(grads[1] + where, dk.to(grads[1].dtype.element_ty), mask=mask)
        tl.store(grads[2] + where, dv.to(grads[2].dtype.element_ty), mask=mask)
    if sums is not None:
        store_total(sums + heads * D, dk, keys[0] == 0, D)
        store_total(sums + 2 * heads * D, dv, keys[0] == 0, D)
        if PARTS == 5:
            store_total(sums + 3 * heads * D, dk, keys[2], D)
            store_total(sums + 4 * heads * D, dv, keys[2], D)


@triton.jit(do_not_specialize=["H", "W", "heads"])
def by_query(
    inputs,
    saved,
    extra,
    grads,
    sums,
    H,
    W,
    heads,
    scale,
    PARTS: tl.constexpr,
    WINDOW: tl.constexpr,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    SLOTS: tl.constexpr = 1 + WINDOW * WINDOW
    TILES: tl.constexpr = (SLOTS + TILE - 1) // TILE
    at = place(H, W, heads, WINDOW, TILES)
    tile = tile_of(heads, TILES)
    if sums is not None:
        sums += ((at[0] * TILES + tile) * PARTS * heads + at[4]) * D
    rows = locate(at, tile * TILE + tl.arange(0, TILE), WINDOW)
    where, mask = pixels(inputs[3], at, rows, D, CHANNELS)
    q = load_part(0, inputs, where, mask, at, rows, heads, D)
    g, row_lse = load_gradient(saved, at, rows, heads, SLOTS, D, CHANNELS)
    row_dot = row_dots(saved, g, at, rows, heads, D, CHANNELS)
    dq = tl.zeros((TILE, CHANNELS), tl.float32)
    for other in range(TILES):
        keys = locate(at, other * TILE + tl.arange(0, TILE), WINDOW)
        where, mask = pixels(inputs[3], at, keys, D, CHANNELS)
        k = load_part(1, inputs, where, mask, at, keys, heads, D)
        v = load_part(2, inputs, where, mask, at, keys, heads, D)
        weight = tl.exp2(scores(q, k, inputs[5], keys, scale) - row_lse[:, None])
        grad = tl.dot(g, tl.trans(v), input_precision="ieee")
        ds = weight * (grad - row_dot[:, None])
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    store_queries(grads, extra, sums, dq * scale, at, rows, D, CHANNELS)


def abstract_token_attention(
    qkv: Tensor, token: Tensor, window: int, scale: float, pad_kv: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.abstract_token_attention: (out, summary, lse).

    Raises RuntimeError for float64.
    """
    B, H, W, _, h, d = qkv.shape
    windows = triton.cdiv(H, window) * triton.cdiv(W, window)
    out = torch.empty((B, H, W, h, d), dtype=qkv.dtype, device=qkv.device)
    summary = torch.empty((B, windows, h, d), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((B, windows, h, 1 + window**2), dtype=torch.float32, device=qkv.device)
    chosen = _settings("forward", qkv, window)
    inputs = _inputs(qkv, token, pad_kv)
    _launch(forward, qkv, window, chosen, inputs, (out, out.stride()), summary, lse, scale=scale)
    return out, summary, lse


def abstract_token_attention_backward(
    grad_out: Tensor,
    grad_summary: Tensor,
    qkv: Tensor,
    token: Tensor,
    pad_kv: Tensor | None,
    out: Tensor,
    summary: Tensor,
    lse: Tensor,
    dq_extra: Tensor | None,
    window: int,
    scale: float,
    need_qkv: bool,
    need_token: bool,
    need_pad_kv: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.abstract_token_attention_backward: (grad_qkv, grad_token, grad_pad_kv).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    need_pad_kv = need_pad_kv and pad_kv is not None
    need_sums = need_token or need_pad_kv
    grad_qkv, none = new_like(qkv, need_qkv), token.new_empty(0)
    if not need_qkv and not need_sums:
        return grad_qkv, none, none
    chosen = _settings("by_key", qkv, window)
    tiles = triton.cdiv(1 + window**2, chosen["TILE"])
    windows, parts = lse.shape[0] * lse.shape[1], 3 if pad_kv is None else 5
    h, d = token.shape[1:]
    sums = token.new_empty((windows * tiles, parts, h, d)) if need_sums else None
    arguments = (
        _inputs(qkv, token, pad_kv),
        (
            grad_out,
            grad_out.stride(),
            grad_summary.contiguous(),
            out,
            out.stride(),
            summary.contiguous(),
            lse.contiguous(),
        ),
        (None, None) if dq_extra is None else (dq_extra, dq_extra.stride()),
        _maps(grad_qkv) if need_qkv else (None,) * 4,
        sums,
    )
    _launch(by_key, qkv, window, chosen, *arguments, scale=scale, PARTS=parts)
    if tiles > 1:
        by_rows = _settings("by_query", qkv, window) | {"TILE": chosen["TILE"]}
        _launch(by_query, qkv, window, by_rows, *arguments, scale=scale, PARTS=parts)
    if not need_sums:
        return grad_qkv, none, none
    total = fold_terms(sums.view(1, windows * tiles, parts * h * d)).view(parts, h, d)
    return grad_qkv, total[:3] if need_token else none, total[3:] if need_pad_kv else none


def _maps(qkv: Tensor) -> tuple:
    """Queries, keys and values, and the strides of each."""
    return (*qkv.unbind(3), qkv.select(3, 0).stride())


def _inputs(qkv: Tensor, token: Tensor, pad_kv: Tensor | None) -> tuple:
    """The maps; token and pad_kv contiguous, in qkv's dtype."""
    pad = None if pad_kv is None else pad_kv.to(qkv.dtype).contiguous()
    return (*_maps(qkv), token.to(qkv.dtype).contiguous(), pad)


def _settings(kernel: str, qkv: Tensor, window: int) -> Settings:
    """Launch settings of a kernel; no tile is larger than the window needs."""
    check_dtype("qkv", qkv)
    problem = f"{qkv.element_size() * 8}-bit, e <= {_channels(qkv)}"
    chosen = settings(f"abstract_token_attention.{kernel}", problem, qkv.device)
    tile = max(16, triton.next_power_of_2(1 + window**2))
    return {**chosen, "TILE": min(chosen["TILE"], tile)}


def _channels(qkv: Tensor) -> int:
    """The head width as the matrix units take it: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(qkv.shape[5]))


def _launch(kernel: Any, qkv: Tensor, window: int, chosen: Settings, *args: Any, **meta: Any):
    """Run a kernel on all tiles of rows of every window and head."""
    B, H, W, _, h, d = qkv.shape
    windows = B * triton.cdiv(H, window) * triton.cdiv(W, window)
    check_index("rows of windows", windows * (1 + window**2))
    tiles = triton.cdiv(1 + window**2, chosen["TILE"])
    launch(
        kernel,
        windows * tiles * h,
        qkv,
        *args,
        H,
        W,
        h,
        meta.pop("scale"),
        WINDOW=window,
        D=d,
        CHANNELS=_channels(qkv),
        **meta,
        **chosen,
    )
