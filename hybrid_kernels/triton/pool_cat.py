"""Maps averaged to one grid in Triton: one launch for every map.

Forward and backward are the same sum over windows (csrc/pool_cat/pool_cat.h): cells average the
pixels of their windows, pixels add up the cells that hold them.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import check_dtype, check_index, launch, settings


@triton.jit
def _first(t, source, target):
    """First of the source's elements that element t of the target sums, along one axis."""
    return (t.to(tl.int64) * source // target).to(tl.int32)


@triton.jit
def _end(t, source, target):
    return (((t + 1).to(tl.int64) * source + target - 1) // target).to(tl.int32)


@triton.jit(do_not_specialize=["pixels", "H", "W", "rows", "columns", "largest"])
def sum_windows(
    source,  # (B, rows, columns, C)
    source_strides,
    target,  # (B, H, W, C)
    target_strides,
    pixels,  # of the target, of all images
    H,
    W,
    rows,
    columns,
    C,
    largest,  # pixels of the largest window
    largest_columns,
    BACKWARD: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    pixel = program // blocks * TOKENS + tl.arange(0, TOKENS)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    used = pixel < pixels
    j = pixel % W
    i = pixel // W % H
    image = (pixel // W // H).to(tl.int64)
    top = _first(i, rows, H)
    left = _first(j, columns, W)
    bottom = _end(i, rows, H)
    right = _end(j, columns, W)
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for step in range(largest):
        y = top + step // largest_columns
        x = left + step % largest_columns
        inside = used & (y < bottom) & (x < right)
        place = image * source_strides[0] + y.to(tl.int64) * source_strides[1]
        place += x.to(tl.int64) * source_strides[2]
        offsets = place[:, None] + (c.to(tl.int64) * source_strides[3])[None, :]
        mask = inside[:, None] & (c < C)[None, :]
        values = tl.load(source + offsets, mask=mask, other=0.0).to(tl.float32)
        if BACKWARD:  # divided by the size of the cell's own window
            height = _end(y, H, rows) - _first(y, H, rows)
            width = _end(x, W, columns) - _first(x, W, columns)
            values = values / tl.where(inside, height * width, 1).to(tl.float32)[:, None]
        total += values
    if not BACKWARD:
        size = tl.where(used, (bottom - top) * (right - left), 1)
        total = total / size.to(tl.float32)[:, None]
    place = image * target_strides[0] + i.to(tl.int64) * target_strides[1]
    place += j.to(tl.int64) * target_strides[2]
    offsets = place[:, None] + (c.to(tl.int64) * target_strides[3])[None, :]
    mask = used[:, None] & (c < C)[None, :]
    tl.store(target + offsets, total.to(target.dtype.element_ty), mask=mask)


def pool_cat(xs: Sequence[Tensor], height: int, width: int) -> Tensor:
    """torch.ops.hybrid.pool_cat: (B, height, width, sum of C_k)."""
    widths = [x.shape[3] for x in xs]
    y = xs[0].new_empty(xs[0].shape[0], height, width, sum(widths))
    for x, part in zip(xs, y.split(widths, dim=3), strict=True):
        _sum_windows(x, part, is_backward=False)
    return y


def pool_cat_backward(
    grad: Tensor, xs: Sequence[Tensor], height: int, width: int, need_xs: Sequence[bool]
) -> list[Tensor]:
    """torch.ops.hybrid.pool_cat_backward: a gradient for each map."""
    grads = []
    parts = grad.split([x.shape[3] for x in xs], dim=3)
    for x, part, need in zip(xs, parts, need_xs, strict=True):
        grads.append(x.new_empty(x.shape if need else (0,)))
        if need:
            _sum_windows(part, grads[-1], is_backward=True)
    return grads


def _sum_windows(source: Tensor, target: Tensor, is_backward: bool) -> None:
    check_dtype("xs", source)
    if target.numel() == 0:
        return
    B, H, W, C = target.shape
    rows, columns = source.shape[1:3]
    # A window that starts within an element reaches one further.
    largest = [triton.cdiv(n, m) + (n % m != 0) for n, m in ((rows, H), (columns, W))]
    chosen = settings("pool_cat.sum_windows", f"{8 * source.element_size()}-bit", source.device)
    chosen["CHANNELS"] = min(chosen["CHANNELS"], triton.next_power_of_2(C))
    check_index("pixels", B * H * W + chosen["TOKENS"])
    programs = triton.cdiv(B * H * W, chosen["TOKENS"]) * triton.cdiv(C, chosen["CHANNELS"])
    launch(
        sum_windows,
        programs,
        target,
        *(source, source.stride(), target, target.stride()),
        *(B * H * W, H, W, rows, columns, C, largest[0] * largest[1], largest[1]),
        BACKWARD=is_backward,
        **chosen,
    )
