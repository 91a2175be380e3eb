"""The whole C-MHSA of EMSNet in Triton: no tensor of logits, weights or their gradients.

Windows are 3x3 of stride 2, so a pixel lies in the same slots of all windows that cover it,
depending on its parity. `pool` leaves D, from which `gather` generates the nine logits of every
(window, slot) that a pixel needs, each of them once in all; the gradient of the values is the same
with input and output slots exchanged. Projections of pixels are left to the library. What
only the backward launches is in conv_attention_fused_backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from hybrid_kernels.triton.conv_attention_fused_backward import (
    reduce_windows,
    tap_gradients,
    unpool_map,
)
from hybrid_kernels.triton.conv_attention_logits import (
    Generator,
    constants_of,
    load_slots,
    row_logits,
    row_softmax,
)
from hybrid_kernels.triton.launch import check_dtype, check_index, launch
from hybrid_kernels.triton.maps import new_gradient, store_pixels, strided
from hybrid_kernels.triton.stencil import (
    blocks,
    channels_and_block,
    convolve,
    map_settings,
    pixels_of,
)
from hybrid_kernels.triton.token_rows import LOG2_E


@triton.jit(do_not_specialize=["H", "W", "H2", "W2", "windows"])
def pool(
    x,  # map (B, H, W, C), strides
    taps,  # (3, 3, C)
    pooled,  # (B, H2, W2, C), contiguous
    H,
    W,
    H2,
    W2,
    windows,  # of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    window, image, i, j, mask = pixels_of(block, H2, W2, windows, c, C, TOKENS)
    total = convolve(x, taps, image, i, j, H, W, c, C, mask, 3, 2, 1)
    store_pixels(pooled, window, c, C, total, mask)


@triton.jit(do_not_specialize=["count", "blocks", "rows", "columns", "H", "W", "H2", "W2"])
def gather(
    values,  # map (B, H, W, C), strides: V, or the gradient of the output
    pooled,  # (B, H2, W2, C), contiguous
    weight,  # (81 heads, C)
    bias,  # (81 heads,) or None
    statistics,  # (B, H2, W2, heads, 9, 2) of window_rows; None: not transposed
    out,  # (B, H, W, C), contiguous
    count,  # pixels of one parity, of all images
    blocks,
    rows,  # of pixels of one parity
    columns,
    H,
    W,
    H2,
    W2,
    C,
    heads,
    scale,
    D: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel_blocks: tl.constexpr = (D + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    head = program // channel_blocks % heads
    row = program // channel_blocks // heads % blocks * ROWS + tl.arange(0, ROWS)
    parity = program // channel_blocks // heads // blocks
    last_j = row % columns
    last_i = row // columns % rows
    image = (row // columns // rows).to(tl.int64)
    slot = tl.arange(0, 16)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    # Slots (a, b) of the windows that cover these pixels.
    for a in range(parity // 2, 3, 2):
        for b in range(parity % 2, 3, 2):
            i = last_i - a // 2
            j = last_j - b // 2
            exists = (row < count) & (i >= 0) & (i < H2) & (j >= 0) & (j < W2)
            window = (image * H2 + i) * W2 + j
            own = a * 3 + b
            if statistics is None:
                first = head * 81 + own * 9
                logits = row_logits(pooled, weight, bias, window, exists, first, 1, C, K)
                _, share, mixing = row_softmax(logits, scale)
                mixing *= share[:, None]
            else:
                first = head * 81 + own
                logits = row_logits(pooled, weight, bias, window, exists, first, 9, C, K)
                pair = statistics + ((window * heads + head)[:, None] * 9 + slot[None, :]) * 2
                mask = exists[:, None] & (slot < 9)[None, :]
                peaks = tl.load(pair, mask=mask, other=0.0)
                shares = tl.load(pair + 1, mask=mask, other=0.0)
                mixing = tl.exp2(logits * (scale * LOG2_E) - peaks) * shares
            mixing = tl.where(exists[:, None], mixing, 0.0)
            slots = load_slots(values, image, i, j, H, W, head * D + c, exists, c < D)
            total += tl.sum(mixing[:, :, None] * slots, axis=1)
    i = last_i * 2 + parity // 2 - 1
    j = last_j * 2 + parity % 2 - 1
    inside = (row < count) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    pixel = (image * H + i) * W + j
    store_pixels(out, pixel, head * D + c, C, total, inside[:, None] & (c < D)[None, :])


def conv_attention_fused(
    x: Tensor,
    dw_weight: Tensor,
    logit_weight: Tensor,
    logit_bias: Tensor | None,
    value_weight: Tensor,
    heads: int,
    scale: float,
) -> Tensor:
    """`torch.ops.hybrid.conv_attention_fused` on Triton."""
    check_dtype("x", x)
    x = x.contiguous()  # the library's products differ with the strides
    pooled = _pool(x, dw_weight)
    out = new_gradient(x, True)
    generator = (pooled, *_dense(logit_weight, logit_bias))
    _gather(F.linear(x, value_weight), generator, None, out, heads, scale)
    return out


def conv_attention_fused_backward(
    grad_out: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    logit_weight: Tensor,
    logit_bias: Tensor | None,
    value_weight: Tensor,
    heads: int,
    scale: float,
    need_x: bool,
    need_dw: bool,
    need_logit: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`torch.ops.hybrid.conv_attention_fused_backward` on Triton."""
    check_dtype("x", x)
    x, C = x.contiguous(), x.shape[3]
    grad_x, grad_dw, grad_logit, grad_bias, grad_value = (
        torch.empty(0, dtype=torch.float32, device=x.device) for _ in range(5)
    )
    pooled = _pool(x, dw_weight)
    generator = (pooled, *_dense(logit_weight, logit_bias))
    statistics, grad_pooled, sums = reduce_windows(
        grad_out,
        F.linear(x, value_weight),
        generator,
        heads,
        scale,
        needs=(need_x or need_value, need_x or need_dw, need_logit),
    )
    if need_x or need_value:
        grad_v = new_gradient(x, True)
        _gather(grad_out, generator, statistics, grad_v, heads, scale)
    if need_x:
        grad_x = grad_v @ value_weight
        unpool_map(grad_pooled, dw_weight, grad_x)
    if need_dw:
        grad_dw = tap_gradients(grad_pooled, x)
    if need_logit:
        grad_logit = sums[:, :C].contiguous()
    if need_logit and logit_bias is not None:
        grad_bias = sums[:, C].contiguous()
    if need_value:
        grad_value = grad_v.flatten(0, 2).float().T @ x.flatten(0, 2).float()
    return grad_x if need_x else grad_x.to(x.dtype), grad_dw, grad_logit, grad_bias, grad_value


