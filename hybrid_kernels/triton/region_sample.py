"""Sampling of regions in Triton, forward and backward.

A program of the forward owns some regions and channels and walks over the pixels of a region. A
program of the backward owns one pixel of every region, since all of these share a tap: it writes
their gradients and sums the tap's. The sums have two stages in a fixed order, without atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, launch, settings
from hybrid_kernels.triton.maps import (
    load_channels,
    load_pixels,
    new_gradient,
    store_pixels,
    strided,
)
from hybrid_kernels.triton.reduction import fold_terms


@triton.jit
def place_regions(region, rows, columns, side):
    """Image, and the first pixel's row and column, of regions that are counted through."""
    q = region % columns
    p = region // columns % rows
    return region // columns // rows, p * side, q * side


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "regions", "side"])
def forward(
    x,  # map (B, H, W, C), strides
    weight,  # (side, side, C)
    bias,  # (C,) or None
    s,  # (B, rows, columns, C), contiguous
    H,
    W,
    rows,
    columns,
    regions,  # of all images
    side,
    C,
    REGIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    region = program // blocks * REGIONS + tl.arange(0, REGIONS)
    image, top, left = place_regions(region, rows, columns, side)
    mask = (region < regions)[:, None] & (c < C)[None, :]
    total = tl.zeros((REGIONS, CHANNELS), tl.float32)
    for tap in range(side * side):
        i, j = top + tap // side, left + tap % side
        inside = mask & ((i < H) & (j < W))[:, None]
        w = load_channels(weight, tap, c, C)
        total += load_pixels(x, image, i, j, c, inside) * w[None, :]
    if bias is not None:
        total += load_channels(bias, 0, c, C)[None, :]
    store_pixels(s, region, c, C, total, mask)


@triton.jit(do_not_specialize=["H", "W", "rows", "columns", "regions", "side", "steps"])
def backward(
    grad,  # map (B, rows, columns, C), strides
    x,  # map (B, H, W, C), strides
    weight,  # (side, side, C)
    dx_init,  # map like x, strides; or None
    grad_x,  # contiguous, or None when not asked for: so are the following
    weight_sums,  # (chunks, side * side, C)
    bias_sums,  # (chunks, C)
    H,
    W,
    rows,
    columns,
    regions,  # of all images
    side,
    steps,  # blocks of regions per program
    C,
    REGIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    tap = program // blocks % (side * side)
    chunk = program // blocks // (side * side)
    w = load_channels(weight, tap, c, C)
    weight_sum = tl.zeros((REGIONS, CHANNELS), tl.float32)
    bias_sum = tl.zeros((REGIONS, CHANNELS), tl.float32)
    for step in range(steps):
        region = (chunk * steps + step) * REGIONS + tl.arange(0, REGIONS)
        image, top, left = place_regions(region, rows, columns, side)
        i, j = top + tap // side, left + tap % side
        mask = (region < regions)[:, None] & (c < C)[None, :]
        inside = mask & ((i < H) & (j < W))[:, None]
        ds = load_pixels(grad, image, region // columns % rows, region % columns, c, mask)
        bias_sum += ds
        if weight_sums is not None:
            weight_sum += ds * load_pixels(x, image, i, j, c, inside)
        if grad_x is not None:
            dx = ds * w[None, :]
            if dx_init is not None:
                dx += load_pixels(dx_init, image, i, j, c, inside)
            store_pixels(grad_x, (image * H + i) * W + j, c, C, dx, inside)
    if weight_sums is not None:
        row = (chunk * side * side + tap).to(tl.int64) * C
        tl.store(weight_sums + row + c, tl.sum(weight_sum, axis=0), mask=c < C)
    if bias_sums is not None:
        tl.store(bias_sums + chunk * C + c, tl.sum(bias_sum, axis=0), mask=(c < C) & (tap == 0))


def region_sample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.ops.hybrid.region_sample: s (B, H', W', C). Raises RuntimeError for float64."""
    B, H, W, C = x.shape
    side = weight.shape[0]
    rows, columns = triton.cdiv(H, side), triton.cdiv(W, side)
    s = torch.empty((B, rows, columns, C), dtype=x.dtype, device=x.device)
    chosen = _settings("region_sample.forward", x)
    regions = B * rows * columns
    programs = triton.cdiv(regions, chosen["REGIONS"]) * triton.cdiv(C, chosen["CHANNELS"])
    parameters = (weight.contiguous(), None if bias is None else bias.contiguous())
    sizes = (H, W, rows, columns, regions, side, C)
    launch(forward, programs, x, strided(x), *parameters, s, *sizes, **chosen)
    return s


def region_sample_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    dx_init: Tensor | None,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.region_sample_backward: (gx, gweight, gbias).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    (B, H, W, C), side = x.shape, weight.shape[0]
    rows, columns = grad.shape[1:3]
    regions, taps = B * rows * columns, side**2
    chosen = _settings("region_sample.backward", x)
    blocks = triton.cdiv(C, chosen["CHANNELS"])
    chunks = triton.cdiv(chosen.pop("programs"), max(1, taps * blocks))
    steps = triton.cdiv(triton.cdiv(regions, chosen["REGIONS"]), chunks)
    chunks = triton.cdiv(triton.cdiv(regions, chosen["REGIONS"]), max(1, steps))
    grad_x = new_gradient(x, need_x)
    weight_sums = x.new_empty((chunks, taps, C) if need_weight else (0,), dtype=torch.float32)
    bias_sums = x.new_empty((chunks, C) if need_bias else (0,), dtype=torch.float32)
    launch(
        backward,
        chunks * taps * blocks if need_x or need_weight or need_bias else 0,
        x,
        strided(grad),
        strided(x),
        weight.contiguous(),
        strided(dx_init),
        grad_x if need_x else None,
        weight_sums if need_weight else None,
        bias_sums if need_bias else None,
        H,
        W,
        rows,
        columns,
        regions,
        side,
        steps,
        C,
        **chosen,
    )
    if need_weight:
        weight_sums = fold_terms(weight_sums.view(1, chunks, taps * C)).view(side, side, C)
    if need_bias:
        bias_sums = fold_terms(bias_sums.view(1, chunks, C)).view(C)
    return grad_x, weight_sums, bias_sums


def _settings(kernel: str, x: Tensor) -> Settings:
    """Launch settings; no block of channels is wider than the map needs."""
    check_dtype("x", x)
    check_index("pixels", 2 * x.shape[0] * x.shape[1] * x.shape[2])
    chosen = settings(kernel, f"{torch.finfo(x.dtype).bits}-bit", x.device)
    channels = triton.next_power_of_2(max(1, x.shape[3]))
    return {**chosen, "CHANNELS": min(chosen["CHANNELS"], channels)}
