"""The parallel convolution path of attention in Triton, forward and backward.

The backward has two kernels: `backward` computes z again where a norm follows, stores its gradient
dz, and sums the gradients of the parameters, in two stages of a fixed order; `grad_values` is the
transposed stencil of dz, times the derivative of the activation.
"""

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


@triton.jit
def _path(out, v, weight, bias, image, i, j, H, W, c, C, mask):
    """z of pixels (i, j)."""
    z = convolve(v, weight, image, i, j, H, W, c, C, mask, 3, 1, 1, "hardswish")
    return load_pixels(out, image, i, j, c, mask) + (z + load_channels(bias, 0, c, C)[None, :])


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def forward(
    out,  # map (B, H, W, C), strides
    v,  # the same
    weight,  # (3, 3, C)
    bias,  # (C,)
    scale,  # (C,) or None
    shift,  # the same
    y,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    t = _path(out, v, weight, bias, image, i, j, H, W, c, C, mask)
    if scale is not None:
        t = t * load_channels(scale, 0, c, C)[None, :] + load_channels(shift, 0, c, C)[None, :]
        t = activate(t, "hardswish")
    store_pixels(y, pixel, c, C, t, mask)


@triton.jit(do_not_specialize=["H", "W", "pixels", "steps"])
def backward(
    grad,  # map (B, H, W, C), strides
    out,  # the same
    v,  # the same
    weight,  # (3, 3, C)
    bias,  # (C,)
    scale,  # (C,) or None
    shift,  # the same
    dz,  # (B, H, W, C), contiguous, or None when nobody wants it
    sums,  # (chunks, 12, C): of the taps, of bias, scale and shift; or None
    H,
    W,
    pixels,  # of all images
    steps,  # blocks of pixels per program
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    total = tl.zeros((16, CHANNELS), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
        g = load_pixels(grad, image, i, j, c, mask)
        if scale is not None:
            z = _path(out, v, weight, bias, image, i, j, H, W, c, C, mask)
            factor = load_channels(scale, 0, c, C)[None, :]
            g *= derivative(z * factor + load_channels(shift, 0, c, C)[None, :], "hardswish")
            if sums is not None:
                total = add_row(total, g * z, 10)
                total = add_row(total, g, 11)
            g *= factor
        if dz is not None:
            store_pixels(dz, pixel, c, C, g, mask)
        if sums is not None:
            total = correlate(total, v, g, image, i, j, H, W, c, mask, 3, 1, 1, "hardswish")
            total = add_row(total, g, 9)
    if sums is not None:
        store_sums(sums, chunk, total, c, C, 12)


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def grad_values(
    dz,  # map (B, H, W, C), strides
    v,  # the same
    weight,  # (3, 3, C)
    grad_v,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    dv = convolve_transposed(dz, weight, image, i, j, H, W, c, C, mask, 3, 1, 1)
    dv *= derivative(load_pixels(v, image, i, j, c, mask), "hardswish")
    store_pixels(grad_v, pixel, c, C, dv, mask)


def value_conv(
    out: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """torch.ops.hybrid.value_conv: (B, H, W, C). Raises RuntimeError for float64."""
    B, H, W, C = out.shape
    y = torch.empty(out.shape, dtype=out.dtype, device=out.device)
    chosen = map_settings("value_conv.forward", out)
    pixel_blocks, channel_blocks = blocks(out.shape, chosen)
    launch(
        forward,
        pixel_blocks * channel_blocks,
        out,
        strided(out),
        strided(v),
        *dense(weight, bias, scale, shift),
        y,
        H,
        W,
        B * H * W,
        C,
        **chosen,
    )
    return y


def value_conv_backward(
    grad: Tensor,
    out: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    need_out: bool,
    need_v: bool,
    need_parameters: bool,
    need_affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.value_conv_backward: (dout, dv, dweight, dbias, dscale, dshift).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = out.shape
    parameters = dense(weight, bias, scale, shift)
    sizes = (H, W, B * H * W)
    needs_sums = need_parameters or need_affine
    keeps_dz = need_out or (need_v and scale is not None)
    chosen = map_settings("value_conv.backward", out)
    pixel_blocks, channel_blocks = blocks(out.shape, chosen)
    chunks, steps = chunks_of(pixel_blocks, channel_blocks, chosen.pop("programs"))
    dz = new_gradient(out, True) if keeps_dz else grad
    sums = torch.empty((chunks, 12, C), dtype=torch.float32, device=out.device)
    launch(
        backward,
        chunks * channel_blocks if keeps_dz or needs_sums else 0,
        out,
        strided(grad),
        strided(out),
        strided(v),
        *parameters,
        dz if keeps_dz else None,
        sums if needs_sums else None,
        *sizes,
        steps,
        C,
        **chosen,
    )
    grad_v = new_gradient(v, need_v)
    if need_v:
        chosen = map_settings("value_conv.grad_values", v)
        pixel_blocks, channel_blocks = blocks(v.shape, chosen)
        programs = pixel_blocks * channel_blocks
        maps = (strided(dz), strided(v))
        launch(grad_values, programs, v, *maps, parameters[0], grad_v, *sizes, C, **chosen)
    none = torch.empty(0, dtype=torch.float32, device=out.device)
    grads = [none] * 4
    if needs_sums:
        total = fold_rows(sums)
        if need_parameters:
            grads[:2] = total[:9].reshape(3, 3, C).clone(), total[9].clone()
        if need_affine:
            grads[2:] = total[10].clone(), total[11].clone()
    return dz if need_out else new_gradient(out, False), grad_v, *grads
