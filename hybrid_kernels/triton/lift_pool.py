"""Depthwise lifting convolution and maximum over the group in Triton, forward and backward.

A program loads the nine neighbours of its pixels once and evaluates all orientations on them. The
backward has two kernels: `backward` finds the winners again, stores them as bytes where dx is
wanted, and sums the gradient of the kernels, in two stages of a fixed order; `grad_input` gathers
dx from the outputs that saw a pixel, each with the tap that its winner laid there.

The mean over the group is dwconv_act with the mean of the orientations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.dwconv_act import dwconv_act, dwconv_act_backward
from hybrid_kernels.triton.launch import launch
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
    fold_rows,
    map_settings,
    neighbour,
    pixels_of,
    store_sums,
)

_ELEMENTS = {"p4": 4, "p4m": 8}


@triton.constexpr_function
def source(e, t):
    """Which tap of a kernel lies under tap t once element e has moved it."""
    row, column = t // 3, t % 3
    for _ in range(e % 4):
        row, column = column, 2 - row
    return 3 * row + (column if e < 4 else 2 - column)


@triton.jit
def load_seen(x, image, i, j, H, W, c, mask):
    """The nine pixels under a kernel at (i, j), row by row."""
    seen = ()
    for t in tl.static_range(9):
        pixel = neighbour(x, image, i + (t // 3 - 1), j + (t % 3 - 1), H, W, c, mask)
        seen += (pixel,)
    return seen


@triton.jit
def load_taps(weight, c, C):
    """The nine taps of channels c."""
    taps = ()
    for t in tl.static_range(9):
        taps += (load_channels(weight, t, c, C)[None, :],)
    return taps


@triton.jit
def largest_response(seen, taps, ELEMENTS: tl.constexpr):
    """The largest response, and the first element that gives it; NaN is larger than every number.

    All elements add their products in one order, so that equal terms give equal sums.
    """
    centre = seen[4] * taps[4]
    best = centre
    winner = tl.zeros(centre.shape, tl.int32)
    for e in tl.static_range(ELEMENTS):
        response = centre
        for t in tl.static_range(9):
            if t != 4:
                response += seen[t] * taps[source(e, t)]
        exceeds = (response > best) | ((response != response) & (best == best))
        if e == 0:
            best = response
        else:
            best = tl.where(exceeds, response, best)
            winner = tl.where(exceeds, e, winner)
    return best, winner


@triton.jit
def move_where(flag, values, e: tl.constexpr):
    """Nine values, where flag is set moved as element e moves a kernel."""
    moved = ()
    for t in tl.static_range(9):
        moved += (tl.where(flag, values[source(e, t)], values[t]),)
    return moved


@triton.jit
def turn_back(winner, seen, ELEMENTS: tl.constexpr):
    """What the winner saw, each pixel under the tap of the upright kernel that met it."""
    seen = move_where(winner % 2 == 1, seen, 3)
    seen = move_where(winner // 2 % 2 == 1, seen, 2)
    if ELEMENTS == 8:
        seen = move_where(winner >= 4, seen, 4)
    return seen


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def forward(
    x,  # map (B, H, W, C), strides
    weight,  # (3, 3, C)
    y,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    C,
    ELEMENTS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    seen = load_seen(x, image, i, j, H, W, c, mask)
    best, _ = largest_response(seen, load_taps(weight, c, C), ELEMENTS)
    store_pixels(y, pixel, c, C, best, mask)


@triton.jit(do_not_specialize=["H", "W", "pixels", "steps"])
def backward(
    grad,  # map (B, H, W, C), strides
    x,  # map (B, H, W, C), strides
    weight,  # (3, 3, C)
    winners,  # (B, H, W, C), contiguous, or None when nobody wants them
    sums,  # (chunks, 9, C), or None
    H,
    W,
    pixels,  # of all images
    steps,  # blocks of pixels per program
    C,
    ELEMENTS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, chunk = channels_and_block(C, CHANNELS)
    taps = load_taps(weight, c, C)
    total = tl.zeros((16, CHANNELS), tl.float32)
    for step in range(steps):
        block = chunk * steps + step
        pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
        seen = load_seen(x, image, i, j, H, W, c, mask)
        _, winner = largest_response(seen, taps, ELEMENTS)
        if winners is not None:
            store_pixels(winners, pixel, c, C, winner, mask)
        if sums is not None:
            g = load_pixels(grad, image, i, j, c, mask)
            upright = turn_back(winner, seen, ELEMENTS)
            for t in tl.static_range(9):
                total = add_row(total, g * upright[t], t)
    if sums is not None:
        store_sums(sums, chunk, total, c, C, 9)


@triton.jit(do_not_specialize=["H", "W", "pixels"])
def grad_input(
    grad,  # map (B, H, W, C), strides
    winners,  # the same, contiguous
    weight,  # (3, 3, C)
    grad_x,  # (B, H, W, C), contiguous
    H,
    W,
    pixels,  # of all images
    C,
    ELEMENTS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    c, block = channels_and_block(C, CHANNELS)
    pixel, image, i, j, mask = pixels_of(block, H, W, pixels, c, C, TOKENS)
    taps = load_taps(weight, c, C)
    dx = tl.zeros(mask.shape, tl.float32)
    for t in tl.static_range(9):
        row, column = i + (1 - t // 3), j + (1 - t % 3)
        winner = neighbour(winners, image, row, column, H, W, c, mask)
        tap = taps[t]
        for e in tl.static_range(1, ELEMENTS):
            tap = tl.where(winner == e, taps[source(e, t)], tap)
        dx += neighbour(grad, image, row, column, H, W, c, mask) * tap
    store_pixels(grad_x, pixel, c, C, dx, mask)


def lift_pool(x: Tensor, weight: Tensor, group: str, reduce: str) -> Tensor:
    """torch.ops.hybrid.lift_pool: y (B, H, W, C). Raises RuntimeError for float64."""
    if reduce == "mean":
        return dwconv_act(x, _mean_of_turns(weight), None, "none")
    B, H, W, C = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen = map_settings("lift_pool.forward", x) | {"ELEMENTS": _ELEMENTS[group]}
    pixel_blocks, channel_blocks = blocks(x.shape, chosen)
    programs = pixel_blocks * channel_blocks
    maps = (strided(x), weight.contiguous(), y)
    launch(forward, programs, x, *maps, H, W, B * H * W, C, **chosen)
    return y


def lift_pool_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    group: str,
    reduce: str,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """torch.ops.hybrid.lift_pool_backward: (dx, dweight).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    if reduce == "mean":
        needs = (need_x, need_weight, False)
        mean = _mean_of_turns(weight)
        grad_x, grad_mean, _ = dwconv_act_backward(grad, x, mean, None, "none", *needs)
        return grad_x, _mean_of_turns(grad_mean) if need_weight else grad_mean
    B, H, W, C = x.shape
    weight, sizes = weight.contiguous(), (H, W, B * H * W)
    elements = {"ELEMENTS": _ELEMENTS[group]}
    chosen = map_settings("lift_pool.backward", x) | elements
    pixel_blocks, channel_blocks = blocks(x.shape, chosen)
    chunks, steps = chunks_of(pixel_blocks, channel_blocks, chosen.pop("programs"))
    winners = new_gradient(x, need_x, torch.uint8)
    sums = torch.empty((chunks if need_weight else 0, 9, C), dtype=torch.float32, device=x.device)
    launch(
        backward,
        chunks * channel_blocks if need_x or need_weight else 0,
        x,
        strided(grad),
        strided(x),
        weight,
        winners if need_x else None,
        sums if need_weight else None,
        *sizes,
        steps,
        C,
        **chosen,
    )
    grad_x = new_gradient(x, need_x)
    if need_x:
        chosen = map_settings("lift_pool.grad_input", x) | elements
        pixel_blocks, channel_blocks = blocks(x.shape, chosen)
        programs = pixel_blocks * channel_blocks
        maps = (strided(grad), strided(winners), weight, grad_x)
        launch(grad_input, programs, x, *maps, *sizes, C, **chosen)
    if not need_weight:
        return grad_x, torch.empty(0, dtype=torch.float32, device=x.device)
    return grad_x, fold_rows(sums).view(3, 3, C)


def _mean_of_turns(kernel: Tensor) -> Tensor:
    """Corners and edges become their means, with mirrors or without; its own adjoint."""
    return torch.stack([kernel.rot90(turns, (0, 1)) for turns in range(4)]).mean(dim=0)
