"""Regional tokens returned to their pixels and a depthwise convolution, in Triton.

z = x + g exists in registers only. A program of the forward owns some pixels and channels. One of
the backward owns whole regions, so that it can sum dz over their pixels. The sums of the gradients
of parameters have two stages in a fixed order, without atomics. They run over the neighbours in dy
of the pixels of z, so that z is read once and needs no halo.
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
from hybrid_kernels.triton.region_sample import place_regions
from hybrid_kernels.triton.stencil import neighbour


@triton.jit(do_not_specialize=["H", "W", "pixels", "region"])
def forward(
    x,  # map (B, H, W, C), strides
    g,  # map (B, rows, columns, C), strides
    weight,  # (SIDE, SIDE, C)
    bias,  # (C,) or None
    y,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    region,
    C,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    pixel = program // blocks * TOKENS + tl.arange(0, TOKENS)
    image, row, column = pixel // W // H, pixel // W % H, pixel % W
    mask = (pixel < pixels)[:, None] & (c < C)[None, :]
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for u in tl.static_range(SIDE):
        for v in tl.static_range(SIDE):
            i, j = row + (u - SIDE // 2), column + (v - SIDE // 2)
            inside = mask & ((i >= 0) & (i < H) & (j >= 0) & (j < W))[:, None]
            z = load_pixels(x, image, i, j, c, inside)
            z += load_pixels(g, image, i // region, j // region, c, inside)
            total += z * load_channels(weight, u * SIDE + v, c, C)[None, :]
    if bias is not None:
        total += load_channels(bias, 0, c, C)[None, :]
    store_pixels(y, pixel, c, C, total, mask)


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """COUNT tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros((ROWS, CHANNELS), tl.float32),)  # noqa: RUF005
    return tiles


