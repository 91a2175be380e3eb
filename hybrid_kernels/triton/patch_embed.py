"""Patch embedding by pooling in Triton: the map is read once; products are left to the library.

`pool` leaves the pooled pixels, 1 / patch**2 of the map, and where the largest ones were: all that
the backward needs. `spread` is the way back, a gather, because patches are disjoint.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from hybrid_kernels.triton.launch import launch
from hybrid_kernels.triton.maps import load_pixels, store_pixels, strided
from hybrid_kernels.triton.stencil import (
    blocks,
    channels_and_block,
    map_settings,
    pixels_of,
    place,
)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "patches"])
def pool(
    x,  # map (B, H, W, C), strides
    pooled,  # (B, rows, columns, C), contiguous
    index,  # the same in uint8, or None: means instead of maxima
    H,
    W,
    rows,
    columns,
    patches,  # of all images
    C,
    PATCH: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    patch = (program // channel_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    image, row, column = place(patch, rows, columns)
    mask = (patch < patches)[:, None] & (c < C)[None, :]
    total = load_pixels(x, image, row * PATCH, column * PATCH, c, mask)
    largest = tl.zeros((TOKENS, CHANNELS), tl.int32)
    for pixel in range(1, PATCH * PATCH):
        i = row * PATCH + pixel // PATCH
        j = column * PATCH + pixel % PATCH
        inside = mask & ((i < H) & (j < W))[:, None]
        value = load_pixels(x, image, i, j, c, inside)
        if index is None:
            total += value
        else:  # NaN is larger than every number, and the first of equals counts
            exceeds = (value > total) | ((value != value) & (total == total))
            largest = tl.where(inside & exceeds, pixel, largest)
            total = tl.where(inside & exceeds, value, total)
    if index is None:
        height = tl.minimum(H - row * PATCH, PATCH)
        width = tl.minimum(W - column * PATCH, PATCH)
        total = total / (height * width).to(tl.float32)[:, None]
    else:
        where = patch[:, None] * C + c[None, :]
        tl.store(index + where, largest.to(tl.uint8), mask=mask)
    store_pixels(pooled, patch, c, C, total, mask)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels"])
def spread(
    grad,  # of the pooled pixels: map (B, rows, columns, C), strides
    index,  # map (B, rows, columns, C) in uint8, strides; or None
    grad_x,  # (B, H, W, C), contiguous
    H,
    W,
    rows,
    columns,
    pixels,  # of all images
    C,
    PATCH: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    row = i // PATCH
    column = j // PATCH
    inside = mask & ((row < rows) & (column < columns))[:, None]
    share = load_pixels(grad, image, row, column, c, inside)
    if index is None:
        height = tl.minimum(H - row * PATCH, PATCH)
        width = tl.minimum(W - column * PATCH, PATCH)
        share = share / (height * width).to(tl.float32)[:, None]
    else:
        own = i % PATCH * PATCH + j % PATCH
        chosen = load_pixels(index, image, row, column, c, inside)
        share = tl.where(chosen == own.to(tl.float32)[:, None], share, 0.0)
    store_pixels(grad_x, pixel, c, C, share, mask)


def patch_embed(
    x: Tensor, weight: Tensor, patch: int, kind: str, pool_mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.patch_embed: (z, index, pooled). Raises RuntimeError for float64."""
    B, H, W, C = x.shape
    further = patch - 1 if pool_mode == "ceil" else 0
    grid = (B, (H + further) // patch, (W + further) // patch)
    pooled = x.new_empty(*grid, C)
    index = x.new_empty((*grid, C) if kind == "max" else (0,), dtype=torch.uint8)
    chosen = map_settings("patch_embed.pool", x)
    patch_blocks, channel_blocks = blocks(pooled.shape, chosen)
    launch(
        pool,
        patch_blocks * channel_blocks,
        x,
        strided(x),
        pooled,
        index if kind == "max" else None,
        H,
        W,
        *grid[1:],
        pooled.shape[:3].numel(),
        C,
        PATCH=patch,
        **chosen,
    )
    return F.linear(pooled, weight), index, pooled


def patch_embed_backward(
    grad: Tensor,
    pooled: Tensor,
    weight: Tensor,
    index: Tensor,
    height: int,
    width: int,
    patch: int,
    kind: str,
    pool_mode: str,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.patch_embed_backward: (dx, dweight); shape (0,) for what is not needed."""
    B, rows, columns, C = pooled.shape
    grad_x = grad.new_empty((B, height, width, C) if need_x else (0,))
    grad_weight = torch.empty(0, dtype=torch.float32, device=grad.device)
    if need_x:
        chosen = map_settings("patch_embed.spread", grad_x)
        pixel_blocks, channel_blocks = blocks(grad_x.shape, chosen)
        launch(
            spread,
            pixel_blocks * channel_blocks,
            grad_x,
            strided(grad.contiguous() @ weight),
            strided(index) if kind == "max" else None,
            grad_x,
            height,
            width,
            rows,
            columns,
            B * height * width,
            C,
            PATCH=patch,
            **chosen,
        )
    if need_weight:
        grad_weight = grad.flatten(0, 2).float().T @ pooled.flatten(0, 2).float()
    return grad_x, grad_weight
