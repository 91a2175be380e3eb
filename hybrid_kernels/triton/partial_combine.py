"""Foreground and background tokens back in order, in Triton: forward and backward.

A program owns some channels of some tokens, and reads every row once: from the foreground if the
token has a place there. In the backward it walks over several blocks of tokens of one image, and
`fold` adds the partial sums of the update's gradient in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, launch, settings
from hybrid_kernels.triton.reduction import fold_terms


@triton.jit
def tile(x, strides, image, token, c):
    """Addresses of tokens x channels of a tensor (B, tokens, C), to load from or store to."""
    where = image * strides[0] + (token.to(tl.int64) * strides[1])[:, None]
    return x + where + (c.to(tl.int64) * strides[2])[None, :]


@triton.jit(do_not_specialize=["tokens"])
def forward(
    x,  # (B, N, C), with its strides; so are all tensors of tokens
    x_strides,
    update,  # (B, C)
    update_strides,
    foreground,  # (B, n, C)
    foreground_strides,
    places,  # (B, N) int32: row of a token in foreground, or -1
    out,
    out_strides,
    tokens,  # N
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    program = tl.program_id(0)
    channel_blocks = tl.cdiv(C, CHANNELS)
    token_blocks = tl.cdiv(tokens, TOKENS)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    token = program // channel_blocks % token_blocks * TOKENS + tl.arange(0, TOKENS)
    image = (program // channel_blocks // token_blocks).to(tl.int64)
    mask = (token < tokens)[:, None] & (c < C)[None, :]
    place = tl.load(places + image * tokens + token, mask=token < tokens, other=-1)
    replaced = mask & (place >= 0)[:, None]
    kept = mask & (place < 0)[:, None]
    add = tl.load(update + image * update_strides[0] + c * update_strides[1], mask=c < C, other=0.0)
    row = tl.load(tile(x, x_strides, image, token, c), mask=kept, other=0.0)
    row = row.to(tl.float32) + add.to(tl.float32)[None, :]
    new = tl.load(tile(foreground, foreground_strides, image, place, c), mask=replaced)
    values = tl.where(replaced, new.to(tl.float32), row)
    to = tile(out, out_strides, image, token, c)
    tl.store(to, values.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "chunks", "steps"])
def backward(
    grad,  # (B, N, C)
    grad_strides,
    places,
    grad_x,  # (tensor, strides), or None when not asked for: so are the following
    grad_foreground,
    update_sums,  # (B * chunks, C), summed over the tokens of a program; a tensor or None
    tokens,  # N
    chunks,  # programs along the tokens of one image
    steps,  # blocks of tokens per program
    C,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    program = tl.program_id(0)
    channel_blocks = tl.cdiv(C, CHANNELS)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    chunk = program // channel_blocks % chunks
    image = (program // channel_blocks // chunks).to(tl.int64)
    total = tl.zeros((CHANNELS,), tl.float32)
    for step in range(steps):
        token = (chunk * steps + step) * TOKENS + tl.arange(0, TOKENS)
        mask = (token < tokens)[:, None] & (c < C)[None, :]
        place = tl.load(places + image * tokens + token, mask=token < tokens, other=-1)
        g = tl.load(tile(grad, grad_strides, image, token, c), mask=mask, other=0.0)
        background = tl.where((place < 0)[:, None], g, 0.0)
        if grad_x is not None:
            tl.store(tile(grad_x[0], grad_x[1], image, token, c), background, mask=mask)
        if grad_foreground is not None:
            to = tile(grad_foreground[0], grad_foreground[1], image, place, c)
            tl.store(to, g, mask=mask & (place >= 0)[:, None])
        if update_sums is not None:
            total += tl.sum(background.to(tl.float32), axis=0)
    if update_sums is not None:
        tl.store(update_sums + (image * chunks + chunk) * C + c, total, mask=c < C)


def partial_combine(x: Tensor, update: Tensor, foreground: Tensor, index: Tensor) -> Tensor:
    """torch.ops.hybrid.partial_combine: (B, N, C). Raises RuntimeError for float64."""
    B, N, C = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen = _settings("forward", x)
    blocks = triton.cdiv(N, chosen["TOKENS"]) * triton.cdiv(C, chosen["CHANNELS"])
    tensors = [part for t in (x, update, foreground) for part in (t, t.stride())]
    places = _places(index, N)
    launch(forward, B * blocks, x, *tensors, places, out, out.stride(), N, C, **chosen)
    return out


def partial_combine_backward(
    grad: Tensor, index: Tensor, need_x: bool, need_update: bool, need_foreground: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.partial_combine_backward: (grad_x, grad_update, grad_foreground).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, N, C = grad.shape
    chosen = _settings("backward", grad)
    channel_blocks = triton.cdiv(C, chosen["CHANNELS"])
    token_blocks = triton.cdiv(N, chosen["TOKENS"])
    wanted = max(1, chosen.pop("programs") // max(1, B * channel_blocks))
    steps = triton.cdiv(token_blocks, wanted)
    chunks = triton.cdiv(token_blocks, steps)

    def output(needed: bool, *shape: int) -> Tensor:
        return torch.empty(shape if needed else (0,), dtype=grad.dtype, device=grad.device)

    grad_x, grad_foreground = (
        output(need_x, B, N, C),
        output(need_foreground, B, index.shape[1], C),
    )
    sums = None
    if need_update:
        sums = torch.empty((B, chunks, C), dtype=torch.float32, device=grad.device)
    results = (
        (grad_x, grad_x.stride()) if need_x else None,
        (grad_foreground, grad_foreground.stride()) if need_foreground else None,
        sums,
    )
    if need_x or need_update or need_foreground:
        programs = B * chunks * channel_blocks
        inputs = (grad, grad.stride(), _places(index, N))
        launch(backward, programs, grad, *inputs, *results, N, chunks, steps, C, **chosen)
    grad_update = output(False) if sums is None else fold_terms(sums).to(grad.dtype)
    return grad_x, grad_update, grad_foreground


def _settings(kernel: str, x: Tensor) -> Settings:
    """Launch settings; no block of channels is wider than the tokens need."""
    check_dtype("x", x)
    check_index("tokens", x.shape[1])
    chosen = settings(f"partial_combine.{kernel}", f"{x.element_size() * 8}-bit", x.device)
    channels = triton.next_power_of_2(max(1, x.shape[2]))
    return {**chosen, "CHANNELS": min(chosen["CHANNELS"], channels)}


def _places(index: Tensor, tokens: int) -> Tensor:
    """Row of every token in the foreground, (B, N) int32; -1 for the background."""
    rows = torch.arange(index.shape[1], dtype=torch.int32, device=index.device).expand_as(index)
    places = torch.full((index.shape[0], tokens), -1, dtype=torch.int32, device=index.device)
    return places.scatter_(1, index.long(), rows)
