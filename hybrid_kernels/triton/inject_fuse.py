"""Coarse semantics injected into a finer map in Triton, forward and backward.

The backward has two kernels: `grad_fine` multiplies by the enlarged gate, `grad_coarse` lets every
coarse pixel gather what was read from it, in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import check_index, launch
from hybrid_kernels.triton.maps import load_pixels, new_gradient, store_pixels, strided
from hybrid_kernels.triton.stencil import (
    blocks,
    channels_and_block,
    map_settings,
    pixels_of,
    place,
)


@triton.jit
def _reads(i, size, fine):
    """(low, high, share of the high one) of a coarse axis that element i of the fine one reads.

    Exact: positions are multiples of 1 / (2 fine).
    """
    twice = (2 * i.to(tl.int64) + 1) * size - fine
    twice = tl.where(twice > 0, twice, 0)
    low = twice // (2 * fine)
    share = (twice - low * 2 * fine).to(tl.float32) / (2 * fine).to(tl.float32)
    return low, tl.minimum(low + 1, size - 1), share


@triton.jit
def _first_reader(t, size, fine):
    """First element of the fine axis whose low one is t or more."""
    least = (2 * t.to(tl.int64) + 1) * fine - size
    first = tl.where((t <= 0) | (least <= 0), 0, (least + 2 * size - 1) // (2 * size))
    return tl.minimum(first, fine)


@triton.jit
def _hard_sigmoid(t):
    return tl.where(t < -3, 0.0, tl.where(t > 3, 1.0, (t + 3) / 6))


@triton.jit
def _enlarged(x, image, i, j, H, W, rows, columns, c, mask, GATE: tl.constexpr):
    """Fine pixels (i, j), of (rows, columns), of a coarse map (H, W); of its gate."""
    top, bottom, down = _reads(i, H, rows)
    left, right, along = _reads(j, W, columns)
    total = tl.zeros(mask.shape, tl.float32)
    for corner in tl.static_range(4):
        row = bottom if corner // 2 else top
        column = right if corner % 2 else left
        share = (down if corner // 2 else 1 - down) * (along if corner % 2 else 1 - along)
        value = load_pixels(x, image, row, column, c, mask)
        total += share[:, None] * (_hard_sigmoid(value) if GATE else value)
    return total


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels"])
def forward(
    local,  # map (B, rows, columns, C), strides
    logit,  # map (B, H, W, C), strides
    offset,  # the same
    y,  # (B, rows, columns, C), contiguous
    H,
    W,
    rows,
    columns,
    pixels,  # of y, of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, rows, columns, pixels, c, C, TOKENS)
    gate = _enlarged(logit, image, i, j, H, W, rows, columns, c, mask, True)
    added = _enlarged(offset, image, i, j, H, W, rows, columns, c, mask, False)
    fused = load_pixels(local, image, i, j, c, mask) * gate + added
    store_pixels(y, pixel, c, C, fused, mask)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels"])
def grad_fine(
    grad,  # map (B, rows, columns, C), strides
    logit,  # map (B, H, W, C), strides
    grad_local,  # (B, rows, columns, C), contiguous
    H,
    W,
    rows,
    columns,
    pixels,  # of grad, of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, rows, columns, pixels, c, C, TOKENS)
    gate = _enlarged(logit, image, i, j, H, W, rows, columns, c, mask, True)
    store_pixels(grad_local, pixel, c, C, load_pixels(grad, image, i, j, c, mask) * gate, mask)


@triton.jit
def _share(i, t, size, fine):
    """What element i of the fine axis takes of element t of the coarse one."""
    low, high, share = _reads(i, size, fine)
    return tl.where(low == t, 1 - share, 0.0) + tl.where(high == t, share, 0.0)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels", "most_rows", "most_columns"])
def grad_coarse(
    grad,  # map (B, rows, columns, C), strides
    local,  # the same
    logit,  # map (B, H, W, C), strides
    grad_logit,  # (B, H, W, C), contiguous, or None when nobody wants it
    grad_offset,  # the same
    H,
    W,
    rows,
    columns,
    pixels,  # of the coarse map, of all images
    most_rows,  # of the fine map that read one coarse row, at the most
    most_columns,
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    pixel = (program // channel_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    image, p, q = place(pixel, H, W)
    mask = (pixel < pixels)[:, None] & (c < C)[None, :]
    top, left = _first_reader(p - 1, H, rows), _first_reader(q - 1, W, columns)
    gated = tl.zeros((TOKENS, CHANNELS), tl.float32)
    plain = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for step in range(most_rows * most_columns):
        i, j = top + step // most_columns, left + step % most_columns
        share = _share(i, p, H, rows) * _share(j, q, W, columns)
        inside = mask & ((i < rows) & (j < columns))[:, None]
        dy = load_pixels(grad, image, i, j, c, inside) * share[:, None]
        if grad_offset is not None:
            plain += dy
        if grad_logit is not None:
            gated += dy * load_pixels(local, image, i, j, c, inside)
    if grad_offset is not None:
        store_pixels(grad_offset, pixel, c, C, plain, mask)
    if grad_logit is not None:
        t = load_pixels(logit, image, p, q, c, mask)
        store_pixels(grad_logit, pixel, c, C, tl.where((t > -3) & (t < 3), gated / 6, 0.0), mask)


def inject_fuse(local: Tensor, logit: Tensor, offset: Tensor) -> Tensor:
    """torch.ops.hybrid.inject_fuse: (B, H_i, W_i, C). Raises RuntimeError for float64."""
    y = torch.empty(local.shape, dtype=local.dtype, device=local.device)
    _launch(forward, local, logit, strided(local), strided(logit), strided(offset), y)
    return y


def inject_fuse_backward(
    grad: Tensor,
    local: Tensor,
    logit: Tensor,
    offset: Tensor,
    need_local: bool,
    need_logit: bool,
    need_offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.inject_fuse_backward: (dlocal, dlogit, doffset).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, rows, columns, C = local.shape
    H, W = logit.shape[1:3]
    grad_local = new_gradient(local, need_local)
    if need_local:
        _launch(grad_fine, local, logit, strided(grad), strided(logit), grad_local)
    grad_logit, grad_offset = new_gradient(logit, need_logit), new_gradient(offset, need_offset)
    if need_logit or need_offset:
        chosen = map_settings("inject_fuse.grad_coarse", logit)
        pixel_blocks, channel_blocks = blocks(logit.shape, chosen)
        launch(
            grad_coarse,
            pixel_blocks * channel_blocks,
            local,
            *(strided(x) for x in (grad, local, logit)),
            grad_logit if need_logit else None,
            grad_offset if need_offset else None,
            H,
            W,
            rows,
            columns,
            B * H * W,
            _most_readers(H, rows),
            _most_readers(W, columns),
            C,
            **chosen,
        )
    return grad_local, grad_logit, grad_offset


def _launch(kernel, local: Tensor, logit: Tensor, *maps: object) -> None:
    """A kernel of the fine map's pixels."""
    B, rows, columns, C = local.shape
    check_index("pixels", logit.shape[1] * logit.shape[2])
    chosen = map_settings(f"inject_fuse.{kernel.__name__}", local)
    pixel_blocks, channel_blocks = blocks(local.shape, chosen)
    sizes = (*logit.shape[1:3], rows, columns, B * rows * columns, C)
    launch(kernel, pixel_blocks * channel_blocks, local, *maps, *sizes, **chosen)


def _most_readers(size: int, fine: int) -> int:
    """Elements of the fine axis between those that read the neighbours of a coarse one alone."""
    if size == 1:
        return fine
    return min(fine, 2 * triton.cdiv(fine, size) + 1)
