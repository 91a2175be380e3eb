"""Bilinear samples at learned offsets in Triton, forward and backward.

The gradient of the map is gathered: points are sorted by the pixels that are their corners, and
every pixel adds up its own in their order. No atomics, the same bits in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch
from hybrid_kernels.triton.maps import load_pixels, new_gradient, store_pixels, strided
from hybrid_kernels.triton.stencil import blocks, map_settings, place


@triton.jit
def _along(offset, point, step, length, AXIS: tl.constexpr):
    """The two pixels around a coordinate clamped to its axis, the second's weight, and whether it
    was free. A NaN has pixels too, but a NaN weight."""
    shift = tl.load(offset + point.to(tl.int64) * 2 + AXIS)
    position = (2 * step).to(tl.float32) + 0.5 + shift
    last = (length - 1).to(tl.float32)
    clamped = tl.where(position < 0, 0.0, tl.where(position > last, last, position))
    low = tl.where(clamped > 0, clamped, 0.0).to(tl.int32)
    high = tl.where(low + 1 < length, low + 1, low)
    return low, high, clamped - low.to(tl.float32), (position >= 0) & (position <= last)


@triton.jit
def _corners(offset, point, used, H, W):
    """Image and place of points that are counted through, and the rows and columns around what
    they read; unused ones are point 0."""
    image, i, j = place(tl.where(used, point, 0), (H + 1) // 2, (W + 1) // 2)
    point = tl.where(used, point, 0)
    top, bottom, fy, free_y = _along(offset, point, i, H, 1)
    left, right, fx, free_x = _along(offset, point, j, W, 0)
    return image, i, j, top, bottom, fy, free_y, left, right, fx, free_x


@triton.jit(do_not_specialize=["H", "W", "points"])
def forward(
    x,  # map (B, H, W, C), strides
    offset,  # (B, H', W', 2), contiguous
    y,  # (B, H', W', C), contiguous
    H,
    W,
    points,  # of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    point = (program // channel_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    used = point < points
    mask = used[:, None] & (c < C)[None, :]
    image, _, _, top, bottom, fy, _, left, right, fx, _ = _corners(offset, point, used, H, W)
    upper = load_pixels(x, image, top, left, c, mask) * ((1 - fy) * (1 - fx))[:, None]
    upper += load_pixels(x, image, top, right, c, mask) * ((1 - fy) * fx)[:, None]
    lower = load_pixels(x, image, bottom, left, c, mask) * (fy * (1 - fx))[:, None]
    lower += load_pixels(x, image, bottom, right, c, mask) * (fy * fx)[:, None]
    store_pixels(y, point, c, C, upper + lower, mask)


@triton.jit(do_not_specialize=["H", "W", "points"])
def grad_offset(
    grad,  # map (B, H', W', C), strides
    x,  # map (B, H, W, C), strides
    offset,  # (B, H', W', 2), contiguous
    result,  # like offset, or None
    pixel,  # (4, points): every corner, its number through all images; or None
    weight,  # (4, points): its weight
    H,
    W,
    points,
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    point = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    used = point < points
    image, i, j, top, bottom, fy, free_y, left, right, fx, free_x = _corners(
        offset, point, used, H, W
    )
    if pixel is not None:
        for k in tl.static_range(4):
            row = tl.where(k < 2, top, bottom)
            column = tl.where(k % 2 == 0, left, right)
            share = tl.where(k < 2, 1 - fy, fy) * tl.where(k % 2 == 0, 1 - fx, fx)
            tl.store(pixel + k * points + point, (image * H + row) * W + column, mask=used)
            tl.store(weight + k * points + point, share, mask=used)
    if result is not None:
        along_x = tl.zeros((TOKENS,), tl.float32)
        along_y = tl.zeros((TOKENS,), tl.float32)
        for first in range(0, C, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            mask = used[:, None] & (c < C)[None, :]
            g = load_pixels(grad, image, i, j, c, mask)
            upper_left = load_pixels(x, image, top, left, c, mask)
            upper_right = load_pixels(x, image, top, right, c, mask)
            lower_left = load_pixels(x, image, bottom, left, c, mask)
            lower_right = load_pixels(x, image, bottom, right, c, mask)
            above, below = upper_right - upper_left, lower_right - lower_left
            before, after = lower_left - upper_left, lower_right - upper_right
            along_x += tl.sum(g * (above + fy[:, None] * (below - above)), axis=1)
            along_y += tl.sum(g * (before + fx[:, None] * (after - before)), axis=1)
        tl.store(result + point * 2, tl.where(free_x, along_x, 0.0), mask=used)
        tl.store(result + point * 2 + 1, tl.where(free_y, along_y, 0.0), mask=used)


@triton.jit(do_not_specialize=["rows", "columns", "points"])
def gather(
    grad,  # map (B, H', W', C), strides
    order,  # corners (of 4 * points), sorted by their pixels
    begins,  # (pixels + 1,): where those of a pixel begin
    weight,  # (4 * points,)
    grad_x,  # (B, H, W, C), contiguous
    rows,  # H'
    columns,  # W'
    points,
    C,
    CHANNELS: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    pixel = (program // channel_blocks).to(tl.int64)
    one = tl.arange(0, 1)
    mask = (one == 0)[:, None] & (c < C)[None, :]
    total = tl.zeros((1, CHANNELS), tl.float32)
    for k in range(tl.load(begins + pixel), tl.load(begins + pixel + 1)):
        corner = tl.load(order + k)
        image, i, j = place(corner % points + one, rows, columns)
        total += tl.load(weight + corner) * load_pixels(grad, image, i, j, c, mask)
    store_pixels(grad_x, pixel + one, c, C, total, mask)


def bilinear_sample(x: Tensor, offset: Tensor) -> Tensor:
    """torch.ops.hybrid.bilinear_sample: y (B, H', W', C). Raises RuntimeError for float64."""
    H, W, C = x.shape[1:]
    y = torch.empty((*offset.shape[:3], C), dtype=x.dtype, device=x.device)
    chosen = map_settings("bilinear_sample.forward", x)
    point_blocks, channel_blocks = blocks(y.shape, chosen)
    launch(
        forward,
        point_blocks * channel_blocks,
        x,
        strided(x),
        offset.contiguous(),
        y,
        H,
        W,
        offset.numel() // 2,
        C,
        **chosen,
    )
    return y


def bilinear_sample_backward(
    grad: Tensor, x: Tensor, offset: Tensor, need_x: bool, need_offset: bool
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.bilinear_sample_backward: (dx, doffset).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = x.shape
    points = offset.numel() // 2
    result = new_gradient(offset, need_offset)
    chosen = map_settings("bilinear_sample.grad_offset", x)
    corners = (4 * points if need_x else 0,)
    pixel = torch.empty(corners, dtype=torch.int64, device=x.device)
    weight = torch.empty(corners, dtype=torch.float32, device=x.device)
    launch(
        grad_offset,
        triton.cdiv(points, chosen["TOKENS"]) if need_x or need_offset else 0,
        x,
        strided(grad),
        strided(x),
        offset.contiguous(),
        result if need_offset else None,
        pixel if need_x else None,
        weight,
        H,
        W,
        points,
        C,
        **chosen,
    )
    grad_x = new_gradient(x, need_x)
    if need_x:
        ordered, order = pixel.sort(stable=True)
        every = torch.arange(B * H * W + 1, device=x.device)
        begins = torch.searchsorted(ordered, every)
        chosen = map_settings("bilinear_sample.gather", x)
        programs = B * H * W * triton.cdiv(C, chosen["CHANNELS"])
        size = (*offset.shape[1:3], points, C)
        launch(gather, programs, x, strided(grad), order, begins, weight, grad_x, *size, **chosen)
    return grad_x, result
