"""Atrous window partition and its inverse in Triton: values copied by index.

Both kernels walk over what they write, so that every store is dense: `partition` over the slots of
the windows, `merge` over the pixels of the map. Values are copied as integers of their size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import launch, settings

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(do_not_specialize=["slots", "H", "W", "C", "window", "dilation", "rows", "columns"])
def partition(
    x,  # (B, H, W, C)
    strides,  # of x
    out,  # (B, d*d*rows*columns, P*P, C), contiguous
    fill,
    slots,  # of all images
    H,
    W,
    C,
    window,
    dilation,
    rows,  # of windows in a sub-map
    columns,
    INDEX: tl.constexpr,  # integer that counts all slots
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    slot = (program // blocks).to(INDEX) * TOKENS + tl.arange(0, TOKENS)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    mask = (slot < slots)[:, None] & (c < C)[None, :]
    # slot = ((((image*d + p)*d + q)*rows + u)*columns + v)*P*P + a*P + b
    b = slot % window
    a = slot // window % window
    place = slot // (window * window)
    v = place % columns
    u = place // columns % rows
    phase = place // (columns * rows)
    i = (u * window + a) * dilation + phase // dilation % dilation
    j = (v * window + b) * dilation + phase % dilation
    image = phase // (dilation * dilation)
    inside = mask & ((i < H) & (j < W))[:, None]
    pixel = image.to(tl.int64) * strides[0] + i.to(tl.int64) * strides[1]
    pixel += j.to(tl.int64) * strides[2]
    values = tl.load(x + pixel[:, None] + (c.to(tl.int64) * strides[3])[None, :], mask=inside)
    values = tl.where(inside, values, fill.to(values.dtype))
    tl.store(out + slot.to(tl.int64)[:, None] * C + c[None, :], values, mask=mask)


@triton.jit(do_not_specialize=["pixels", "H", "W", "C", "window", "dilation", "rows", "columns"])
def merge(
    windows,  # (B, d*d*rows*columns, P*P, C)
    strides,  # of windows
    out,  # (B, H, W, C), contiguous
    pixels,  # of all images
    H,
    W,
    C,
    window,
    dilation,
    rows,  # of windows in a sub-map
    columns,
    INDEX: tl.constexpr,  # integer that counts all pixels
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    pixel = (program // blocks).to(INDEX) * TOKENS + tl.arange(0, TOKENS)
    c = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    mask = (pixel < pixels)[:, None] & (c < C)[None, :]
    j = pixel % W
    i = pixel // W % H
    image = pixel // W // H
    row = i // dilation
    column = j // dilation
    phase = i % dilation * dilation + j % dilation
    place = (phase.to(tl.int64) * rows + row // window) * columns + column // window
    slot = row % window * window + column % window
    token = image.to(tl.int64) * strides[0] + place * strides[1] + slot.to(tl.int64) * strides[2]
    values = tl.load(windows + token[:, None] + (c.to(tl.int64) * strides[3])[None, :], mask=mask)
    tl.store(out + pixel.to(tl.int64)[:, None] * C + c[None, :], values, mask=mask)


def atrous_partition(x: Tensor, window: int, dilation: int, fill: float) -> Tensor:
    """torch.ops.hybrid.atrous_partition: windows (B, d*d*nu*nv, P*P, C)."""
    B, H, W, C = x.shape
    rows, columns = triton.cdiv(H, window * dilation), triton.cdiv(W, window * dilation)
    count = dilation**2 * rows * columns
    out = torch.empty((B, count, window**2, C), dtype=x.dtype, device=x.device)
    bits = _BITS[x.element_size()]
    fill_bits = torch.tensor(fill, dtype=x.dtype).view(bits).item()
    sizes = (B * count * window**2, H, W, C, window, dilation, rows, columns)
    _copy(partition, x.view(bits), out.view(bits), (fill_bits,), sizes)
    return out


def atrous_merge(windows: Tensor, height: int, width: int, window: int, dilation: int) -> Tensor:
    """torch.ops.hybrid.atrous_merge: the map (B, height, width, C)."""
    B, C = windows.shape[0], windows.shape[3]
    rows, columns = triton.cdiv(height, window * dilation), triton.cdiv(width, window * dilation)
    out = torch.empty((B, height, width, C), dtype=windows.dtype, device=windows.device)
    bits = _BITS[windows.element_size()]
    sizes = (B * height * width, height, width, C, window, dilation, rows, columns)
    _copy(merge, windows.view(bits), out.view(bits), (), sizes)
    return out


def _copy(kernel, source: Tensor, out: Tensor, extra: tuple, sizes: tuple[int, ...]) -> None:
    """Launch either kernel over the tokens of its output; sizes are (tokens, H, W, C, ...)."""
    tokens, _, _, C, window, dilation, *_ = sizes
    chosen = settings("atrous_partition.copy", f"{8 * out.element_size()}-bit", out.device)
    chosen["CHANNELS"] = min(chosen["CHANNELS"], triton.next_power_of_2(max(C, 1)))
    # The last block may count up to a block too far, rows and columns of windows up to a window.
    largest = max(tokens + chosen["TOKENS"], *(n + window * dilation for n in sizes[1:3]))
    index = tl.int32 if max(largest, window**2, dilation**2) < 2**31 else tl.int64
    programs = triton.cdiv(tokens, chosen["TOKENS"]) * triton.cdiv(C, chosen["CHANNELS"])
    launch(
        kernel, programs, out, source, source.stride(), out, *extra, *sizes, INDEX=index, **chosen
    )
