"""Depthwise 3x3 convolution with bias and activation in Triton, forward and backward.

The backward has two kernels: `backward` computes the pre-activation again, stores its gradient dt
where there is an activation, and sums the gradients of the parameters, in two stages of a fixed
order; `grad_input` is the transposed stencil of dt.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch
from hybrid_kernels.triton.maps import (
    load_channels,
    load_pixels,
    new_gradient,
    store_pixels,
    strided,
)
from hybrid_kernels.triton.stencil import (
    activate,
    add_row,
    blocks,
    channels_and_block,
    chunks_of,
    convolve,
    convolve_transposed,
    correlate,
    derivative,
    fold_rows,
    map_settings,
    pixels_of,
    store_sums,
)


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def forward(
    x,  # map (B, H, W, C), strides
    weight,  # (3, 3, C)
    bias,  # (C,) or None
    y,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    C,
    ACT: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    t = convolve(x, weight, image, i, j, H, W, c, C, mask, 3, 1, 1)
    if bias is not None:
        t += load_channels(bias, 0, c, C)[None, :]
    store_pixels(y, pixel, c, C, activate(t, ACT), mask)


@triton.jit(do_not_specialize=["H", "W", "pixels", "steps"])
def backward(
    grad,  # map (B, H, W, C), strides
    x,  # map (B, H, W, C), strides
    weight,  # (3, 3, C)
    bias,  # (C,) or None
    dt,  # (B, H, W, C), contiguous, or None when nobody wants it
    sums,  # (chunks, 10, C): of the taps, of the bias; or None
    H,
    W,
    pixels,  # of all images
    steps,  # blocks of pixels per program
    C,
    ACT: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    total = tl.zeros((16, CHANNELS), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
        g = load_pixels(grad, image, i, j, c, mask)
        if ACT != "none":
            t = convolve(x, weight, image, i, j, H, W, c, C, mask, 3, 1, 1)
            if bias is not None:
                t += load_channels(bias, 0, c, C)[None, :]
            g *= derivative(t, ACT)
        if dt is not None:
            store_pixels(dt, pixel, c, C, g, mask)
        if sums is not None:
            total = correlate(total, x, g, image, i, j, H, W, c, mask, 3, 1, 1)
            total = add_row(total, g, 9)
    if sums is not None:
        store_sums(sums, chunk, total, c, C, 10)


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def grad_input(
    dt,  # map (B, H, W, C), strides
    weight,  # (3, 3, C)
    grad_x,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    dx = convolve_transposed(dt, weight, image, i, j, H, W, c, C, mask, 3, 1, 1)
    store_pixels(grad_x, pixel, c, C, dx, mask)


def dwconv_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
    """torch.ops.hybrid.dwconv_act: y (B, H, W, C). Raises RuntimeError for float64."""
    B, H, W, C = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen = map_settings("dwconv_act.forward", x)
    pixel_blocks, channel_blocks = blocks(x.shape, chosen)
    weight, bias = _dense(weight, bias)
    launch(
        forward,
        pixel_blocks * channel_blocks,
        x,
        strided(x),
        weight,
        bias,
        y,
        H,
        W,
        B * H * W,
        C,
        ACT=act,
        **chosen,
    )
    return y


def dwconv_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    act: str,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.dwconv_act_backward: (dx, dweight, dbias).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = x.shape
    weight, bias = _dense(weight, bias)
    sizes = (H, W, B * H * W)
    needs_sums = need_weight or need_bias
    keeps_dt = need_x and act != "none"
    chosen = map_settings("dwconv_act.backward", x)
    pixel_blocks, channel_blocks = blocks(x.shape, chosen)
    chunks, steps = chunks_of(pixel_blocks, channel_blocks, chosen.pop("programs"))
    dt = new_gradient(x, True) if keeps_dt else grad
    sums = torch.empty((chunks, 10, C), dtype=torch.float32, device=x.device)
    launch(
        backward,
        chunks * channel_blocks if keeps_dt or needs_sums else 0,
        x,
        strided(grad),
        strided(x),
        weight,
        bias,
        dt if keeps_dt else None,
        sums if needs_sums else None,
        *sizes,
        steps,
        C,
        ACT=act,
        **chosen,
    )
    grad_x = new_gradient(x, need_x)
    if need_x:
        chosen = map_settings("dwconv_act.grad_input", x)
        pixel_blocks, channel_blocks = blocks(x.shape, chosen)
        programs = pixel_blocks * channel_blocks
        launch(grad_input, programs, x, strided(dt), weight, grad_x, *sizes, C, **chosen)
    none = torch.empty(0, dtype=torch.float32, device=x.device)
    if not needs_sums:
        return grad_x, none, none
    total = fold_rows(sums)
    return (
        grad_x,
        total[:9].reshape(3, 3, C).clone() if need_weight else none,
        total[9].clone() if need_bias else none,
    )


def _dense(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.contiguous(), None if bias is None else bias.contiguous()
