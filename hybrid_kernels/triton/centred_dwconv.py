"""Depthwise 3x3 convolution of a map minus its mean in Triton, forward and backward.

Both directions sum a map first, in two stages of a fixed order: x for its mean, and the gradient of
y for that of the gradient of x, weighted by the taps that stay in the map. A program works on one
image, whose means are those of its channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import Settings, launch
from hybrid_kernels.triton.maps import (
    load_channels,
    load_pixels,
    new_gradient,
    store_pixels,
    strided,
)
from hybrid_kernels.triton.reduction import fold_terms
from hybrid_kernels.triton.stencil import (
    channels_and_block,
    chunks_of,
    convolve,
    convolve_transposed,
    correlate,
    fold_rows,
    map_settings,
    store_sums,
)


@triton.jit
def pixels_in(image, block, H, W, c, C, TOKENS: tl.constexpr):
    """Pixels of a block of an image, (row, column) of them, and which (pixel, channel) exist."""
    pixel = block * TOKENS + tl.arange(0, TOKENS)
    mask = (pixel < H * W)[:, None] & (c < C)[None, :]
    return image * H * W + pixel, pixel // W, pixel % W, mask


@triton.jit
def taps_inside(weight, i, j, H, W, c, C):
    """The sum of the taps of outputs (i, j) that see the map, (pixels, channels)."""
    total = tl.zeros((i.shape[0], c.shape[0]), tl.float32)
    for u in tl.static_range(3):
        for v in tl.static_range(3):
            row, column = i + u - 1, j + v - 1
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            tap = load_channels(weight, u * 3 + v, c, C)
            total += tl.where(inside[:, None], tap[None, :], 0.0)
    return total


@triton.jit(do_not_specialize=["H", "W", "chunks", "steps"])
def sum_map(
    x,  # map (B, H, W, C), strides
    weight,  # (3, 3, C), or None: of the taps by which a pixel counts
    sums,  # (B, chunks, C)
    H,
    W,
    chunks,  # of an image
    steps,  # blocks of pixels per chunk
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, part = channels_and_block(C, CHANNELS)
    image, chunk = part // chunks, part % chunks
    total = tl.zeros((CHANNELS,), tl.float32)
    for step in range(steps):
        _, i, j, mask = pixels_in(image, chunk * steps + step, H, W, c, C, TOKENS)
        value = load_pixels(x, image, i, j, c, mask)
        if weight is not None:
            value *= taps_inside(weight, i, j, H, W, c, C)
        total += tl.sum(value, axis=0)
    tl.store(sums + part * C + c, total, mask=c < C)


@triton.jit(do_not_specialize=["H", "W", "blocks"])
def forward(
    x,  # map (B, H, W, C), strides
    weight,  # (3, 3, C)
    mean,  # (B, C)
    y,  # (B, H, W, C), contiguous
    H,
    W,
    blocks,  # of pixels of an image
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, program = channels_and_block(C, CHANNELS)
    image = program // blocks
    pixel, i, j, mask = pixels_in(image, program % blocks, H, W, c, C, TOKENS)
    shift = -load_channels(mean, image, c, C)
    one = tl.full((CHANNELS,), 1.0, tl.float32)
    sums = convolve(x, weight, image, i, j, H, W, c, C, mask, 3, 1, 1, "none", one, shift)
    store_pixels(y, pixel, c, C, sums, mask)


@triton.jit(do_not_specialize=["H", "W", "chunks", "steps"])
def grad_weight(
    grad,  # map (B, H, W, C), strides
    x,  # the same
    mean,  # (B, C)
    sums,  # (B * chunks, 9, C)
    H,
    W,
    chunks,  # of an image
    steps,  # blocks of pixels per chunk
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, part = channels_and_block(C, CHANNELS)
    image, chunk = part // chunks, part % chunks
    shift = -load_channels(mean, image, c, C)
    one = tl.full((CHANNELS,), 1.0, tl.float32)
    total = tl.zeros((16, CHANNELS), tl.float32)
    for step in range(steps):
        _, i, j, mask = pixels_in(image, chunk * steps + step, H, W, c, C, TOKENS)
        dy = load_pixels(grad, image, i, j, c, mask)
        total = correlate(total, x, dy, image, i, j, H, W, c, mask, 3, 1, 1, "none", one, shift)
    store_sums(sums, part, total, c, C, 9)


@triton.jit(do_not_specialize=["H", "W", "blocks"])
def grad_input(
    grad,  # map (B, H, W, C), strides
    weight,  # (3, 3, C)
    mean,  # (B, C), of what is stored before it is taken away
    grad_x,  # (B, H, W, C), contiguous
    H,
    W,
    blocks,  # of pixels of an image
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, program = channels_and_block(C, CHANNELS)
    image = program // blocks
    pixel, i, j, mask = pixels_in(image, program % blocks, H, W, c, C, TOKENS)
    dd = convolve_transposed(grad, weight, image, i, j, H, W, c, C, mask, 3, 1, 1)
    dd -= load_channels(mean, image, c, C)[None, :]
    store_pixels(grad_x, pixel, c, C, dd, mask)


def centred_dwconv(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.centred_dwconv: y, mean. Raises RuntimeError for float64."""
    weight = weight.contiguous()
    mean = _mean(x, None)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _stencil(forward, "forward", x, weight, mean, y)
    return y, mean


