"""The whole C-MHSA of EMSNet in Triton: no tensor of logits, weights or their gradients.

Windows are 3x3 of stride 2, so a pixel lies in the same slots of all windows that cover it,
depending on its parity. `pool` leaves D, from which `gather` generates the nine logits of every
(window, slot) that a pixel needs, each of them once in all; the gradient of the values is the same
with input and output slots exchanged, for which `window_rows` leaves the statistics of the softmax.
`window_rows` also reduces the gradients of the logits, a row of nine at a time, to those of D and
of the parameters, in two stages of a fixed order. Projections of pixels are left to the library.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, launch, settings
from hybrid_kernels.triton.maps import load_pixels, new_gradient, store_pixels, strided
from hybrid_kernels.triton.stencil import (
    blocks,
    chunks_of,
    convolve,
    convolve_transposed,
    correlate,
    fold_rows,
    map_settings,
    neighbour,
    place,
    store_sums,
)
from hybrid_kernels.triton.token_rows import LOG2_E

PAIRS = 81  # of output and input slots


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
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    window = (program // channel_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    image, i, j = place(window, H2, W2)
    mask = (window < windows)[:, None] & (c < C)[None, :]
    total = convolve(x, taps, image, i, j, H, W, c, C, mask, 3, 2, 1)
    store_pixels(pooled, window, c, C, total, mask)


@triton.jit
def row_logits(pooled, weight, bias, window, exists, first, step, C, K: tl.constexpr):
    """Nine logits of each window, (windows, 16): rows first, first + step, ... of the weight."""
    slot = tl.arange(0, 16)
    logit = first + slot * step
    total = tl.zeros((window.shape[0], 16), tl.float32)
    for start in range(0, C, K):
        k = start + tl.arange(0, K)
        inside = k < C
        seen = exists[:, None] & inside[None, :]
        d = tl.load(pooled + window[:, None] * C + k[None, :], mask=seen, other=0.0)
        wanted = (slot < 9)[None, :] & inside[:, None]
        m = tl.load(weight + logit[None, :] * C + k[:, None], mask=wanted, other=0.0)
        total += tl.dot(d, m, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + logit, mask=slot < 9, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def row_softmax(logits, scale):
    """Statistics of rows of nine logits, to base 2, and their exponentials (windows, 16)."""
    is_slot = (tl.arange(0, 16) < 9)[None, :]
    x = tl.where(is_slot, logits * (scale * LOG2_E), float("-inf"))
    peak = tl.max(x, axis=1)
    weight = tl.exp2(x - peak[:, None])
    return peak, 1.0 / tl.sum(weight, axis=1), weight


@triton.jit
def load_slots(x, image, i, j, H, W, c, exists, in_head):
    """Channels c of the slots of windows (i, j) as (windows, 16, channels); 0 outside the map."""
    slot = tl.arange(0, 16)
    at_i = i[:, None] * 2 - 1 + (slot // 3)[None, :]
    at_j = j[:, None] * 2 - 1 + (slot % 3)[None, :]
    inside = exists[:, None] & (slot < 9)[None, :]
    inside = inside & (at_i >= 0) & (at_i < H) & (at_j >= 0) & (at_j < W)
    where = at_i.to(tl.int64) * x[1][1] + at_j.to(tl.int64) * x[1][2]
    where += (image.to(tl.int64) * x[1][0])[:, None]
    where = where[:, :, None] + (c.to(tl.int64) * x[1][3])[None, None, :]
    mask = inside[:, :, None] & in_head[None, None, :]
    return tl.load(x[0] + where, mask=mask, other=0.0).to(tl.float32)


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
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    pixel = (program // channel_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    image, i, j = place(pixel, H, W)
    mask = (pixel < pixels)[:, None] & (c < C)[None, :]
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
    channel_blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    chunk = (program // channel_blocks).to(tl.int64)
    total = tl.zeros((16, CHANNELS), tl.float32)
    for step in range(steps):
        window = (chunk * steps + step) * TOKENS + tl.arange(0, TOKENS)
        image, i, j = place(window, H2, W2)
        mask = (window < windows)[:, None] & (c < C)[None, :]
        g = load_pixels(grad_pooled, image, i, j, c, mask)
        total = correlate(total, x, g, image, i, j, H, W, c, mask, 3, 2, 1)
    store_sums(sums, chunk, total, c, C, 9)


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
    statistics, grad_pooled, sums = _window_rows(
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
        _unpool(grad_pooled, dw_weight, grad_x)
    if need_dw:
        grad_dw = _tap_gradients(grad_pooled, x)
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


def _unpool(grad_pooled: Tensor, dw_weight: Tensor, grad_x: Tensor) -> None:
    """Add to grad_x what comes back through the depthwise convolution."""
    B, H, W, C = grad_x.shape
    chosen = map_settings("conv_attention_fused.unpool", grad_x)
    pixel_blocks, channel_blocks = blocks(grad_x.shape, chosen)
    sizes = (H, W, *grad_pooled.shape[1:3], B * H * W, C)
    maps = (strided(grad_pooled), dw_weight.contiguous(), strided(grad_x))
    launch(unpool, pixel_blocks * channel_blocks, grad_x, *maps, *sizes, **chosen)


def _tap_gradients(grad_pooled: Tensor, x: Tensor) -> Tensor:
    H, W, C = x.shape[1:]
    chosen = map_settings("conv_attention_fused.tap_sums", x)
    window_blocks, channel_blocks = blocks(grad_pooled.shape, chosen)
    chunks, steps = chunks_of(window_blocks, channel_blocks, chosen.pop("programs"))
    sums = torch.empty((chunks, 9, C), dtype=torch.float32, device=x.device)
    sizes = (H, W, *grad_pooled.shape[1:3], grad_pooled.shape[:3].numel(), steps, C)
    programs = chunks * channel_blocks
    launch(tap_sums, programs, x, strided(grad_pooled), strided(x), sums, *sizes, **chosen)
    return fold_rows(sums).view(3, 3, C)


Generator = tuple[Tensor, Tensor, Tensor | None]  # of logits: D, M, m


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
    chosen, constants = _constants("gather", values, heads)
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


def _window_rows(
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
    chosen, constants = _constants("window_rows", values, heads)
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


def _constants(name: str, values: Tensor, heads: int) -> tuple[Settings, dict[str, int]]:
    """Settings of a kernel, and the sizes that it is compiled for."""
    C = values.shape[3]
    D = C // heads
    bits = torch.finfo(values.dtype).bits
    width = 8 if D <= 8 else 32
    problem = f"{bits}-bit, d <= {width}"  # wider heads are cut
    chosen = settings(f"conv_attention_fused.{name}", problem, values.device)
    K = min(64, max(16, triton.next_power_of_2(C)))
    return chosen, {"D": D, "K": K, "CHANNELS": min(width, triton.next_power_of_2(D))}
