"""Tokens with the largest mean in Triton: keys that order as means do, then a radix select.

`make_keys` turns every mean into a number from 0 to 2**32 - 1, NaN into the largest. `select` has
one program for each image: eight walks over its keys find the n-th largest, four bits each, and a
last one emits the tokens in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import check_dtype, check_index, launch, settings


@triton.jit(do_not_specialize=["tokens"])
def make_keys(
    u,  # (B, N, C), by strides
    strides,
    keys,  # (B, N) int64
    tokens,  # N
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    program = tl.program_id(0)
    blocks = tl.cdiv(tokens, TOKENS)
    image = (program // blocks).to(tl.int64)
    token = program % blocks * TOKENS + tl.arange(0, TOKENS)
    row = u + image * strides[0] + (token.to(tl.int64) * strides[1])[:, None]
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        mask = (token < tokens)[:, None] & (c < C)[None, :]
        where = (c.to(tl.int64) * strides[2])[None, :]
        total += tl.load(row + where, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=1) / C
    mean = tl.where(mean == 0.0, 0.0, mean)  # both zeros are one
    bits = mean.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ordered = tl.where(mean != mean, 0x7FFFFFFF, ordered)
    tl.store(keys + image * tokens + token, ordered.to(tl.int64) + 2**31, mask=token < tokens)


@triton.jit(do_not_specialize=["tokens", "n"])
def select(
    keys,  # (B, N) int64
    index,  # (B, n) int32
    tokens,  # N
    n,
    TOKENS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    keys += image * tokens
    index += image * n
    digits = tl.arange(0, 16)
    found = tl.full((), 0, tl.int64)  # the upper digits of the n-th largest key
    rest = n  # its rank among the keys that begin so
    for step in tl.static_range(8):
        counts = tl.zeros((16,), tl.int32)
        for first in range(0, tokens, TOKENS):
            token = first + tl.arange(0, TOKENS)
            key = tl.load(keys + token, mask=token < tokens, other=-1)
            begins_so = (key >> (32 - 4 * step)) == found
            digit = (key >> (28 - 4 * step)) & 15
            is_digit = begins_so[:, None] & (digit[:, None] == digits[None, :])
            counts += tl.sum(is_digit.to(tl.int32), axis=0)
        larger = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0)
        is_next = (larger < rest) & (larger + counts >= rest)
        found = found * 16 + tl.sum(tl.where(is_next, digits, 0), axis=0)
        rest -= tl.sum(tl.where(is_next, larger, 0), axis=0)
    chosen = 0
    ties = 0
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        key = tl.load(keys + token, mask=token < tokens, other=-1)
        is_tie = (key == found).to(tl.int32)
        rank = ties + tl.cumsum(is_tie, axis=0)
        is_chosen = (key > found) | ((is_tie == 1) & (rank <= rest))
        place = chosen + tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
        tl.store(index + place, token, mask=is_chosen)
        chosen += tl.sum(is_chosen.to(tl.int32), axis=0)
        ties += tl.sum(is_tie, axis=0)


def context_topk(u: Tensor, n: int) -> Tensor:
    """torch.ops.hybrid.context_topk: (B, n) int32. Raises RuntimeError for float64."""
    check_dtype("u", u)
    B, N, C = u.shape
    check_index("tokens", N)
    keys = torch.empty((B, N), dtype=torch.int64, device=u.device)
    index = torch.empty((B, n), dtype=torch.int32, device=u.device)
    chosen = settings("context_topk.make_keys", f"{u.element_size() * 8}-bit", u.device)
    programs = B * triton.cdiv(N, chosen["TOKENS"])
    launch(make_keys, programs, u, u, u.stride(), keys, N, C, **chosen)
    launch(select, B, u, keys, index, N, n, **settings("context_topk.select", "64-bit", u.device))
    return index
