"""Token fusion: every pixel reads a few tokens of its image, added to what it has."""

import math

import torch
from torch import Tensor

from ._registration import register, require, require_tensor


def token_fusion(q: Tensor, kv: Tensor, y: Tensor, scale: float | None = None) -> Tensor:
    """Add multi-head attention over the tokens of an image to each of its pixels.

    ``z_i = y_i + sum_m softmax_m(scale * <q_i, k_m>) v_m``, head by head; neither the weights nor
    the attention by itself are ever in memory.

    Args:
        q: Queries ``(B, N, h, d)``. float32, bfloat16, float16, or float64 (CPU); any strides,
            fastest with a pixel's channels side by side.
        kv: Keys and values ``(B, M, 2, h, d)``, ``M >= 1``; meant for few tokens.
        y: What is added to, ``(B, N, h, d)``.
        scale: Factor of the scores; ``d**-0.5`` if ``None``.

    Returns:
        ``(B, N, h, d)``, contiguous, in ``q``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MAT ("Exchanging Information across Non-overlapped Local Self-Attentions via Mixing
        Abstract Tokens"), Eq. 4.5; MCGA ("Multi-scale Convolutions Meet Group Attention"), Eq. 2.
    """
    return torch.ops.hybrid.token_fusion(q, kv, y, q.shape[-1] ** -0.5 if scale is None else scale)


def _fake(q, kv, y, scale):
    return q.new_empty(q.shape)


def _fake_backward(grad, q, kv, scale, need_q, need_kv):
    return q.new_empty(q.shape if need_q else (0,)), q.new_empty(kv.shape if need_kv else (0,))


def _setup_context(ctx, inputs, output):
    q, kv, _, ctx.scale = inputs
    ctx.save_for_backward(q, kv)


def _backward(ctx, grad):
    q, kv = ctx.saved_tensors
    need_q, need_kv, need_y, _ = ctx.needs_input_grad
    grad_q = grad_kv = None
    if need_q or need_kv:
        grad_q, grad_kv = torch.ops.hybrid.token_fusion_backward(
            grad, q, kv, ctx.scale, need_q, need_kv
        )
    return grad_q if need_q else None, grad_kv if need_kv else None, grad if need_y else None, None


def _flops(q, kv, *_, **__):
    """Scores and weighed values."""
    return 4 * q.numel() * kv.shape[1]


def _flops_backward(grad, q, kv, *_, **__):
    """Scores and the gradients of weights, queries, keys and values."""
    return 10 * q.numel() * kv.shape[1]


def _check(q, kv, y, scale):
    _check_with("y", q, kv, y, scale)


def _check_with(name, q, kv, other, scale):
    op = "token_fusion"
    require(
        q.dim() == 4,
        f"{op}: q has shape {tuple(q.shape)}; expected 4 dimensions: (B, N, heads, head width)",
    )
    require(
        q.is_floating_point(),
        f"{op}: q has {q.dtype}; expected float32, bfloat16, float16 or float64",
    )
    B, _, h, d = q.shape
    require(
        h >= 1 and d >= 1,
        f"{op}: q has shape {tuple(q.shape)}; expected at least one head and one channel",
    )
    tokens = kv.shape[1] if kv.dim() == 5 else 0
    for label, tensor, shape, meaning in (
        ("kv", kv, (B, tokens, 2, h, d), "(B, M, 2, heads, head width)"),
        (name, other, q.shape, "(B, N, heads, head width), as q"),
    ):
        require_tensor(op, label, tensor, [shape], meaning, q.dtype, ("q", q))
    require(tokens >= 1, f"{op}: kv holds no token, shape {tuple(kv.shape)}; expected at least one")
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")


def _check_backward(grad, q, kv, scale, need_q, need_kv):
    _check_with("grad", q, kv, grad, scale)


register(
    "token_fusion",
    module="token_fusion",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("q", "kv", "y"),
    flops=_flops,
)
register(
    "token_fusion_backward",
    module="token_fusion",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
