"""Atrous window attention in Triton: the backward kernels.

With A = exp(S - lse), D_s = <dout_s, out_s> and dS = A (dout v^T - D), every program recomputes
the tiles of A and dS that it needs. A token is in one window of a branch, so dq, dk and dv are
written once. The gradient of the bias has two stages, in a fixed order and without atomics: a
program sums dS over its share of windows in registers, pair of slots by pair of slots, and writes
the sum once; then `fold` adds the pairs of equal offset over all shares.

A window that fits one tile is done in one pass by `pairs`. For a larger one `pairs` only sums dS,
`by_query` computes dq for a tile of queries, and `by_key` dk and dv for a tile of keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.atrous_plan import Plan
from hybrid_kernels.triton.atrous_windows import (
    LOG2_E,
    gather,
    locate,
    position_bias,
    scatter,
    scores,
    share,
    shares_of,
    slot_offset,
    window_start,
)
from hybrid_kernels.triton.launch import launch, settings


@triton.jit
def query_rows(saved, at, branch, head, HEAD_DIM: tl.constexpr, CHANNELS: tl.constexpr):
    """Output gradients, log-sum-exp (base 2) and D of located slots."""
    grad_out, grad_strides, out, out_strides, lse, lse_strides = saved
    g = gather(grad_out, grad_strides, at, branch, head, HEAD_DIM, CHANNELS)
    o = gather(out, out_strides, at, branch, head, HEAD_DIM, CHANNELS)
    # An infinite log-sum-exp makes all weights of a missing query 0.
    row = window_start(at, branch, head, lse_strides) + slot_offset(at, lse_strides)
    row_lse = tl.load(lse + row, mask=at[5], other=float("inf")) * LOG2_E
    return g, row_lse, tl.sum(g.to(tl.float32) * o.to(tl.float32), axis=1)


@triton.jit
def weights(q, k, v, g, table, key_exists, row_lse, row_dot, scale, RAGGED: tl.constexpr):
    """A and dS (queries, keys), both 0 where a query or key is missing."""
    weight = tl.exp2(scores(q, k, table, key_exists, scale, RAGGED) - row_lse[:, None])
    grad = tl.dot(g, tl.trans(v), input_precision="ieee")
    return weight, weight * (grad - row_dot[:, None])


@triton.jit(do_not_specialize=["B", "H", "W", "heads", "per_share"])
def pairs(
    qkv,  # (query, key, value, strides): each (B, H, W, n, h, e)
    bias,  # (n, (2P-1)^2, h) or None
    saved,  # (grad_out, its strides, out, its strides, lse, its strides)
    grad_qkv,  # like qkv; None when not asked for, or done by the kernels below
    sums,  # (shares, SPAN, SPAN) float32, dS summed over each share; None when not asked for
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
    SPAN: tl.constexpr = TILES * TILE
    program = tl.program_id(0)
    index = program // (TILES * TILES)
    branch, dilation, head, begin, end = share(index, B, H, W, heads, per_share, DILATIONS, WINDOW)
    query = program // TILES % TILES * TILE + tl.arange(0, TILE)
    key = program % TILES * TILE + tl.arange(0, TILE)
    table = position_bias(bias, branch, head, heads, query, key, WINDOW)
    total = tl.zeros((TILE, TILE), tl.float32)
    for item in tl.range(begin, end, disable_licm=True):
        at = locate(item, query, H, W, dilation, WINDOW, RAGGED, INDEX)
        key_at = locate(item, key, H, W, dilation, WINDOW, RAGGED, INDEX)
        q = gather(qkv[0], qkv[3], at, branch, head, HEAD_DIM, CHANNELS)
        k = gather(qkv[1], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
        v = gather(qkv[2], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
        g, row_lse, row_dot = query_rows(saved, at, branch, head, HEAD_DIM, CHANNELS)
        weight, ds = weights(q, k, v, g, table, key_at[5], row_lse, row_dot, scale, RAGGED)
        if sums is not None:
            total += ds
        if grad_qkv is not None:
            dv = tl.dot(tl.trans(weight.to(g.dtype)), g, input_precision="ieee")
            scatter(grad_qkv[2], grad_qkv[3], dv, key_at, branch, head, HEAD_DIM)
            ds = ds.to(q.dtype)
            dk = tl.dot(tl.trans(ds), q, input_precision="ieee") * scale
            scatter(grad_qkv[1], grad_qkv[3], dk, key_at, branch, head, HEAD_DIM)
            dq = tl.dot(ds, k, input_precision="ieee") * scale
            scatter(grad_qkv[0], grad_qkv[3], dq, at, branch, head, HEAD_DIM)
    if sums is not None:
        # Padding included: a mask would hold registers all through the loop.
        sums += index.to(tl.int64) * (SPAN * SPAN)
        tl.store(sums + query[:, None] * SPAN + key[None, :], total)


@triton.jit(do_not_specialize=["B", "H", "W", "heads", "per_share"])
def by_query(
    qkv,
    bias,
    saved,
    grad_qkv,
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
    for item in tl.range(begin, end, disable_licm=True):
        at = locate(item, query, H, W, dilation, WINDOW, RAGGED, INDEX)
        q = gather(qkv[0], qkv[3], at, branch, head, HEAD_DIM, CHANNELS)
        g, row_lse, row_dot = query_rows(saved, at, branch, head, HEAD_DIM, CHANNELS)
        dq = tl.zeros((TILE, CHANNELS), tl.float32)
        for tile in tl.range(TILES, num_stages=1, disable_licm=True):
            key = tile * TILE + tl.arange(0, TILE)
            key_at = locate(item, key, H, W, dilation, WINDOW, RAGGED, INDEX)
            k = gather(qkv[1], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
            v = gather(qkv[2], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
            table = position_bias(bias, branch, head, heads, query, key, WINDOW)
            _, ds = weights(q, k, v, g, table, key_at[5], row_lse, row_dot, scale, RAGGED)
            dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
        scatter(grad_qkv[0], grad_qkv[3], dq * scale, at, branch, head, HEAD_DIM)


@triton.jit(do_not_specialize=["B", "H", "W", "heads", "per_share"])
def by_key(
    qkv,
    bias,
    saved,
    grad_qkv,
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
    key = program % TILES * TILE + tl.arange(0, TILE)
    for item in tl.range(begin, end, disable_licm=True):
        key_at = locate(item, key, H, W, dilation, WINDOW, RAGGED, INDEX)
        k = gather(qkv[1], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
        v = gather(qkv[2], qkv[3], key_at, branch, head, HEAD_DIM, CHANNELS)
        dk = tl.zeros((TILE, CHANNELS), tl.float32)
        dv = tl.zeros((TILE, CHANNELS), tl.float32)
        for tile in tl.range(TILES, num_stages=1, disable_licm=True):
            query = tile * TILE + tl.arange(0, TILE)
            at = locate(item, query, H, W, dilation, WINDOW, RAGGED, INDEX)
            q = gather(qkv[0], qkv[3], at, branch, head, HEAD_DIM, CHANNELS)
            g, row_lse, row_dot = query_rows(saved, at, branch, head, HEAD_DIM, CHANNELS)
            table = position_bias(bias, branch, head, heads, query, key, WINDOW)
            weight, ds = weights(q, k, v, g, table, key_at[5], row_lse, row_dot, scale, RAGGED)
            dv += tl.dot(tl.trans(weight.to(g.dtype)), g, input_precision="ieee")
            dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
        scatter(grad_qkv[1], grad_qkv[3], dk * scale, key_at, branch, head, HEAD_DIM)
        scatter(grad_qkv[2], grad_qkv[3], dv, key_at, branch, head, HEAD_DIM)


@triton.jit(do_not_specialize=["B", "H", "W", "heads", "per_share"])
def fold(
    sums,  # (shares, SPAN, SPAN), as `pairs` wrote it
    grad_bias,  # (n, (2P-1)^2, h)
    B,
    H,
    W,
    heads,
    per_share,
    DILATIONS: tl.constexpr,
    WINDOW: tl.constexpr,
    SPAN: tl.constexpr,  # slots of a window, padded to whole tiles of `pairs`
    SLOTS: tl.constexpr,  # slots of a window, padded to a power of two
    OFFSETS: tl.constexpr,  # offsets per program
):
    SIDE: tl.constexpr = 2 * WINDOW - 1
    program = tl.program_id(0)
    blocks = tl.cdiv(SIDE * SIDE, OFFSETS)
    branch = program // (heads * blocks)
    head = program // blocks % heads
    r = program % blocks * OFFSETS + tl.arange(0, OFFSETS)
    first, shares = shares_of(branch, B, H, W, per_share, DILATIONS, WINDOW)
    # Offset r pairs slot (a, b) with key slot (a - down, b - right).
    slot = tl.arange(0, SLOTS)[None, :]
    a = slot // WINDOW - (r // SIDE - WINDOW + 1)[:, None]
    b = slot % WINDOW - (r % SIDE - WINDOW + 1)[:, None]
    inside = (r < SIDE * SIDE)[:, None] & (slot < WINDOW * WINDOW)
    inside = inside & (a >= 0) & (a < WINDOW) & (b >= 0) & (b < WINDOW)
    pair = slot * SPAN + a * WINDOW + b
    total = tl.zeros((OFFSETS, SLOTS), tl.float32)
    for s in range(first, first + shares):
        index = (s * heads + head).to(tl.int64)
        total += tl.load(sums + index * SPAN * SPAN + pair, mask=inside, other=0.0)
    where = (branch * SIDE * SIDE + r) * heads + head
    tl.store(grad_bias + where, tl.sum(total, axis=1), mask=r < SIDE * SIDE)


def atrous_attention_backward(
    grad_out: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dilations: Sequence[int],
    window: int,
    scale: float,
    need_qkv: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.atrous_attention_backward: (grad_qkv, grad_bias).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    plan = Plan.of(qkv, dilations, window)
    table = None if bias is None else bias.contiguous()
    inputs = (
        (*qkv.unbind(4), qkv.select(4, 0).stride()),
        table,
        (grad_out, grad_out.stride(), out, out.stride(), lse, lse.stride()),
    )
    grad_qkv, grads = qkv.new_empty(0), None
    if need_qkv:
        grad_qkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
        grads = (*grad_qkv.unbind(4), grad_qkv.select(4, 0).stride())
    grad_bias = qkv.new_empty(0, dtype=torch.float32)
    if need_bias and table is not None:
        grad_bias = torch.empty_like(table)
    constants = plan.constants(qkv, grad_out, out)
    one_pass = plan.tiles(plan.settings("atrous_attention.pairs")) == 1
    if grad_bias.numel() or (need_qkv and one_pass):
        sum_pairs(plan, inputs, grads if one_pass else None, grad_bias, scale, constants)
    if need_qkv and not one_pass:
        for name, kernel in (("by_query", by_query), ("by_key", by_key)):
            chosen = plan.settings(f"atrous_attention.{name}")
            tiles = plan.tiles(chosen)
            per_share, shares = plan.cut(chosen.pop("programs") // tiles)
            sizes = (*plan.sizes, per_share, scale)
            launch(kernel, shares * tiles, qkv, *inputs, grads, *sizes, **constants, **chosen)
    return grad_qkv, grad_bias


def sum_pairs(
    plan: Plan,
    inputs: tuple[tuple, Tensor | None, tuple],
    grads: tuple | None,
    grad_bias: Tensor,
    scale: float,
    constants: dict[str, Any],
) -> None:
    """Launch `pairs`, and `fold` where the gradient of the bias is wanted (not empty)."""
    chosen = plan.settings("atrous_attention.pairs")
    tiles = plan.tiles(chosen)
    per_share, shares = plan.cut(chosen.pop("programs") // tiles**2)
    span = tiles * chosen["TILE"]
    sums = None
    if grad_bias.numel():
        sums = torch.empty((shares, span, span), dtype=torch.float32, device=plan.device)
    args = (*inputs, grads, sums, *plan.sizes, per_share, scale)
    launch(pairs, shares * tiles**2, inputs[0][0], *args, **constants, **chosen)
    if sums is None:
        return
    slots = max(16, triton.next_power_of_2(plan.window**2))
    chosen = settings("atrous_attention.fold", f"T <= {slots}", plan.device)
    blocks = triton.cdiv((2 * plan.window - 1) ** 2, chosen["OFFSETS"])
    launch(
        fold,
        len(plan.dilations) * plan.heads * blocks,
        sums,
        sums,
        grad_bias,
        *plan.sizes,
        per_share,
        DILATIONS=plan.dilations,
        WINDOW=plan.window,
        SPAN=span,
        SLOTS=slots,
        **chosen,
    )