def centred_dwconv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.centred_dwconv_backward: (dx, dweight).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = x.shape
    weight = weight.contiguous()
    grad_x = new_gradient(x, need_x)
    if need_x:
        _stencil(grad_input, "grad_input", grad, weight, _mean(grad, weight), grad_x)
    if not need_weight:
        return grad_x, torch.empty(0, dtype=torch.float32, device=x.device)
    chosen = map_settings("centred_dwconv.grad_weight", x)
    chunks, steps, programs = _chunks(x, chosen)
    sums = torch.empty((B * chunks, 9, C), dtype=torch.float32, device=x.device)
    maps = strided(grad), strided(x)
    args = *maps, mean.contiguous(), sums, H, W, chunks, steps, C
    launch(grad_weight, programs, x, *args, **chosen)
    return grad_x, fold_rows(sums).view(3, 3, C)


def _stencil(kernel, name: str, x: Tensor, weight: Tensor, mean: Tensor, y: Tensor) -> None:
    """Launch a kernel that writes y block by block."""
    B, H, W, C = x.shape
    chosen = map_settings(f"centred_dwconv.{name}", x)
    blocks, channel_blocks = _blocks(x, chosen)
    args = strided(x), weight, mean, y, H, W, blocks, C
    launch(kernel, B * blocks * channel_blocks, x, *args, **chosen)


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Of every image and channel, (B, C); with taps, that of the map that they send x back to."""
    B, H, W, C = x.shape
    chosen = map_settings("centred_dwconv.sum_map", x)
    chunks, steps, programs = _chunks(x, chosen)
    sums = torch.empty((B, chunks, C), dtype=torch.float32, device=x.device)
    args = strided(x), weight, sums, H, W, chunks, steps, C
    launch(sum_map, programs, x, *args, **chosen)
    return fold_terms(sums) / (H * W)


def _blocks(x: Tensor, chosen: Settings) -> tuple[int, int]:
    """Blocks of pixels of one image, and of channels."""
    _, H, W, C = x.shape
    return triton.cdiv(H * W, chosen["TOKENS"]), triton.cdiv(C, chosen["CHANNELS"])


def _chunks(x: Tensor, chosen: Settings) -> tuple[int, int, int]:
    """(chunks of an image, blocks of pixels in each, programs) for sums; takes "programs" out."""
    blocks, channel_blocks = _blocks(x, chosen)
    rows = x.shape[0] * channel_blocks
    chunks, steps = chunks_of(blocks, rows, chosen.pop("programs"))
    return chunks, steps, rows * chunks
