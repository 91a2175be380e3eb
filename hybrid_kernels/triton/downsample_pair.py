"""Two coarser scales of a map in Triton, forward and backward.

One launch computes both outputs: the first programs the 3x3, the others the 5x5, so that the caches
serve the map once. The backward sums the gradients of the parameters in two stages of a fixed
order.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch
from hybrid_kernels.triton.maps import (
    dense,
    load_channels,
    load_pixels,
    new_gradient,
    store_pixels,
    strided,
)
from hybrid_kernels.triton.stencil import (
    add_row,
    blocks,
    channels_and_block,
    chunks_of,
    convolve,
    convolve_transposed,
    correlate,
    fold_rows,
    map_settings,
    pixels_of,
    place,
    store_sums,
)

_SCALES = ((3, 2), (5, 3))  # side and stride


@triton.jit
def _outputs(
    x,
    taps,
    scale,
    shift,
    y,
    H,
    W,
    C,
    block,
    pixels,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel_blocks = tl.cdiv(C, CHANNELS)
    c = block % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    pixel = (block // channel_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    image, i, j = place(pixel, tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE))
    mask = (pixel < pixels)[:, None] & (c < C)[None, :]
    if scale is not None:
        scale, shift = load_channels(scale, 0, c, C), load_channels(shift, 0, c, C)
    total = convolve(x, taps, image, i, j, H, W, c, C, mask, SIDE, STRIDE, 1, "none", scale, shift)
    store_pixels(y, pixel, c, C, total, mask)


@triton.jit(do_not_specialize=["H", "W", "pixels3", "pixels5", "programs3"])
def forward(
    x,  # map (B, H, W, C), strides
    weight3,  # (3, 3, C)
    weight5,  # (5, 5, C)
    scale,  # (C,) or None
    shift,  # the same
    y3,  # (B, H / 2, W / 2, C), contiguous
    y5,  # (B, H / 3, W / 3, C), contiguous
    H,
    W,
    pixels3,  # of all images of y3
    pixels5,
    programs3,  # that compute y3; the others compute y5
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    p = tl.program_id(0)
    if p < programs3:
        _outputs(x, weight3, scale, shift, y3, H, W, C, p, pixels3, 3, 2, TOKENS, CHANNELS)
    else:
        p -= programs3
        _outputs(x, weight5, scale, shift, y5, H, W, C, p, pixels5, 5, 3, TOKENS, CHANNELS)


@triton.jit(do_not_specialize=["H", "W", "pixels", "steps"])
def grad_input(
    grad3,  # map (B, H / 2, W / 2, C), strides
    grad5,  # map (B, H / 3, W / 3, C), strides
    x,  # map (B, H, W, C), strides
    weight3,  # (3, 3, C)
    weight5,  # (5, 5, C)
    scale,  # (C,) or None
    grad_x,  # (B, H, W, C), contiguous, or None when nobody wants it
    sums,  # (chunks, 2, C): of scale, of shift; or None
    H,
    W,
    pixels,  # of all images
    steps,  # blocks of pixels per program
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    total = tl.zeros((2, CHANNELS), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
        rows, columns = tl.cdiv(H, 2), tl.cdiv(W, 2)
        dn = convolve_transposed(grad3, weight3, image, i, j, rows, columns, c, C, mask, 3, 2, 1)
        rows, columns = tl.cdiv(H, 3), tl.cdiv(W, 3)
        dn += convolve_transposed(grad5, weight5, image, i, j, rows, columns, c, C, mask, 5, 3, 1)
        if sums is not None:
            total = add_row(total, dn * load_pixels(x, image, i, j, c, mask), 0)
            total = add_row(total, dn, 1)
        if grad_x is not None:
            if scale is not None:
                dn *= load_channels(scale, 0, c, C)[None, :]
            store_pixels(grad_x, pixel, c, C, dn, mask)
    if sums is not None:
        store_sums(sums, chunk, total, c, C, 2)


@triton.jit(do_not_specialize=["H", "W", "pixels", "steps"])
def grad_taps(
    grad,  # of one scale: map (B, H / STRIDE, W / STRIDE, C), strides
    x,  # map (B, H, W, C), strides
    scale,  # (C,) or None
    shift,  # the same
    sums,  # (chunks, SIDE * SIDE, C)
    H,
    W,
    pixels,  # of all outputs
    steps,  # blocks of outputs per program
    C,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,  # SIDE * SIDE as a power of two
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    if scale is not None:
        scale, shift = load_channels(scale, 0, c, C), load_channels(shift, 0, c, C)
    for step in range(steps):
        block = chunk * steps + step
        _, image, i, j, mask = pixels_of(
            block, tl.cdiv(H, STRIDE), tl.cdiv(W, STRIDE), pixels, c, C, TOKENS
        )
        dy = load_pixels(grad, image, i, j, c, mask)
        total = correlate(
            total, x, dy, image, i, j, H, W, c, mask, SIDE, STRIDE, 1, "none", scale, shift
        )
    store_sums(sums, chunk, total, c, C, SIDE * SIDE)


def downsample_pair(
    x: Tensor, weight3: Tensor, weight5: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.downsample_pair: two maps. Raises RuntimeError for float64."""
    B, H, W, C = x.shape
    sizes = _sizes(x)
    y3, y5 = (torch.empty(size, dtype=x.dtype, device=x.device) for size in sizes)
    chosen = map_settings("downsample_pair.forward", x)
    programs3, programs5 = (math.prod(blocks(size, chosen)) for size in sizes)
    launch(
        forward,
        programs3 + programs5,
        x,
        strided(x),
        *dense(weight3, weight5, scale, shift),
        y3,
        y5,
        H,
        W,
        *(B * rows * columns for _, rows, columns, _ in sizes),
        programs3,
        C,
        **chosen,
    )
    return y3, y5


