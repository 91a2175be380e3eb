"""Pixels that read tokens at two scales in Triton, forward and backward.

In the forward a program owns pixels of one image and head: both stencils, both attentions, one
store. The backward keeps the queries of a branch and their gradients in memory between its steps:
`queries`, the backward of token_fusion, and `grad_taps`, which sums in two stages of a fixed order;
`grad_input` is the turned stencils of both.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import check_dtype, check_index, launch, settings
from hybrid_kernels.triton.maps import (
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
    store_sums,
)
from hybrid_kernels.triton.token_fusion import attend, token_fusion_backward
from hybrid_kernels.triton.token_rows import rows_of


@triton.jit(do_not_specialize=["H", "W", "tokens", "heads"])
def forward(
    x,  # map (B, H, W, C), strides
    three,  # taps (3, 3, C), bias (C,), and keys and values: (tensor (B, G, h, d), strides) each
    five,  # the same with taps (5, 5, C)
    y,  # (B, H, W, C), contiguous
    H,
    W,
    C,
    tokens,
    heads,
    scale,
    D: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    KEYS: tl.constexpr,
):
    program = tl.program_id(0)
    pixel_blocks = tl.cdiv(H * W, PIXELS)
    image = (program // heads // pixel_blocks).to(tl.int64)
    head = program % heads
    pixel = program // heads % pixel_blocks * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    c, i, j = head * D + channel, pixel // W, pixel % W
    mask = (pixel < H * W)[:, None] & (channel < D)[None, :]
    q = convolve(x, three[0], image, i, j, H, W, c, C, mask, 3, 1, 1)
    q = (q + load_channels(three[1], 0, c, C)[None, :]).to(y.dtype.element_ty)
    total = attend(q, three[2], three[3], image, head, tokens, scale, D, KEYS)
    q = convolve(x, five[0], image, i, j, H, W, c, C, mask, 5, 1, 1)
    q = (q + load_channels(five[1], 0, c, C)[None, :]).to(y.dtype.element_ty)
    total += attend(q, five[2], five[3], image, head, tokens, scale, D, KEYS)
    store_pixels(y, image * H * W + pixel, c, C, total, mask)


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def queries(
    x,  # map (B, H, W, C), strides
    taps,  # (SIDE, SIDE, C)
    bias,  # (C,)
    q,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    C,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    t = convolve(x, taps, image, i, j, H, W, c, C, mask, SIDE, 1, 1)
    store_pixels(q, pixel, c, C, t + load_channels(bias, 0, c, C)[None, :], mask)


@triton.jit(do_not_specialize=["H", "W", "pixels", "steps"])
def grad_taps(
    x,  # map (B, H, W, C), strides
    grad,  # of the queries, the same
    sums,  # (chunks, SIDE * SIDE + 1, C): of the taps, of the bias
    H,
    W,
    pixels,  # of all images
    steps,  # blocks of pixels per program
    C,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,  # power of 2
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        _, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
        g = load_pixels(grad, image, i, j, c, mask)
        total = correlate(total, x, g, image, i, j, H, W, c, mask, SIDE, 1, 1)
        total = add_row(total, g, SIDE * SIDE)
    store_sums(sums, chunk, total, c, C, SIDE * SIDE + 1)


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def grad_input(
    grad3,  # of the queries of a branch: map (B, H, W, C), strides
    grad5,
    w3,  # (3, 3, C)
    w5,  # (5, 5, C)
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
    dx = convolve_transposed(grad3, w3, image, i, j, H, W, c, C, mask, 3, 1, 1)
    dx += convolve_transposed(grad5, w5, image, i, j, H, W, c, C, mask, 5, 1, 1)
    store_pixels(grad_x, pixel, c, C, dx, mask)


def group_propagate(
    x: Tensor,
    w3: Tensor,
    b3: Tensor,
    w5: Tensor,
    b5: Tensor,
    kv3: Tensor,
    kv5: Tensor,
    scale: float,
) -> Tensor:
    """torch.ops.hybrid.group_propagate: y (B, H, W, C). Raises RuntimeError for float64."""
    check_dtype("x", x)
    (B, H, W, C), (_, G, _, h, d) = x.shape, kv3.shape
    check_index("pixels", H * W)
    check_index("tokens", G)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    three, five = (
        (w.contiguous(), b.contiguous(), rows_of(kv[:, :, 0]), rows_of(kv[:, :, 1]))
        for w, b, kv in ((w3, b3, kv3), (w5, b5, kv5))
    )
    channels = max(16, triton.next_power_of_2(d))
    problem = f"{torch.finfo(x.dtype).bits}-bit, e <= {channels}"
    chosen = settings("group_propagate.forward", problem, x.device)
    programs = B * h * triton.cdiv(H * W, chosen["PIXELS"])
    sizes = (H, W, C, G, h, scale)
    constants = {"D": d, "CHANNELS": channels, **chosen}
    launch(forward, programs, x, strided(x), three, five, y, *sizes, **constants)
    return y


def group_propagate_backward(
    grad: Tensor,
    x: Tensor,
    w3: Tensor,
    b3: Tensor,
    w5: Tensor,
    b5: Tensor,
    kv3: Tensor,
    kv5: Tensor,
    scale: float,
    need_x: bool,
    need_conv: bool,
    need_kv: bool,
) -> tuple[Tensor, ...]:
    """torch.ops.hybrid.group_propagate_backward: (dx, dw3, db3, dw5, db5, dkv3, dkv5).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = x.shape
    w3, w5 = w3.contiguous(), w5.contiguous()
    needs_query = need_x or need_conv
    grads, convs, kvs = [], [], []
    for weight, bias, kv in ((w3, b3, kv3), (w5, b5, kv5)):
        q = _queries(x, weight, bias).view(B, H * W, *kv.shape[3:])
        dy = grad.reshape(q.shape)
        dq, dkv = token_fusion_backward(dy, q, kv, scale, needs_query, need_kv)
        grads.append(dq.view(x.shape) if needs_query else dq)
        kvs.append(dkv)
        convs += _taps_gradient(x, grads[-1], weight, need_conv)
    grad_x = new_gradient(x, need_x)
    if need_x:
        chosen = map_settings("group_propagate.grad_input", x)
        pixel_blocks, channel_blocks = blocks(x.shape, chosen)
        maps = (*(strided(g) for g in grads), w3, w5, grad_x)
        programs = pixel_blocks * channel_blocks
        launch(grad_input, programs, x, *maps, H, W, B * H * W, C, **chosen)
    return grad_x, *convs, *kvs


