"""The backward of EMSNet's C-MHSA in Triton: see conv_attention_fused.

`window_rows` leaves the statistics of the softmax, from which `gather` has the gradient of the
values. It also reduces the gradients of the logits, a row of nine at a time, to those of D and
of the parameters, in two stages of a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.conv_attention_logits import (
    Generator,
    constants_of,
    load_slots,
    row_logits,
    row_softmax,
)
from hybrid_kernels.triton.launch import check_index, launch
from hybrid_kernels.triton.maps import load_pixels, store_pixels, strided
from hybrid_kernels.triton.stencil import (
    blocks,
    channels_and_block,
    chunks_of,
    convolve_transposed,
    correlate,
    fold_rows,
    map_settings,
    neighbour,
    pixels_of,
    place,
    store_sums,
)

PAIRS = 81  # of output and input slots


@triton.jit(do_not_specialize=["count", "steps", "H", "W", "H2", "W2"])
def window_rows(
    grad,  # map (B, H, W, C), strides: of the output
    values,  # map (B, H, W, C), strides
    pooled,  # (B, H2, W2, C), contiguous
    weight,  # (81 heads, C)
    bias,  # (81 heads,) or None
    statistics,  # (B, H2, W2, heads, 9, 2): largest logit, share of its exponential; or None
    grad_pooled,  # (B, H2, W2, C) or None
    sums,  # (chunks, 81 heads, C + 1): of the weight and, in the last column, the bias; or None
    count,  # windows of all images
    steps,  # blocks of windows per chunk
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
    parts = tl.cdiv(C, K)  # blocks of channels of grad_pooled and sums
    program = tl.program_id(0)
    part = program % parts
    k = part * K + tl.arange(0, K)
    chunk = (program // parts).to(tl.int64)
    slot = tl.arange(0, 16)
    is_slot = slot < 9
    for step in range(steps):
        row = (chunk * steps + step) * ROWS + tl.arange(0, ROWS)
        exists = row < count
        is_own = row < tl.where(part == 0, count, 0)
        image, i, j = place(row, H2, W2)
        seen = exists[:, None] & (k < C)[None, :]
        d = tl.load(pooled + row[:, None] * C + k[None, :], mask=seen, other=0.0)
        total = tl.zeros((ROWS, K), tl.float32)
        for item in range(heads * 9):
            head = item // 9
            p = item % 9
            logits = row_logits(pooled, weight, bias, row, exists, item * 9, 1, C, K)
            peak, share, mixing = row_softmax(logits, scale)
            if statistics is not None:
                pair = statistics + (row * heads * 9 + item) * 2
                tl.store(pair, peak, mask=is_own)
                tl.store(pair + 1, share, mask=is_own)
            if grad_pooled is not None or sums is not None:
                mixing *= share[:, None]
                dots = tl.zeros((ROWS, 16), tl.float32)
                for start in range(0, D, CHANNELS):
                    c = start + tl.arange(0, CHANNELS)
                    mask = exists[:, None] & (c < D)[None, :]
                    at_i = i * 2 - 1 + p // 3
                    at_j = j * 2 - 1 + p % 3
                    g = neighbour(grad, image, at_i, at_j, H, W, head * D + c, mask)
                    v = load_slots(values, image, i, j, H, W, head * D + c, exists, c < D)
                    dots += tl.sum(g[:, None, :] * v, axis=2)
                mean = tl.sum(mixing * dots, axis=1)
                ds = scale * mixing * (dots - mean[:, None])
                logit = item * 9 + slot
                if grad_pooled is not None:
                    wanted = is_slot[:, None] & (k < C)[None, :]
                    m = tl.load(weight + logit[:, None] * C + k[None, :], mask=wanted, other=0.0)
                    total += tl.dot(ds.to(m.dtype), m, input_precision="ieee")
                if sums is not None:
                    of_weight = tl.dot(tl.trans(ds.to(d.dtype)), d, input_precision="ieee")
                    of_bias = tl.sum(ds, axis=0)
                    entry = sums + (chunk * heads * 81 + logit) * (C + 1)
                    wanted = is_slot[:, None] & (k < C)[None, :]
                    has_bias = slot < tl.where(part == 0, 9, 0)
                    if step > 0:
                        before = tl.load(entry[:, None] + k[None, :], mask=wanted, other=0.0)
                        of_weight += before
                        of_bias += tl.load(entry + C, mask=has_bias, other=0.0)
                    tl.store(entry[:, None] + k[None, :], of_weight, mask=wanted)
                    tl.store(entry + C, of_bias, mask=has_bias)
        if grad_pooled is not None:
            store_pixels(grad_pooled, row, k, C, total, seen)
        tl.debug_barrier()  # a program reads its own sums again


@triton.jit(do_not_specialize=["H", "W", "H2", "W2", "pixels"])
def unpool(
    grad_pooled,  # map (B, H2, W2, C), strides
    taps,  # (3, 3, C)
    grad_x,  # map (B, H, W, C), strides, contiguous: what is added to
    H,
    W,
    H2,
    W2,
    pixels,  # of all images
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    total = load_pixels(grad_x, image, i, j, c, mask)
    total += convolve_transposed(grad_pooled, taps, image, i, j, H2, W2, c, C, mask, 3, 2, 1)
    store_pixels(grad_x[0], pixel, c, C, total, mask)


@triton.jit(do_not_specialize=["H", "W", "H2", "W2", "windows", "steps"])
def tap_sums(
    grad_pooled,  # map (B, H2, W2, C), strides
    x,  # map (B, H, W, C), strides
    sums,  # (chunks, 9, C)
    H,
    W,
    H2,
    W2,
    windows,  # of all images
    steps,  # blocks of windows per program
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    total = tl.zeros((16, CHANNELS), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        _, image, i, j, mask = pixels_of(block, H2, W2, windows, c, C, TOKENS)
        g = load_pixels(grad_pooled, image, i, j, c, mask)
        total = correlate(total, x, g, image, i, j, H, W, c, mask, 3, 2, 1)
    store_sums(sums, chunk, total, c, C, 9)


def unpool_map(grad_pooled: Tensor, dw_weight: Tensor, grad_x: Tensor) -> None:
    """Add to grad_x what comes back through the depthwise convolution."""
    B, H, W, C = grad_x.shape
    chosen = map_settings("conv_attention_fused.unpool", grad_x)
    pixel_blocks, channel_blocks = blocks(grad_x.shape, chosen)
    sizes = (H, W, *grad_pooled.shape[1:3], B * H * W, C)
    maps = (strided(grad_pooled), dw_weight.contiguous(), strided(grad_x))
    launch(unpool, pixel_blocks * channel_blocks, grad_x, *maps, *sizes, **chosen)


def tap_gradients(grad_pooled: Tensor, x: Tensor) -> Tensor:
    H, W, C = x.shape[1:]
    chosen = map_settings("conv_attention_fused.tap_sums", x)
    window_blocks, channel_blocks = blocks(grad_pooled.shape, chosen)
    chunks, steps = chunks_of(window_blocks, channel_blocks, chosen.pop("programs"))
    sums = torch.empty((chunks, 9, C), dtype=torch.float32, device=x.device)
    sizes = (H, W, *grad_pooled.shape[1:3], grad_pooled.shape[:3].numel(), steps, C)
    programs = chunks * channel_blocks
    launch(tap_sums, programs, x, strided(grad_pooled), strided(x), sums, *sizes, **chosen)
    return fold_rows(sums).view(3, 3, C)


def reduce_windows(
    grad_out: Tensor,
    values: Tensor,
    generator: Generator,
    heads: int,
    scale: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Statistics of the softmax, the gradient of D, and those of M and m in one, as needed."""
    pooled = generator[0]
    C, count = pooled.shape[3], pooled.shape[:3].numel()
    check_index("windows", count)
    chosen, constants = constants_of("window_rows", values, heads)
    parts = triton.cdiv(C, constants["K"])
    row_blocks = triton.cdiv(count, chosen["ROWS"])
    chunks, steps = chunks_of(row_blocks, parts, chosen.pop("programs"))
    shapes = ((*pooled.shape[:3], heads, 9, 2), pooled.shape, (chunks, PAIRS * heads, C + 1))
    dtypes = (torch.float32, pooled.dtype, torch.float32)
    statistics, grad_pooled, sums = (
        torch.empty(shape, dtype=dtype, device=pooled.device) if need else None
        for shape, dtype, need in zip(shapes, dtypes, needs, strict=True)
    )
    launch(
        window_rows,
        chunks * parts if any(needs) else 0,
        values,
        strided(grad_out),
        strided(values),
        *generator,
        statistics,
        grad_pooled,
        sums,
        count,
        steps,
        *values.shape[1:3],
        *pooled.shape[1:3],
        C,
        heads,
        scale,
        **constants,
        **chosen,
    )
    if sums is not None:
        sums = fold_rows(sums)
    return statistics, grad_pooled, sums
