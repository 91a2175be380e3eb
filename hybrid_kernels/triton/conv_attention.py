"""Convolutional attention in Triton: both directions gather, so that nothing needs atomics.

Pixels of one phase (their row and column modulo the stride) lie in the same slots of the windows
that cover them. A program of `gather` owns pixels of one phase, visits those windows one by one
and sums what their slots contribute; the gradient of the values is the same with output and input
slots exchanged. A program of `window_rows` owns one output slot of many windows: it leaves the
statistics of the softmax, from which `gather` computes weights again, and the gradient of the
logits. Everything is computed in float32; exponents are base 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, launch, settings
from hybrid_kernels.triton.token_rows import LOG2_E, new_like


@triton.jit
def load_pixels(x, strides, image, i, j, head, exists, c, H, W, D: tl.constexpr):
    """Channels c of the heads of pixels as (rows, channels) in float32; 0 outside the map."""
    inside = exists & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    pixel = image * strides[0] + i.to(tl.int64) * strides[1] + j.to(tl.int64) * strides[2]
    where = pixel[:, None] + (head[:, None] * D + c[None, :]).to(tl.int64) * strides[3]
    return tl.load(x + where, mask=inside[:, None] & (c < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_logits(logits, first, exists, scale, KK: tl.constexpr, SLOTS: tl.constexpr):
    """KK neighbouring logits from each offset as (rows, SLOTS), base 2; -inf beyond."""
    slot = tl.arange(0, SLOTS)
    mask = exists[:, None] & (slot < KK)[None, :]
    x = tl.load(logits + first[:, None] + slot[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where((slot < KK)[None, :], x * (scale * LOG2_E), float("-inf"))


@triton.jit(
    do_not_specialize=["count", "blocks", "rows", "columns", "phases", "H", "W", "H2", "W2"]
)
def gather(
    values,  # (B, H, W, C): v, or the gradient of the output
    strides,
    logits,  # (B, H2, W2, heads, KK, KK), contiguous
    statistics,  # (B, H2, W2, heads, KK, 2) of window_rows; None: not transposed
    out,  # (B, H, W, C), contiguous
    count,  # (image, row, column, head) of one phase
    blocks,
    rows,  # of pixels of one phase
    columns,
    phases,  # along a row
    H,
    W,
    H2,
    W2,
    heads,
    scale,
    D: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    SLOTS: tl.constexpr,  # KK = KERNEL * KERNEL, padded to a power of two
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    KK: tl.constexpr = KERNEL * KERNEL
    channel_blocks: tl.constexpr = (D + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    row = program // channel_blocks % blocks * ROWS + tl.arange(0, ROWS)
    phase = program // channel_blocks // blocks
    phase_i = phase // phases
    phase_j = phase % phases
    head = row % heads
    last_j = row // heads % columns
    last_i = row // heads // columns % rows
    image = (row // heads // columns // rows).to(tl.int64)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    # Slots (a, b) of the windows that cover these pixels.
    for a in range(phase_i, KERNEL, STRIDE):
        for b in range(phase_j, KERNEL, STRIDE):
            i = last_i - a // STRIDE
            j = last_j - b // STRIDE
            exists = (row < count) & (i >= 0) & (i < H2) & (j >= 0) & (j < W2)
            item = ((image * H2 + i) * W2 + j) * heads + head
            own = a * KERNEL + b
            if statistics is None:
                x = load_logits(logits, (item * KK + own) * KK, exists, scale, KK, SLOTS)
                peak = tl.max(x, axis=1)
                share = 1.0 / tl.sum(tl.exp2(x - peak[:, None]), axis=1)
            for other in range(KK):
                if statistics is None:
                    where = (item * KK + own) * KK + other
                else:
                    where = (item * KK + other) * KK + own
                    pair = statistics + (item * KK + other) * 2
                    peak = tl.load(pair, mask=exists, other=0.0)
                    share = tl.load(pair + 1, mask=exists, other=0.0)
                logit = tl.load(logits + where, mask=exists, other=0.0).to(tl.float32)
                weight = tl.exp2(logit * (scale * LOG2_E) - peak) * share
                at_i = i * STRIDE - PADDING + other // KERNEL
                at_j = j * STRIDE - PADDING + other % KERNEL
                value = load_pixels(values, strides, image, at_i, at_j, head, exists, c, H, W, D)
                total += tl.where(exists, weight, 0.0)[:, None] * value
    i = last_i * STRIDE + phase_i - PADDING
    j = last_j * STRIDE + phase_j - PADDING
    inside = (row < count) & (i >= 0) & (i < H) & (j >= 0) & (j < W)
    pixel = ((image * H + i) * W + j) * heads + head
    mask = inside[:, None] & (c < D)[None, :]
    tl.store(out + pixel[:, None] * D + c[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count", "H", "W", "H2", "W2"])
def window_rows(
    grad,  # of the output (B, H, W, C)
    grad_strides,
    v,
    v_strides,
    logits,  # (B, H2, W2, heads, KK, KK), contiguous
    statistics,  # (B, H2, W2, heads, KK, 2): largest logit and share of its exponential; or None
    grad_logits,  # like logits; or None
    count,  # (image, row, column, head) of windows
    H,
    W,
    H2,
    W2,
    heads,
    scale,
    D: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    KK: tl.constexpr = KERNEL * KERNEL
    program = tl.program_id(0)
    p = program % KK
    row = program // KK * ROWS + tl.arange(0, ROWS)
    exists = row < count
    item = row.to(tl.int64)
    x = load_logits(logits, (item * KK + p) * KK, exists, scale, KK, SLOTS)
    peak = tl.max(x, axis=1)
    weight = tl.exp2(x - peak[:, None])
    share = 1.0 / tl.sum(weight, axis=1)
    if statistics is not None:
        pair = statistics + (item * KK + p) * 2
        tl.store(pair, peak, mask=exists)
        tl.store(pair + 1, share, mask=exists)
    if grad_logits is not None:
        weight *= share[:, None]
        head = row % heads
        first_j = row // heads % W2 * STRIDE - PADDING
        first_i = row // heads // W2 % H2 * STRIDE - PADDING
        image = (row // heads // W2 // H2).to(tl.int64)
        slot = tl.arange(0, SLOTS)
        dots = tl.zeros((ROWS, SLOTS), tl.float32)
        for start in range(0, D, CHANNELS):
            c = start + tl.arange(0, CHANNELS)
            g = load_pixels(
                grad,
                grad_strides,
                image,
                first_i + p // KERNEL,
                first_j + p % KERNEL,
                head,
                exists,
                c,
                H,
                W,
                D,
            )
            for q in range(KK):
                i = first_i + q // KERNEL
                j = first_j + q % KERNEL
                value = load_pixels(v, v_strides, image, i, j, head, exists, c, H, W, D)
                dot = tl.sum(g * value, axis=1)
                dots += tl.where((slot == q)[None, :], dot[:, None], 0.0)
        mean = tl.sum(weight * dots, axis=1)
        found = scale * weight * (dots - mean[:, None])
        where = ((item * KK + p) * KK)[:, None] + slot[None, :]
        mask = exists[:, None] & (slot < KK)[None, :]
        tl.store(grad_logits + where, found.to(grad_logits.dtype.element_ty), mask=mask)


def conv_attention(
    v: Tensor, logits: Tensor, scale: float, kernel: int, stride: int, padding: int
) -> Tensor:
    """`torch.ops.hybrid.conv_attention` on Triton."""
    check_dtype("v", v)
    out = new_like(v)
    _gather(v, logits.contiguous(), None, out, scale, kernel, stride, padding)
    return out


def conv_attention_backward(
    grad_out: Tensor,
    v: Tensor,
    logits: Tensor,
    scale: float,
    kernel: int,
    stride: int,
    padding: int,
    need_v: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    """`torch.ops.hybrid.conv_attention_backward` on Triton."""
    check_dtype("v", v)
    grad_v, grad_logits = new_like(v, need_v), new_like(logits, need_logits)
    logits = logits.contiguous()
    count, slots = logits.shape[:4].numel(), kernel * kernel
    check_index("windows", count)
    statistics = None
    if need_v:
        statistics = logits.new_empty((*logits.shape[:5], 2), dtype=torch.float32)
    if need_v or need_logits:
        chosen, constants = _constants("window_rows", v, logits, kernel, stride, padding)
        launch(
            window_rows,
            slots * triton.cdiv(count, chosen["ROWS"]),
            v,
            grad_out,
            grad_out.stride(),
            v,
            v.stride(),
            logits,
            statistics,
            grad_logits if need_logits else None,
            count,
            *v.shape[1:3],
            *logits.shape[1:4],
            scale,
            **constants,
            **chosen,
        )
    if need_v:
        _gather(grad_out, logits, statistics, grad_v, scale, kernel, stride, padding)
    return grad_v, grad_logits


def _gather(
    values: Tensor,
    logits: Tensor,
    statistics: Tensor | None,
    out: Tensor,
    scale: float,
    kernel: int,
    stride: int,
    padding: int,
) -> None:
    batch, height, width = values.shape[:3]
    heads = logits.shape[3]
    phases = [min(stride, size + padding) for size in (height, width)]
    rows, columns = (triton.cdiv(size + padding, stride) for size in (height, width))
    count = batch * rows * columns * heads
    check_index("pixels of one phase, times heads,", count)
    chosen, constants = _constants("gather", values, logits, kernel, stride, padding)
    blocks = triton.cdiv(count, chosen["ROWS"])
    channel_blocks = triton.cdiv(constants["D"], constants["CHANNELS"])
    launch(
        gather,
        phases[0] * phases[1] * blocks * channel_blocks,
        values,
        values,
        values.stride(),
        logits,
        statistics,
        out,
        count,
        blocks,
        rows,
        columns,
        phases[1],
        height,
        width,
        *logits.shape[1:4],
        scale,
        **constants,
        **chosen,
    )


def _constants(
    name: str, v: Tensor, logits: Tensor, kernel: int, stride: int, padding: int
) -> tuple[Settings, dict[str, int]]:
    """Settings of a kernel, and the sizes that it is compiled for."""
    d = v.shape[3] // logits.shape[3]
    width = next(w for w in (8, 32, 64) if d <= w or w == 64)
    chosen = settings(f"conv_attention.{name}", f"d <= {width}", v.device)
    constants = {
        "D": d,
        "KERNEL": kernel,
        "STRIDE": min(stride, max(v.shape[1:3]) + 2 * padding),  # beyond, it makes no difference
        "PADDING": padding,
        "SLOTS": triton.next_power_of_2(kernel * kernel),
        "CHANNELS": triton.next_power_of_2(min(d, width)),
    }
    return chosen, constants