def _dense(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.contiguous(), None if bias is None else bias.contiguous()


def _pool(x: Tensor, dw_weight: Tensor) -> Tensor:
    """D (B, H2, W2, C), in x's dtype."""
    B, H, W, C = x.shape
    pooled = x.new_empty(B, triton.cdiv(H, 2), triton.cdiv(W, 2), C)
    chosen = map_settings("conv_attention_fused.pool", x)
    window_blocks, channel_blocks = blocks(pooled.shape, chosen)
    sizes = (H, W, *pooled.shape[1:3], pooled.shape[:3].numel(), C)
    programs = window_blocks * channel_blocks
    launch(pool, programs, x, strided(x), dw_weight.contiguous(), pooled, *sizes, **chosen)
    return pooled


def _gather(
    values: Tensor,
    generator: Generator,
    statistics: Tensor | None,
    out: Tensor,
    heads: int,
    scale: float,
) -> None:
    B, H, W, C = values.shape
    rows, columns = triton.cdiv(H + 1, 2), triton.cdiv(W + 1, 2)
    count = B * rows * columns
    check_index("pixels of one parity", count)
    chosen, constants = constants_of("gather", values, heads)
    row_blocks = triton.cdiv(count, chosen["ROWS"])
    channel_blocks = triton.cdiv(constants["D"], constants["CHANNELS"])
    launch(
        gather,
        4 * row_blocks * heads * channel_blocks,
        values,
        strided(values),
        *generator,
        statistics,
        out,
        count,
        row_blocks,
        rows,
        columns,
        H,
        W,
        *generator[0].shape[1:3],
        C,
        heads,
        scale,
        **constants,
        **chosen,
    )
