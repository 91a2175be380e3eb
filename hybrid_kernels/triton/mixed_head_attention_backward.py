"""Attention whose heads are mixed around the softmax in Triton, backward.

The mixing forbids the usual <dout, out>: `row_dots` finds D, the sum over keys of P dP, before
`by_query`, `by_key` and `by_layer` use dZ = P (dP - D). All of them compute S and P again. Every
program owns what it stores; `by_layer` sums runs of tiles of queries, `fold_terms` the runs, both
in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch
from hybrid_kernels.triton.mixed_heads import (
    BLOCK,
    CHUNK,
    across,
    launch_by_head,
    launch_by_mixed_head,
    load_heads,
    load_layer,
    load_statistic,
    mixed_again,
    plan,
    store_heads,
    store_statistic,
    tile_of_tokens,
    token_products,
    weights,
)
from hybrid_kernels.triton.reduction import fold_terms
from hybrid_kernels.triton.token_rows import new_like, rows_of


@triton.jit
def grad_weights(rows, layers, tile, sizes, first, D: tl.constexpr):
    """dP of a block of mixed heads."""
    grad = tl.zeros((BLOCK, tile[1].shape[0], tile[3].shape[0]), tl.float32)
    for block in range(0, sizes[1], BLOCK):
        layer = load_layer(layers[2], first, sizes[2], 1, block, sizes[1], sizes[2])
        grad += across(layer, token_products(rows[3], rows[2], tile, block, sizes[1], D))
    return grad


@triton.jit
def grad_logits(rows, layers, saved, tile, sizes, first, D: tl.constexpr):
    """dZ of a block of mixed heads."""
    p = weights(rows, layers, saved[0], tile, sizes, first, D)
    dot = load_statistic(saved[1], tile, sizes, first, 0.0)
    return p * (grad_weights(rows, layers, tile, sizes, first, D) - dot[:, :, None])


@triton.jit
def grad_scores(rows, layers, saved, tile, sizes, block, D: tl.constexpr):
    """dS of a block of heads, without the scale."""
    ds = tl.zeros((BLOCK, tile[1].shape[0], tile[3].shape[0]), tl.float32)
    for first in range(0, sizes[2], BLOCK):
        layer = load_layer(layers[0], block, sizes[1], 1, first, sizes[2], sizes[1])
        ds += across(layer, grad_logits(rows, layers, saved, tile, sizes, first, D))
    return ds


@triton.jit(do_not_specialize=["tokens", "heads", "mixed", "blocks"])
def row_dots(
    rows,
    layers,
    saved,  # log-sum-exp and D, (B, g, M) each
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
    total = tl.zeros((BLOCK, QUERIES), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        tile = (image, query, exists, key, key < tokens)
        p = weights(rows, layers, saved[0], tile, sizes, first, D)
        total += tl.sum(p * grad_weights(rows, layers, tile, sizes, first, D), axis=2)
    store_statistic(saved[1], total, image, query, exists, sizes, first)


@triton.jit(do_not_specialize=["tokens", "heads", "mixed", "chunks", "parts"])
def by_query(
    rows,
    layers,
    saved,
    grad_q,  # like q
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
    dq = tl.zeros((BLOCK, QUERIES, CHUNK), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        tile = (image, query, exists, key, key < tokens)
        ds = grad_scores(rows, layers, saved, tile, sizes, block, D)
        k = load_heads(rows[1], image, key, key < tokens, block, heads, channel * CHUNK, D)
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    store_heads(grad_q, dq * scale, image, query, exists, block, heads, channel * CHUNK, D)


@triton.jit(do_not_specialize=["tokens", "heads", "mixed", "chunks", "parts"])
def by_key(
    rows,
    layers,
    saved,
    grad_k,  # like q; None when not asked for
    grad_v,
    tokens,
    heads,
    mixed,
    scale,
    chunks,
    parts,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    image, key, key_exists, part = tile_of_tokens(tokens, parts, KEYS)
    sizes, block, channel = (tokens, heads, mixed, scale), part // chunks * BLOCK, part % chunks
    dk = tl.zeros((BLOCK, KEYS, CHUNK), tl.float32)
    dv = tl.zeros((BLOCK, KEYS, CHUNK), tl.float32)
    for start in range(0, tokens, QUERIES):
        query = start + tl.arange(0, QUERIES)
        exists = query < tokens
        tile = (image, query, exists, key, key_exists)
        if grad_v is not None:
            a = mixed_again(rows, layers, saved[0], tile, sizes, block, D)
            g = load_heads(rows[3], image, query, exists, block, heads, channel * CHUNK, D)
            dv += tl.dot(tl.permute(a.to(g.dtype), (0, 2, 1)), g, input_precision="ieee")
        if grad_k is not None:
            ds = grad_scores(rows, layers, saved, tile, sizes, block, D)
            q = load_heads(rows[0], image, query, exists, block, heads, channel * CHUNK, D)
            dk += tl.dot(tl.permute(ds.to(q.dtype), (0, 2, 1)), q, input_precision="ieee")
    if grad_k is not None:
        store_heads(grad_k, dk * scale, image, key, key_exists, block, heads, channel * CHUNK, D)
    if grad_v is not None:
        store_heads(grad_v, dv, image, key, key_exists, block, heads, channel * CHUNK, D)


@triton.jit
def head_products(a, b):
    """Products of heads over the keys, query by query: (queries, heads of a, heads of b)."""
    left, right = tl.permute(a, (1, 0, 2)), tl.permute(b, (1, 2, 0))
    return tl.dot(left, right, input_precision="ieee")


@triton.jit(
    do_not_specialize=["tokens", "heads", "mixed", "head_blocks", "blocks", "steps", "tiles"]
)
def by_layer(
    rows,
    layers,
    saved,
    partial,  # (runs, g * h + h * g + h) float32: of w1, w2 and b2
    tokens,
    heads,
    mixed,
    scale,
    head_blocks,
    blocks,  # of a layer: of heads times of mixed heads
    steps,  # tiles of queries in a run
    tiles,  # of queries, of all images
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    program = tl.program_id(0)
    run, part = (program // blocks).to(tl.int64), program % blocks
    block, first = part % head_blocks * BLOCK, part // head_blocks * BLOCK
    sizes = (tokens, heads, mixed, scale)
    dtype = layers[0].dtype.element_ty
    dw1 = tl.zeros((QUERIES, BLOCK, BLOCK), tl.float32)
    dw2 = tl.zeros((QUERIES, BLOCK, BLOCK), tl.float32)
    db2 = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        place = run * steps + step
        image = place // tl.cdiv(tokens, QUERIES)
        query = place % tl.cdiv(tokens, QUERIES) * QUERIES + tl.arange(0, QUERIES)
        limit = tl.where(place < tiles, tokens, 0)
        for start in range(0, tokens, KEYS):
            key = start + tl.arange(0, KEYS)
            tile = (image, query, query < limit, key, key < limit)
            p = weights(rows, layers, saved[0], tile, sizes, first, D)
            da = token_products(rows[3], rows[2], tile, block, heads, D)
            dw2 += head_products(p.to(dtype), da.to(dtype))
            db2 += tl.sum(tl.sum(da, axis=2), axis=1)
        for start in range(0, tokens, KEYS):  # again, as both at a time take too many registers
            key = start + tl.arange(0, KEYS)
            tile = (image, query, query < limit, key, key < limit)
            dz = grad_logits(rows, layers, saved, tile, sizes, first, D)
            s = token_products(rows[0], rows[1], tile, block, heads, D) * scale
            dw1 += head_products(dz.to(dtype), s.to(dtype))
    g, j = first + tl.arange(0, BLOCK), block + tl.arange(0, BLOCK)
    mask = (g < mixed)[:, None] & (j < heads)[None, :]
    partial += run * (2 * mixed + 1) * heads
    tl.store(partial + g[:, None] * heads + j[None, :], tl.sum(dw1, axis=0), mask=mask)
    partial += mixed * heads
    tl.store(partial + j[None, :] * mixed + g[:, None], tl.sum(dw2, axis=0), mask=mask)
    tl.store(partial + mixed * heads + j, db2, mask=(j < heads) & (first == 0))


def mixed_head_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    lse: Tensor,
    scale: float,
    need_qk: bool,
    need_v: bool,
    need_mix: bool,
) -> tuple[Tensor, ...]:
    """torch.ops.hybrid.mixed_head_attention_backward: (dq, dk, dv, dw1, db1, dw2, db2).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    dq, dk, dv = new_like(q, need_qk), new_like(k, need_qk), new_like(v, need_v)
    rows = tuple(rows_of(t) for t in (q, k, v, grad_out))
    layers = tuple(t.contiguous() for t in (w1, b1, w2, b2))
    lse = lse.contiguous()
    args = (rows, layers, (lse, torch.empty_like(lse)))
    if need_qk or need_mix:
        launch_by_mixed_head("row_dots", row_dots, q, w1, args, scale)
    if need_qk:
        grads = (rows_of(dq),)
        launch_by_head("by_query", by_query, "QUERIES", q, w1, (*args, *grads), scale)
    if need_qk or need_v:
        grads = tuple(rows_of(g) if g.ndim == 4 else None for g in (dk, dv))
        launch_by_head("by_key", by_key, "KEYS", q, w1, (*args, *grads), scale)
    if need_mix:
        return dq, dk, dv, *_layer_gradients(q, w1, args, scale)
    return dq, dk, dv, *(new_like(t, False) for t in layers)


def _layer_gradients(q: Tensor, w1: Tensor, args: tuple, scale: float) -> tuple[Tensor, ...]:
    """Of both layers, in runs of tiles of queries enough to fill a GPU."""
    chosen, (B, M, h, _), g = plan("by_layer", q), q.shape, w1.shape[0]
    head_blocks, mixed_blocks = (triton.cdiv(n, BLOCK.value) for n in (h, g))
    blocks, tiles = head_blocks * mixed_blocks, B * triton.cdiv(M, chosen["QUERIES"])
    steps = max(1, triton.cdiv(tiles, max(1, chosen.pop("programs") // blocks)))
    runs = triton.cdiv(tiles, steps)
    partial = torch.empty((1, runs, (2 * g + 1) * h), dtype=torch.float32, device=q.device)
    sizes = (M, h, g, scale, head_blocks, blocks, steps, tiles)
    launch(by_layer, runs * blocks, q, *args, partial, *sizes, **chosen)
    dw1, dw2, db2 = fold_terms(partial)[0].to(q.dtype).split((g * h, h * g, h))
    db1 = torch.zeros(g, dtype=q.dtype, device=q.device)
    return dw1.view(g, h).clone(), db1, dw2.view(h, g).clone(), db2.clone()
