"""Gated fusion of branches in Triton, forward and backward.

A program owns some channels and walks over tokens of one image; every branch is read once. The
softmax over the branches is online, so that no logits or gates are kept. Parameter gradients have
two stages in a fixed order, without atomics: every program sums its tokens and writes one partial
sum; `fold` adds the partial sums.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_kernels.triton.launch import Settings, check_dtype, check_index, launch, settings
from hybrid_kernels.triton.reduction import fold_terms

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def token_offset(image, token, W, strides):
    """Offset of tokens of one image in a map (B, H, W, C) of any strides."""
    i = (token // W).to(tl.int64)
    return image * strides[0] + i * strides[1] + (token % W).to(tl.int64) * strides[2]


@triton.jit
def load_map(x, strides, image, token, c, W, mask):
    """Tokens and channels of a map as float32; 0 outside."""
    where = token_offset(image, token, W, strides)[:, None] + (c.to(tl.int64) * strides[3])[None, :]
    return tl.load(x + where, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_map(x, image, token, c, tokens, C, values, mask):
    """Store into a contiguous map, rounded to its dtype."""
    where = (image * tokens + token)[:, None] * C + c[None, :]
    tl.store(x + where, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def logit(x, weight, bias, k: tl.constexpr, c, C):
    """Gate logits of branch k, base 2; 0, which gives the mean, without gate parameters."""
    if weight is None:
        return tl.zeros_like(x)
    w = tl.load(weight + k * C + c, mask=c < C, other=0.0)
    b = tl.load(bias + k * C + c, mask=c < C, other=0.0)
    return (x * w[None, :] + b[None, :]) * LOG2_E


@triton.jit
def branch_scale(scale, scale_strides, image, k: tl.constexpr, c, C):
    """Factors of branch k for some channels; 1 without scale."""
    if scale is None:
        return tl.full(c.shape, 1.0, tl.float32)
    where = image * scale_strides[0] + k * scale_strides[1] + c * scale_strides[2]
    return tl.load(scale + where, mask=c < C, other=0.0)


@triton.jit
def add_branch(peak, total, mixed, branch_logit, value):
    """One more branch in the online softmax of the gates."""
    new_peak = tl.maximum(peak, branch_logit)
    shrink = tl.exp2(peak - new_peak)
    gate = tl.exp2(branch_logit - new_peak)
    return new_peak, total * shrink + gate, mixed * shrink + gate * value


@triton.jit(do_not_specialize=["W", "tokens"])
def forward(
    x,  # (B, H, W, C)
    x_strides,
    m,  # n maps like x
    m_strides,
    weight,  # (n, C), or None for the mean
    bias,
    scale,  # (B, n, C) by strides, or None
    scale_strides,
    y,  # (B, H, W, C), contiguous
    W,
    tokens,  # H * W
    C,
    RESIDUAL: tl.constexpr,
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
    gate_input = load_map(x, x_strides, image, token, c, W, mask)
    peak = tl.full((TOKENS, CHANNELS), -1e38, tl.float32)
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    mixed = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for k in tl.static_range(len(m)):
        s = branch_scale(scale, scale_strides, image, k, c, C)
        value = load_map(m[k], m_strides[k], image, token, c, W, mask) * s[None, :]
        peak, total, mixed = add_branch(
            peak, total, mixed, logit(gate_input, weight, bias, k, c, C), value
        )
    mixed /= total
    if RESIDUAL:
        mixed += gate_input
    store_map(y, image, token, c, tokens, C, mixed, mask)


@triton.jit
def add_row(sums, values, k: tl.constexpr):
    """Add the column sums of values (tokens, channels) to row k of sums (branches, channels)."""
    is_row = tl.arange(0, sums.shape[0])[:, None] == k
    return sums + tl.where(is_row, tl.sum(values, axis=0)[None, :], 0.0)


@triton.jit
def store_rows(partial, program_row, sums, c, C, BRANCHES: tl.constexpr):
    """Store the first BRANCHES rows of sums as one entry of partial (entries, BRANCHES, C)."""
    k = tl.arange(0, sums.shape[0])
    mask = (k < BRANCHES)[:, None] & (c < C)[None, :]
    where = (program_row * BRANCHES + k)[:, None] * C + c[None, :]
    tl.store(partial + where, sums, mask=mask)


@triton.jit(do_not_specialize=["W", "tokens", "chunks", "steps"])
def backward(
    grad,  # (B, H, W, C)
    grad_strides,
    x,
    x_strides,
    m,
    m_strides,
    weight,
    bias,
    scale,
    scale_strides,
    grad_x,  # contiguous, or None when not asked for: so are the following
    grad_m,  # n maps or None
    weight_sums,  # (B * chunks, n, C), summed over the tokens of a program
    bias_sums,
    scale_sums,
    W,
    tokens,  # H * W
    chunks,  # programs along the tokens of one image
    steps,  # blocks of tokens per program
    C,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,  # branches, padded to a power of two
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    BRANCHES: tl.constexpr = len(m)
    program = tl.program_id(0)
    channel_blocks = tl.cdiv(C, CHANNELS)
    c = program % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    chunk = program // channel_blocks % chunks
    image = (program // channel_blocks // chunks).to(tl.int64)
    weight_sum = tl.zeros((ROWS, CHANNELS), tl.float32)
    bias_sum = tl.zeros((ROWS, CHANNELS), tl.float32)
    scale_sum = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(steps):
        token = (chunk * steps + step) * TOKENS + tl.arange(0, TOKENS)
        mask = (token < tokens)[:, None] & (c < C)[None, :]
        g = load_map(grad, grad_strides, image, token, c, W, mask)
        gate_input = load_map(x, x_strides, image, token, c, W, mask)
        peak = tl.full((TOKENS, CHANNELS), -1e38, tl.float32)
        total = tl.zeros((TOKENS, CHANNELS), tl.float32)
        mixed = tl.zeros((TOKENS, CHANNELS), tl.float32)
        for k in tl.static_range(BRANCHES):
            s = branch_scale(scale, scale_strides, image, k, c, C)
            value = load_map(m[k], m_strides[k], image, token, c, W, mask) * s[None, :]
            peak, total, mixed = add_branch(
                peak, total, mixed, logit(gate_input, weight, bias, k, c, C), value
            )
        mixed /= total
        gx = tl.zeros_like(g)
        if RESIDUAL:
            gx = g
        for k in tl.static_range(BRANCHES):
            s = branch_scale(scale, scale_strides, image, k, c, C)
            value = load_map(m[k], m_strides[k], image, token, c, W, mask)
            gate = tl.exp2(logit(gate_input, weight, bias, k, c, C) - peak) / total
            if grad_m[k] is not None:
                store_map(grad_m[k], image, token, c, tokens, C, g * gate * s[None, :], mask)
            if scale_sums is not None:
                scale_sum = add_row(scale_sum, g * gate * value, k)
            if weight is not None:
                dl = g * gate * (value * s[None, :] - mixed)
                gx += dl * tl.load(weight + k * C + c, mask=c < C, other=0.0)[None, :]
                if weight_sums is not None:
                    weight_sum = add_row(weight_sum, dl * gate_input, k)
                    bias_sum = add_row(bias_sum, dl, k)
        if grad_x is not None:
            store_map(grad_x, image, token, c, tokens, C, gx, mask)
    entry = image * chunks + chunk
    if weight_sums is not None:
        store_rows(weight_sums, entry, weight_sum, c, C, BRANCHES)
        store_rows(bias_sums, entry, bias_sum, c, C, BRANCHES)
    if scale_sums is not None:
        store_rows(scale_sums, entry, scale_sum, c, C, BRANCHES)


def gated_fuse(
    x: Tensor,
    m: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: bool,
) -> Tensor:
    """torch.ops.hybrid.gated_fuse: y (B, H, W, C). Raises RuntimeError for float64."""
    B, H, W, C = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chosen = _settings("gated_fuse.forward", x)
    blocks = triton.cdiv(H * W, chosen["TOKENS"]) * triton.cdiv(C, chosen["CHANNELS"])
    inputs = _inputs(x, m, weight, bias, scale)
    launch(forward, B * blocks, x, *inputs, y, W, H * W, C, RESIDUAL=residual, **chosen)
    return y


def gated_fuse_backward(
    grad: Tensor,
    x: Tensor,
    m: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: bool,
    need_x: bool,
    need_m: Sequence[bool],
    need_gate: bool,
    need_scale: bool,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """torch.ops.hybrid.gated_fuse_backward: (gx, [gm], gweight, gbias, gscale).

    What is not needed comes back with shape (0,). Raises RuntimeError for float64.
    """
    B, H, W, C = x.shape
    n = len(m)
    chosen = _settings("gated_fuse.backward", x)
    channel_blocks = triton.cdiv(C, chosen["CHANNELS"])
    token_blocks = triton.cdiv(H * W, chosen["TOKENS"])
    wanted = max(1, chosen.pop("programs") // max(1, B * channel_blocks))
    steps = max(1, triton.cdiv(token_blocks, wanted))
    chunks = triton.cdiv(token_blocks, steps)

    def output(needed: bool, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape if needed else (0,), dtype=dtype, device=x.device)

    grad_x = output(need_x, *x.shape, dtype=x.dtype)
    grad_m = [output(need, *x.shape, dtype=x.dtype) for need in need_m]
    weight_sums = output(need_gate, B * chunks, n, C)
    bias_sums = output(need_gate, B * chunks, n, C)
    scale_sums = output(need_scale, B * chunks, n, C)
    launch(
        backward,
        B * chunks * channel_blocks if need_x or any(need_m) or need_gate or need_scale else 0,
        x,
        grad,
        grad.stride(),
        *_inputs(x, m, weight, bias, scale),
        grad_x if need_x else None,
        tuple(g if need else None for g, need in zip(grad_m, need_m, strict=True)),
        weight_sums if need_gate else None,
        bias_sums if need_gate else None,
        scale_sums if need_scale else None,
        W,
        H * W,
        chunks,
        steps,
        C,
        RESIDUAL=residual,
        ROWS=triton.next_power_of_2(n),
        **chosen,
    )
    if need_gate:
        weight_sums = fold_terms(weight_sums.view(1, B * chunks, n * C)).view(n, C)
        bias_sums = fold_terms(bias_sums.view(1, B * chunks, n * C)).view(n, C)
    if need_scale and scale is not None:
        scale_sums = fold_terms(scale_sums.view(B, chunks, n * C)).view(B, n, C)
        if scale.shape[2] != C:
            scale_sums = fold_terms(scale_sums.view(B * n, C, 1)).view(B, n, 1)
    return grad_x, grad_m, weight_sums, bias_sums, scale_sums


def _settings(kernel: str, x: Tensor) -> Settings:
    """Launch settings; no block of channels is wider than the map needs."""
    check_dtype("x", x)
    check_index("tokens", x.shape[1] * x.shape[2])
    chosen = settings(kernel, f"{torch.finfo(x.dtype).bits}-bit", x.device)
    channels = triton.next_power_of_2(max(1, x.shape[3]))
    return {**chosen, "CHANNELS": min(chosen["CHANNELS"], channels)}


def _inputs(
    x: Tensor,
    m: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
) -> tuple:
    """The kernels' common arguments; a scale (B, n, 1) is read with stride 0."""
    scale_strides = None
    if scale is not None:
        scale_strides = scale.expand(-1, -1, x.shape[3]).stride()
    return (
        x,
        x.stride(),
        tuple(m),
        tuple(branch.stride() for branch in m),
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        scale,
        scale_strides,
    )
