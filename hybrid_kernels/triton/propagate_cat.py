"""Full-size maps and spread tokens side by side in Triton: one launch for every map.

A map is tokens of one pixel without a kernel. The gradient of a token is a sum over its pixels,
that of a tap a sum over tokens, in two stages of a fixed order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch
from hybrid_kernels.triton.maps import load_channels, load_pixels, new_gradient, strided
from hybrid_kernels.triton.stencil import (
    blocks,
    channels_and_block,
    chunks_of,
    fold_rows,
    map_settings,
    pixels_of,
)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels", "p"])
def spread(
    z,  # tokens (B, rows, columns, C), strides
    kernel,  # (p, p, C), or None
    y,  # channels of (B, H, W, ...), strides
    H,
    W,
    rows,
    columns,
    pixels,  # of all images
    p,
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    _, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    t, s = i // p, j // p
    value = load_pixels(z, image, t, s, c, mask & ((t < rows) & (s < columns))[:, None])
    if kernel is not None:
        tap = (i % p * p + j % p).to(tl.int64)
        value *= tl.load(kernel + tap[:, None] * C + c[None, :], mask=mask, other=0.0)
    where = image.to(tl.int64) * y[1][0] + i.to(tl.int64) * y[1][1] + j.to(tl.int64) * y[1][2]
    to = y[0] + where[:, None] + c[None, :]
    tl.store(to, value.to(y[0].dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "tokens", "p"])
def grad_tokens(
    grad,  # channels of (B, H, W, ...), strides
    kernel,  # (p, p, C), or None
    grad_z,  # (B, rows, columns, C), contiguous
    H,
    W,
    rows,
    columns,
    tokens,  # of all images
    p,
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    token, image, t, s, mask = pixels_of(block, rows, columns, tokens, c, C, TOKENS)
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for tap in range(p * p):
        i, j = t * p + tap // p, s * p + tap % p
        dy = load_pixels(grad, image, i, j, c, mask & ((i < H) & (j < W))[:, None])
        if kernel is not None:
            dy *= load_channels(kernel, tap, c, C)[None, :]
        total += dy
    to = grad_z + token.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(to, total.to(grad_z.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "tokens", "steps", "p"])
def grad_kernel(
    grad,  # channels of (B, H, W, ...), strides
    z,  # tokens (B, rows, columns, C), strides
    sums,  # (chunks, p * p, C)
    H,
    W,
    rows,
    columns,
    tokens,  # of all images
    steps,  # blocks of tokens per chunk
    p,
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, program = channels_and_block(C, CHANNELS)
    chunk, tap = program // (p * p), program % (p * p)
    total = tl.zeros((CHANNELS,), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        _, image, t, s, mask = pixels_of(block, rows, columns, tokens, c, C, TOKENS)
        i, j = t * p + tap // p, s * p + tap % p
        dy = load_pixels(grad, image, i, j, c, mask & ((i < H) & (j < W))[:, None])
        total += tl.sum(dy * load_pixels(z, image, t, s, c, mask), axis=0)
    tl.store(sums + program * C + c, total, mask=c < C)


def propagate_cat(
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor],
    is_tokens: Sequence[bool],
    height: int,
    width: int,
) -> Tensor:
    """torch.ops.hybrid.propagate_cat: (B, height, width, C). Raises RuntimeError for float64."""
    widths = [z.shape[3] for z in maps]
    y = maps[0].new_empty(maps[0].shape[0], height, width, sum(widths))
    given = iter(kernels)
    for z, part, tokens in zip(maps, y.split(widths, dim=3), is_tokens, strict=True):
        kernel = next(given).contiguous() if tokens else None
        chosen = map_settings("propagate_cat.spread", part)
        pixel_blocks, channel_blocks = blocks(part.shape, chosen)
        sizes = height, width, *z.shape[1:3], z.shape[0] * height * width
        args = strided(z), kernel, strided(part), *sizes, _side(kernel), z.shape[3]
        launch(spread, pixel_blocks * channel_blocks, z, *args, **chosen)
    return y


def propagate_cat_backward(
    grad: Tensor,
    maps: Sequence[Tensor],
    kernels: Sequence[Tensor],
    is_tokens: Sequence[bool],
    height: int,
    width: int,
    need_maps: Sequence[bool],
    need_kernels: Sequence[bool],
) -> tuple[list[Tensor], list[Tensor]]:
    """torch.ops.hybrid.propagate_cat_backward: ([dmap_i], [dkernel_i]).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    grad_maps, grad_kernels = [], []
    given = iter(zip(kernels, need_kernels, strict=True))
    parts = grad.split([z.shape[3] for z in maps], dim=3)
    for z, part, tokens, need in zip(maps, parts, is_tokens, need_maps, strict=True):
        kernel, need_kernel = next(given) if tokens else (None, False)
        grad_maps.append(_grad_tokens(part, z, kernel, need))
        if tokens:
            grad_kernels.append(_grad_kernel(part, z, kernel, need_kernel))
    return grad_maps, grad_kernels


def _grad_tokens(grad: Tensor, z: Tensor, kernel: Tensor | None, need: bool) -> Tensor:
    grad_z = new_gradient(z, need)
    if need:
        B, rows, columns, C = z.shape
        chosen = map_settings("propagate_cat.grad_tokens", z)
        token_blocks, channel_blocks = blocks(z.shape, chosen)
        kernel = None if kernel is None else kernel.contiguous()
        sizes = *grad.shape[1:3], rows, columns, B * rows * columns
        args = strided(grad), kernel, grad_z, *sizes, _side(kernel), C
        launch(grad_tokens, token_blocks * channel_blocks, z, *args, **chosen)
    return grad_z


def _grad_kernel(grad: Tensor, z: Tensor, kernel: Tensor, need: bool) -> Tensor:
    if not need:
        return torch.empty(0, dtype=torch.float32, device=z.device)
    (B, rows, columns, C), p = z.shape, kernel.shape[0]
    chosen = map_settings("propagate_cat.grad_kernel", z)
    token_blocks, channel_blocks = blocks(z.shape, chosen)
    programs = channel_blocks * p * p
    chunks, steps = chunks_of(token_blocks, programs, chosen.pop("programs"))
    sums = torch.empty((chunks, p * p, C), dtype=torch.float32, device=z.device)
    sizes = *grad.shape[1:3], rows, columns, B * rows * columns
    args = strided(grad), strided(z), sums, *sizes, steps, p, C
    launch(grad_kernel, chunks * programs, z, *args, **chosen)
    return fold_rows(sums).view(p, p, C)


def _side(kernel: Tensor | None) -> int:
    return 1 if kernel is None else kernel.shape[0]
