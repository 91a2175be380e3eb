"""Pixels of maps (B, H, W, C) of any strides, as tiles (pixels, channels)."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_pixels(x, image, i, j, c, mask):
    """Pixels and channels of x = (map, its strides) in float32; 0 where the mask says so.

    image, i and j are integers, one for each pixel or one for all.
    """
    where = image.to(tl.int64) * x[1][0] + i.to(tl.int64) * x[1][1] + j.to(tl.int64) * x[1][2]
    where = where[:, None] + (c.to(tl.int64) * x[1][3])[None, :]
    return tl.load(x[0] + where, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_pixels(x, pixel, c, C, values, mask):
    """Into a contiguous map, whose pixels are counted through; rounded to its dtype."""
    where = pixel.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(x + where, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_channels(x, row, c, C):
    """Row `row` of a contiguous parameter (rows, C); 0 beyond."""
    return tl.load(x + row * C + c, mask=c < C, other=0.0)


def strided(x: Tensor | None) -> tuple[Tensor, tuple[int, ...]] | None:
    """A map as the kernels take it: with its strides."""
    return None if x is None else (x, x.stride())


def dense(*parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Contiguous parameters."""
    return tuple(None if p is None else p.contiguous() for p in parameters)


def new_gradient(x: Tensor, needed: bool, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous, uninitialised gradient of x; without elements if it is not needed."""
    return torch.empty(x.shape if needed else (0,), dtype=dtype or x.dtype, device=x.device)
