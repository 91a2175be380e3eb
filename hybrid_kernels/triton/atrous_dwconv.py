"""Depthwise 3x3 convolutions of one map at several dilations in Triton, forward and backward.

A program computes all branches of its pixels, so that the caches serve the map once. The gradient
of the weights has two stages in a fixed order: a program sums one branch over its outputs.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch
from hybrid_kernels.triton.maps import load_pixels, new_gradient, store_pixels, strided
from hybrid_kernels.triton.stencil import (
    blocks,
    channels_and_block,
    chunks_of,
    convolve,
    convolve_transposed,
    correlate,
    fold_rows,
    map_settings,
    pixels_of,
    store_sums,
)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels"])
def forward(
    x,  # map (B, H, W, C), strides
    taps,  # (n, 3, 3, C)
    ys,  # n maps (B, rows, columns, C), contiguous
    H,
    W,
    rows,
    columns,
    pixels,  # of all outputs of a branch
    C,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, rows, columns, pixels, c, C, TOKENS)
    for k in tl.static_range(len(ys)):
        y = convolve(x, taps + k * 9 * C, image, i, j, H, W, c, C, mask, 3, STRIDE, DILATIONS[k])
        store_pixels(ys[k], pixel, c, C, y, mask)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels"])
def grad_input(
    grads,  # n maps (B, rows, columns, C), each with its strides
    taps,  # (n, 3, 3, C)
    grad_x,  # (B, H, W, C), contiguous
    H,
    W,
    rows,
    columns,
    pixels,  # of all images
    C,
    DILATIONS: tl.constexpr,
    STRIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    dx = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for k in tl.static_range(len(grads)):
        weight = taps + k * 9 * C
        dx += convolve_transposed(
            grads[k], weight, image, i, j, rows, columns, c, C, mask, 3, STRIDE, DILATIONS[k]
        )
    store_pixels(grad_x, pixel, c, C, dx, mask)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "pixels", "steps"])
def grad_taps(
    grad,  # of one branch: map (B, rows, columns, C), strides
    x,  # map (B, H, W, C), strides
    sums,  # (chunks, 9, C)
    H,
    W,
    rows,
    columns,
    pixels,  # of all outputs
    steps,  # blocks of outputs per program
    C,
    DILATION: tl.constexpr,
    STRIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    total = tl.zeros((16, CHANNELS), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        _, image, i, j, mask = pixels_of(block, rows, columns, pixels, c, C, TOKENS)
        dy = load_pixels(grad, image, i, j, c, mask)
        total = correlate(total, x, dy, image, i, j, H, W, c, mask, 3, STRIDE, DILATION)
    store_sums(sums, chunk, total, c, C, 9)


def atrous_dwconv(x: Tensor, weight: Tensor, dilations: Sequence[int], stride: int) -> list[Tensor]:
    """torch.ops.hybrid.atrous_dwconv: n maps. Raises RuntimeError for float64."""
    B, H, W, C = x.shape
    rows, columns = triton.cdiv(H, stride), triton.cdiv(W, stride)
    size = (B, rows, columns, C)
    ys = [torch.empty(size, dtype=x.dtype, device=x.device) for _ in dilations]
    chosen = map_settings("atrous_dwconv.forward", x)
    pixel_blocks, channel_blocks = blocks(size, chosen)
    launch(
        forward,
        pixel_blocks * channel_blocks,
        x,
        strided(x),
        _taps(weight),
        tuple(ys),
        H,
        W,
        rows,
        columns,
        B * rows * columns,
        C,
        DILATIONS=tuple(dilations),
        STRIDE=stride,
        **chosen,
    )
    return ys


def atrous_dwconv_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    weight: Tensor,
    dilations: Sequence[int],
    stride: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.atrous_dwconv_backward: (dx, dweight).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = x.shape
    rows, columns = triton.cdiv(H, stride), triton.cdiv(W, stride)
    sizes = (H, W, rows, columns)
    grad_x = new_gradient(x, need_x)
    if need_x:
        chosen = map_settings("atrous_dwconv.grad_input", x)
        pixel_blocks, channel_blocks = blocks(x.shape, chosen)
        launch(
            grad_input,
            pixel_blocks * channel_blocks,
            x,
            tuple(strided(grad) for grad in grads),
            _taps(weight),
            grad_x,
            *sizes,
            B * H * W,
            C,
            DILATIONS=tuple(dilations),
            STRIDE=stride,
            **chosen,
        )
    if not need_weight:
        return grad_x, torch.empty(0, dtype=torch.float32, device=x.device)
    chosen = map_settings("atrous_dwconv.grad_taps", x)
    pixel_blocks, channel_blocks = blocks((B, rows, columns, C), chosen)
    chunks, steps = chunks_of(pixel_blocks, channel_blocks, chosen.pop("programs"))
    totals = []
    for grad, dilation in zip(grads, dilations, strict=True):
        sums = torch.empty((chunks, 9, C), dtype=torch.float32, device=x.device)
        counts = (*sizes, B * rows * columns, steps, C)
        launch(
            grad_taps,
            chunks * channel_blocks,
            x,
            strided(grad),
            strided(x),
            sums,
            *counts,
            DILATION=dilation,
            STRIDE=stride,
            **chosen,
        )
        totals.append(fold_rows(sums).view(3, 3, C))
    return grad_x, torch.stack(totals).permute(0, 3, 1, 2).contiguous()


def _taps(weight: Tensor) -> Tensor:
    """(n, C, 3, 3) -> (n, 3, 3, C)."""
    return weight.permute(0, 2, 3, 1).contiguous()