@triton.jit(
    do_not_specialize=["H", "W", "rows", "columns", "regions", "region", "side", "steps", "parts"]
)
def backward(
    grad,  # map (B, H, W, C), strides
    x,  # map (B, H, W, C), strides
    g,  # map (B, rows, columns, C), strides
    weight,  # (SIDE, SIDE, C)
    grad_x,  # contiguous, or None when not asked for: so are the following
    grad_g,
    weight_sums,  # (chunks, SIDE * SIDE, C)
    bias_sums,  # (chunks, C)
    H,
    W,
    rows,
    columns,
    regions,  # of all images
    region,
    side,  # SIDE, for loops that are not to be unrolled
    steps,  # blocks of regions per program
    parts,  # of a region, PIXELS each
    C,
    SIDE: tl.constexpr,
    FROM: tl.constexpr,  # the first tap to be summed, and the one after the last
    TO: tl.constexpr,
    REGIONS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    ROWS: tl.constexpr = REGIONS * PIXELS
    LOOPED: tl.constexpr = SIDE > 3  # over the taps: all at once would not fit registers
    VALUES: tl.constexpr = grad_x is not None or grad_g is not None
    blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    chunk = program // blocks
    slot = tl.arange(0, ROWS)
    sums = zeros(TO - FROM, ROWS, CHANNELS)
    bias_sum = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(steps):
        first = (chunk * steps + step) * REGIONS
        which = first + slot // PIXELS
        image, top, left = place_regions(which, rows, columns, region)
        dg = tl.zeros((REGIONS, CHANNELS), tl.float32)
        for part in range(parts):
            pixel = part * PIXELS + slot % PIXELS
            row, column = top + pixel // region, left + pixel % region
            exists = (which < regions) & (pixel < region * region) & (row < H) & (column < W)
            mask = exists[:, None] & (c < C)[None, :]
            if FROM < TO:
                z = load_pixels(x, image, row, column, c, mask)
                z += load_pixels(g, image, row // region, column // region, c, mask)
            if bias_sums is not None:
                bias_sum += load_pixels(grad, image, row, column, c, mask)
            dz = tl.zeros((ROWS, CHANNELS), tl.float32)
            new_sums = ()
            if LOOPED and VALUES:
                for u in range(side):
                    for v in tl.static_range(SIDE):
                        i, j = row + (SIDE // 2 - u), column + (SIDE // 2 - v)
                        dy = neighbour(grad, image, i, j, H, W, c, mask)
                        dz += dy * load_channels(weight, u * SIDE + v, c, C)[None, :]
            for tap in tl.static_range(FROM if LOOPED else 0, TO if LOOPED else SIDE * SIDE):
                u, v = tap // SIDE, tap % SIDE
                i, j = row + (SIDE // 2 - u), column + (SIDE // 2 - v)
                dy = neighbour(grad, image, i, j, H, W, c, mask)
                if not LOOPED:
                    dz += dy * load_channels(weight, tap, c, C)[None, :]
                if FROM < TO:
                    new_sums = new_sums + (sums[tap - FROM] + z * dy,)  # noqa: RUF005
            sums = new_sums
            if grad_x is not None:
                store_pixels(grad_x, (image * H + row) * W + column, c, C, dz, mask)
            if grad_g is not None:
                dg += tl.sum(tl.reshape(dz, (REGIONS, PIXELS, CHANNELS)), axis=1)
        if grad_g is not None:
            token = first + tl.arange(0, REGIONS)
            mask = (token < regions)[:, None] & (c < C)[None, :]
            store_pixels(grad_g, token, c, C, dg, mask)
    for tap in tl.static_range(FROM, TO):
        to = weight_sums + (chunk * SIDE * SIDE + tap).to(tl.int64) * C + c
        tl.store(to, tl.sum(sums[tap - FROM], axis=0), mask=c < C)
    if bias_sums is not None:
        tl.store(bias_sums + chunk * C + c, tl.sum(bias_sum, axis=0), mask=c < C)


def region_mix(x: Tensor, g: Tensor, weight: Tensor, region: int, bias: Tensor | None) -> Tensor:
    """torch.ops.hybrid.region_mix: y (B, H, W, C). Raises RuntimeError for float64."""
    B, H, W, C = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen = _settings("region_mix.forward", x)
    programs = triton.cdiv(B * H * W, chosen["TOKENS"]) * triton.cdiv(C, chosen["CHANNELS"])
    parameters = (weight.contiguous(), None if bias is None else bias.contiguous())
    sizes = (H, W, B * H * W, region, C)
    maps = (strided(x), strided(g))
    launch(forward, programs, x, *maps, *parameters, y, *sizes, SIDE=weight.shape[0], **chosen)
    return y


def region_mix_backward(
    grad: Tensor,
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    region: int,
    need_x: bool,
    need_g: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.region_mix_backward: (gx, gg, gweight, gbias).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    (B, H, W, C), side = x.shape, weight.shape[0]
    rows, columns = g.shape[1:3]
    chosen = _settings("region_mix.backward", x, side)
    region = min(region, max(H, W))  # beyond the map there is nothing to do
    check_index("pixels of a region", region**2)
    tokens = chosen.pop("TOKENS")
    chosen["PIXELS"] = min(tokens, triton.next_power_of_2(region**2))
    chosen["REGIONS"] = tokens // chosen["PIXELS"]
    blocks = triton.cdiv(C, chosen["CHANNELS"])
    tiles = triton.cdiv(B * rows * columns, chosen["REGIONS"])
    steps = triton.cdiv(tiles, max(1, chosen.pop("programs") // max(1, blocks)))
    chunks = triton.cdiv(tiles, max(1, steps))
    grad_x, grad_g = new_gradient(x, need_x), new_gradient(g, need_g)
    weight_sums = x.new_empty((chunks, side**2, C) if need_weight else (0,), dtype=torch.float32)
    bias_sums = x.new_empty((chunks, C) if need_bias else (0,), dtype=torch.float32)
    for i, (first, end) in enumerate(_tap_ranges(side, need_weight)):
        launch(
            backward,
            chunks * blocks if need_x or need_g or need_weight or need_bias else 0,
            x,
            strided(grad),
            strided(x),
            strided(g),
            weight.contiguous(),
            grad_x if need_x and i == 0 else None,
            grad_g if need_g and i == 0 else None,
            weight_sums if need_weight else None,
            bias_sums if need_bias and i == 0 else None,
            H,
            W,
            rows,
            columns,
            B * rows * columns,
            region,
            side,
            steps,
            triton.cdiv(region**2, chosen["PIXELS"]),
            C,
            SIDE=side,
            FROM=first,
            TO=end,
            **chosen,
        )
    if need_weight:
        weight_sums = fold_terms(weight_sums.view(1, chunks, side**2 * C)).view(weight.shape)
    if need_bias:
        bias_sums = fold_terms(bias_sums.view(1, chunks, C)).view(C)
    return grad_x, grad_g, weight_sums, bias_sums


def _tap_ranges(side: int, need_weight: bool) -> list[tuple[int, int]]:
    """Taps whose sums each launch computes; the first launch does everything else too.

    Registers hold 9 sums beside the rest. Those of larger kernels take a launch for each row.
    """
    taps = side**2 if need_weight else 0
    if side <= 3:
        return [(0, taps)]
    return [(0, 0), *((first, first + side) for first in range(0, taps, side))]


def _settings(kernel: str, x: Tensor, side: int | None = None) -> Settings:
    """Launch settings; no block of channels is wider than the map needs."""
    check_dtype("x", x)
    check_index("pixels", 2 * x.shape[0] * x.shape[1] * x.shape[2])
    problem = f"{torch.finfo(x.dtype).bits}-bit" + (f", k = {side}" if side else "")
    chosen = settings(kernel, problem, x.device)
    channels = triton.next_power_of_2(max(1, x.shape[3]))
    return {**chosen, "CHANNELS": min(chosen["CHANNELS"], channels)}