def downsample_pair_backward(
    grad1: Tensor,
    grad2: Tensor,
    x: Tensor,
    weight3: Tensor,
    weight5: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    need_x: bool,
    need_weights: bool,
    need_affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.downsample_pair_backward: (dx, dweight3, dweight5, dscale, dshift).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = x.shape
    weight3, weight5, scale, shift = dense(weight3, weight5, scale, shift)
    none = torch.empty(0, dtype=torch.float32, device=x.device)
    chosen = map_settings("downsample_pair.grad_input", x)
    pixel_blocks, channel_blocks = blocks(x.shape, chosen)
    chunks, steps = chunks_of(pixel_blocks, channel_blocks, chosen.pop("programs"))
    grad_x = new_gradient(x, need_x)
    sums = torch.empty((chunks, 2, C), dtype=torch.float32, device=x.device)
    launch(
        grad_input,
        chunks * channel_blocks if need_x or need_affine else 0,
        x,
        strided(grad1),
        strided(grad2),
        strided(x),
        weight3,
        weight5,
        scale,
        grad_x if need_x else None,
        sums if need_affine else None,
        H,
        W,
        B * H * W,
        steps,
        C,
        **chosen,
    )
    affine = [row.clone() for row in fold_rows(sums)] if need_affine else [none] * 2
    if not need_weights:
        return grad_x, none, none, *affine
    chosen = map_settings("downsample_pair.grad_taps", x)
    programs = chosen.pop("programs")
    weights = []
    for grad, (side, stride) in zip((grad1, grad2), _SCALES, strict=True):
        pixel_blocks, channel_blocks = blocks(tuple(grad.shape), chosen)
        chunks, steps = chunks_of(pixel_blocks, channel_blocks, programs)
        sums = torch.empty((chunks, side * side, C), dtype=torch.float32, device=x.device)
        pixels = B * grad.shape[1] * grad.shape[2]
        launch(
            grad_taps,
            chunks * channel_blocks,
            x,
            strided(grad),
            strided(x),
            scale,
            shift,
            sums,
            H,
            W,
            pixels,
            steps,
            C,
            SIDE=side,
            STRIDE=stride,
            ROWS=triton.next_power_of_2(side * side),
            **chosen,
        )
        weights.append(fold_rows(sums).view(side, side, C))
    return grad_x, *weights, *affine


def _sizes(x: Tensor) -> list[tuple[int, int, int, int]]:
    B, H, W, C = x.shape
    return [(B, triton.cdiv(H, stride), triton.cdiv(W, stride), C) for _, stride in _SCALES]