def _queries(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of one branch, (B, H, W, C)."""
    B, H, W, C = x.shape
    q = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen = map_settings("group_propagate.queries", x)
    pixel_blocks, channel_blocks = blocks(x.shape, chosen)
    args = (strided(x), weight, bias.contiguous(), q, H, W, B * H * W, C)
    launch(queries, pixel_blocks * channel_blocks, x, *args, SIDE=weight.shape[0], **chosen)
    return q


def _taps_gradient(x: Tensor, grad: Tensor, weight: Tensor, needed: bool) -> tuple[Tensor, ...]:
    """Of the taps and the bias of one branch, from the gradient of its queries."""
    if not needed:
        return (torch.empty(0, dtype=torch.float32, device=x.device),) * 2
    (B, H, W, C), side = x.shape, weight.shape[0]
    chosen: dict[str, Any] = map_settings("group_propagate.grad_taps", x)
    pixel_blocks, channel_blocks = blocks(x.shape, chosen)
    chunks, steps = chunks_of(pixel_blocks, channel_blocks, chosen.pop("programs"))
    rows = side * side + 1
    sums = torch.empty((chunks, rows, C), dtype=torch.float32, device=x.device)
    args = (strided(x), strided(grad), sums, H, W, B * H * W, steps, C)
    constants = {"SIDE": side, "ROWS": triton.next_power_of_2(rows), **chosen}
    launch(grad_taps, chunks * channel_blocks, x, *args, **constants)
    total = fold_rows(sums)
    return total[:-1].reshape(side, side, C).clone(), total[-1].clone()
