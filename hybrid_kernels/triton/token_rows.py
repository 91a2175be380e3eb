"""Rows of tokens (B, N, h, width) of any strides, shared by the attention kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(x, image, head, token, exists, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows of x = (tensor (B, N, h, width), its strides) as (tokens, CHANNELS); 0 beyond."""
    c = tl.arange(0, CHANNELS)
    start = image * x[1][0] + head * x[1][2]
    where = (token.to(tl.int64) * x[1][1])[:, None] + (c.to(tl.int64) * x[1][3])[None, :]
    mask = exists[:, None] & (c < WIDTH)[None, :]
    return tl.load(x[0] + start + where, mask=mask, other=0.0)


@triton.jit
def store_rows(x, values, image, head, token, exists, WIDTH: tl.constexpr):
    """The inverse of `load_rows`; values are rounded to the tensor's dtype."""
    c = tl.arange(0, values.shape[1])
    start = image * x[1][0] + head * x[1][2]
    where = (token.to(tl.int64) * x[1][1])[:, None] + (c.to(tl.int64) * x[1][3])[None, :]
    mask = exists[:, None] & (c < WIDTH)[None, :]
    tl.store(x[0] + start + where, values.to(x[0].dtype.element_ty), mask=mask)


def rows_of(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor as the kernels take it: with its strides."""
    return x, x.stride()


def new_like(x: Tensor, needed: bool = True) -> Tensor:
    """A contiguous, uninitialised gradient of x; without elements if it is not needed."""
    return torch.empty(x.shape if needed else (0,), dtype=x.dtype, device=x.device)
