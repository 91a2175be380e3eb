"""Depthwise stencils on tiles (pixels, channels), which several ops are made of.

A program owns some pixels and channels and reads every neighbour where a tap wants it: the caches
hold what neighbouring pixels share. `taps` is a contiguous (SIDE, SIDE, C).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, settings
from hybrid_kernels.triton.maps import load_channels, load_pixels
from hybrid_kernels.triton.reduction import fold_terms


@triton.jit
def activate(t, ACT: tl.constexpr):
    """An activation of csrc/common/activation.h."""
    if ACT == "relu":
        t = tl.where(t < 0, 0.0, t)  # keeps a NaN
    elif ACT == "relu6":
        t = tl.where(t < 0, 0.0, tl.where(t > 6, 6.0, t))
    elif ACT == "gelu":
        t = 0.5 * t * (1 + tl.erf(t * 0.7071067811865476))
    elif ACT == "hardswish":
        t = tl.where(t < -3, 0.0, tl.where(t > 3, t, t * (t + 3) / 6))
    return t


@triton.jit
def derivative(t, ACT: tl.constexpr):
    """Of `activate`, at the corners as PyTorch has it."""
    if ACT == "relu":
        t = tl.where(t > 0, 1.0, 0.0)
    elif ACT == "relu6":
        t = tl.where((t > 0) & (t < 6), 1.0, 0.0)
    elif ACT == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * t * t)
        t = 0.5 * (1 + tl.erf(t * 0.7071067811865476)) + t * density
    elif ACT == "hardswish":
        t = tl.where(t >= 3, 1.0, tl.where(t > -3, t / 3 + 0.5, 0.0))
    else:
        t = tl.full(t.shape, 1.0, tl.float32)
    return t


@triton.jit
def place(pixel, H, W):
    """(image, row, column) of pixels that are counted through all images."""
    return pixel // W // H, pixel // W % H, pixel % W


@triton.jit
def channels_and_block(C, CHANNELS: tl.constexpr):
    """Channels of this program, and the number of its block or chunk of pixels."""
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    return c, (program // channel_blocks).to(tl.int64)


@triton.jit
def pixels_of(block, H, W, pixels, c, C, TOKENS: tl.constexpr):
    """Pixels of a block, (image, row, column) of them, and which (pixel, channel) there are."""
    pixel = block * TOKENS + tl.arange(0, TOKENS)
    image, i, j = place(pixel, H, W)
    return pixel, image, i, j, (pixel < pixels)[:, None] & (c < C)[None, :]


@triton.jit
def neighbour(x, image, i, j, H, W, c, mask, ACT: tl.constexpr = "none", scale=None, shift=None):
    """Pixels (i, j) of a map, normed and activated; 0 outside it.

    scale and shift are values of the channels, or None for a map without a norm.
    """
    inside = mask & ((i >= 0) & (i < H) & (j >= 0) & (j < W))[:, None]
    value = load_pixels(x, image, i, j, c, inside)
    if scale is not None:
        value = tl.where(inside, value * scale[None, :] + shift[None, :], 0.0)
    return activate(value, ACT)


@triton.jit
def convolve(
    x,
    taps,
    image,
    i,
    j,
    H,
    W,
    c,
    C,
    mask,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    GAP: tl.constexpr,
    ACT: tl.constexpr = "none",
    scale=None,
    shift=None,
):
    """Outputs (i, j): the sum of taps, GAP pixels apart, times what they see of x (H, W).

    Normed and activated as in `neighbour`.
    """
    HALF: tl.constexpr = SIDE // 2
    total = tl.zeros(mask.shape, tl.float32)
    for u in tl.static_range(SIDE):
        for v in tl.static_range(SIDE):
            row, column = i * STRIDE + (u - HALF) * GAP, j * STRIDE + (v - HALF) * GAP
            seen = neighbour(x, image, row, column, H, W, c, mask, ACT, scale, shift)
            total += seen * load_channels(taps, u * SIDE + v, c, C)[None, :]
    return total


@triton.jit
def convolve_transposed(
    grad,
    taps,
    image,
    i,
    j,
    H,
    W,
    c,
    C,
    mask,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    GAP: tl.constexpr,
):
    """Gradient of pixels (i, j) of what `convolve` read, from that of its outputs (H, W)."""
    HALF: tl.constexpr = SIDE // 2
    total = tl.zeros(mask.shape, tl.float32)
    for u in tl.static_range(SIDE):
        for v in tl.static_range(SIDE):
            row, column = i + (HALF - u) * GAP, j + (HALF - v) * GAP
            seen = mask
            if STRIDE > 1:
                is_output = (row % STRIDE == 0) & (column % STRIDE == 0)
                seen = mask & (is_output & (row >= 0) & (column >= 0))[:, None]
                row, column = row // STRIDE, column // STRIDE
            dy = neighbour(grad, image, row, column, H, W, c, seen)
            total += dy * load_channels(taps, u * SIDE + v, c, C)[None, :]
    return total


@triton.jit
def add_row(sums, values, row: tl.constexpr):
    """Add the sums of values over the pixels to one row of sums (rows, channels)."""
    is_row = tl.arange(0, sums.shape[0])[:, None] == row
    return sums + tl.where(is_row, tl.sum(values, axis=0)[None, :], 0.0)


@triton.jit
def correlate(
    sums,
    x,
    dy,
    image,
    i,
    j,
    H,
    W,
    c,
    mask,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    GAP: tl.constexpr,
    ACT: tl.constexpr = "none",
    scale=None,
    shift=None,
):
    """Add to row u * SIDE + v of sums what outputs (i, j) give to the gradient of tap (u, v)."""
    HALF: tl.constexpr = SIDE // 2
    for u in tl.static_range(SIDE):
        for v in tl.static_range(SIDE):
            row, column = i * STRIDE + (u - HALF) * GAP, j * STRIDE + (v - HALF) * GAP
            seen = neighbour(x, image, row, column, H, W, c, mask, ACT, scale, shift)
            sums = add_row(sums, dy * seen, u * SIDE + v)
    return sums


@triton.jit
def store_sums(partial, chunk, sums, c, C, ROWS: tl.constexpr):
    """The first ROWS rows of sums as entry `chunk` of partial (chunks, ROWS, C)."""
    row = tl.arange(0, sums.shape[0])
    mask = (row < ROWS)[:, None] & (c < C)[None, :]
    tl.store(partial + (chunk * ROWS + row)[:, None] * C + c[None, :], sums, mask=mask)


def map_settings(kernel: str, x: Tensor) -> Settings:
    """Launch settings of a map's kernel; no block of channels is wider than the map needs."""
    check_dtype("x", x)
    check_index("pixels", x.shape[1] * x.shape[2])
    chosen = settings(kernel, f"{torch.finfo(x.dtype).bits}-bit", x.device)
    channels = triton.next_power_of_2(max(1, x.shape[3]))
    return {**chosen, "CHANNELS": min(chosen["CHANNELS"], channels)}


def blocks(x_shape: tuple[int, ...], chosen: Settings) -> tuple[int, int]:
    """How many blocks of pixels, of all images, and of channels a map has."""
    B, H, W, C = x_shape
    return triton.cdiv(B * H * W, chosen["TOKENS"]), triton.cdiv(C, chosen["CHANNELS"])


def chunks_of(pixel_blocks: int, channel_blocks: int, programs: int) -> tuple[int, int]:
    """(chunks, blocks of pixels in each) so that about `programs` programs share the work."""
    wanted = max(1, programs // max(1, channel_blocks))
    steps = max(1, triton.cdiv(pixel_blocks, wanted))
    return triton.cdiv(pixel_blocks, steps), steps


def fold_rows(partial: Tensor) -> Tensor:
    """Sum (chunks, ROWS, C) over the chunks in a fixed order, (ROWS, C)."""
    chunks, rows, channels = partial.shape
    return fold_terms(partial.view(1, chunks, rows * channels)).view(rows, channels)
