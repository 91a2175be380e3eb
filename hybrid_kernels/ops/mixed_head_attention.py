"""Attention whose heads are mixed before and after the softmax."""

import math

import torch
from torch import Tensor

from ._registration import register, require, require_tensor

_AS_Q = "(B, M, heads, head width), as q"


def mixed_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Attend with a linear layer across heads before the softmax over keys, and one after it.

    ``S_j = scale * q_j k_j^T``, ``P_g = softmax(sum_j w1[g, j] S_j + b1[g])``,
    ``A_j = sum_g w2[j, g] P_g + b2[j]``, ``out_j = A_j v_j`` for heads ``j`` and mixed heads ``g``.
    No matrix of tokens by tokens is ever in memory.

    Args:
        q: Queries ``(B, M, h, d)``, ``M >= 1``. float32, bfloat16, float16, or float64 (CPU); any
            strides, fastest with a token's channels side by side.
        k: Keys ``(B, M, h, d)``.
        v: Values ``(B, M, h, d)``.
        w1: First layer ``(g, h)``, as ``nn.Linear`` has it; usually ``g = 2 * h``.
        b1: Its bias ``(g,)``, whose gradient is zero: it shifts all logits of a softmax.
        w2: Second layer ``(h, g)``.
        b2: Its bias ``(h,)``.
        scale: Factor of the scores; ``d**-0.5`` if ``None``.

    Returns:
        ``(B, M, h, d)``, contiguous, in ``q``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: PartialFormer ("Efficient Vision Transformer with Partial Attention"), Eq. 5.5; with
        ``g = h`` talking-heads attention.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.ops.hybrid.mixed_head_attention(q, k, v, w1, b1, w2, b2, scale)[0]


def _fake(q, k, v, w1, b1, w2, b2, scale):
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = q.new_empty((q.shape[0], w1.shape[0], q.shape[1]), dtype=dtype)
    return q.new_empty(q.shape), lse


def _fake_backward(grad_out, q, k, v, w1, b1, w2, b2, lse, scale, need_qk, need_v, need_mix):
    needs = (need_qk, need_qk, need_v, *(need_mix,) * 4)
    return tuple(
        tensor.new_empty(tensor.shape if need else (0,))
        for tensor, need in zip((q, k, v, w1, b1, w2, b2), needs, strict=True)
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, grad_out, grad_lse):
    needs = ctx.needs_input_grad[:7]
    need_qk, need_v, need_mix = needs[0] or needs[1], needs[2], any(needs[3:])
    grads = torch.ops.hybrid.mixed_head_attention_backward(
        grad_out, *ctx.saved_tensors, ctx.scale, need_qk, need_v, need_mix
    )
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None


def _pairs(q):
    """Twice the pairs of tokens: what one multiplication and addition for each of them costs."""
    return 2 * q.shape[0] * q.shape[1] ** 2


def _flops(q, k, v, w1, *_, **__):
    """Scores and weighed values on all channels, both layers on all pairs of heads."""
    channels = q.shape[2] * q.shape[3]
    return 2 * _pairs(q) * (channels + w1.shape[0] * w1.shape[1])


def _flops_backward(grad_out, q, k, v, w1, b1, w2, b2, lse, scale, need_qk, need_v, need_mix, **_):
    """Weights again, then what is asked for: every term is one of the forward's products."""
    channels, layer = q.shape[2] * q.shape[3], w1.shape[0] * w1.shape[1]
    needs_scores = need_qk or need_mix
    products = 1 + needs_scores + 2 * need_qk + need_v
    layers = 1 + needs_scores + need_qk + need_v + 2 * need_mix
    return _pairs(q) * (products * channels + layers * layer)


def _check(q, k, v, w1, b1, w2, b2, scale):
    op = "mixed_head_attention"
    require(
        q.dim() == 4,
        f"{op}: q has shape {tuple(q.shape)}; expected 4 dimensions: (B, M, heads, head width)",
    )
    require(
        q.is_floating_point(),
        f"{op}: q has {q.dtype}; expected float32, bfloat16, float16 or float64",
    )
    require(
        min(q.shape[1:]) >= 1,
        f"{op}: q has shape {tuple(q.shape)}; expected at least one token, one head and one "
        "channel",
    )
    heads, mixed = q.shape[2], w1.shape[0] if w1.dim() == 2 else 0
    _require_like_q("k", k, q.shape, _AS_Q, q)
    _require_like_q("v", v, q.shape, _AS_Q, q)
    _require_like_q("w1", w1, (mixed, heads), "(mixed heads, heads)", q)
    require(mixed >= 1, f"{op}: w1 has shape {tuple(w1.shape)}; expected at least one mixed head")
    _require_like_q("b1", b1, (mixed,), "(mixed heads,)", q)
    _require_like_q("w2", w2, (heads, mixed), "(heads, mixed heads)", q)
    _require_like_q("b2", b2, (heads,), "(heads,)", q)
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")


def _check_backward(grad_out, q, k, v, w1, b1, w2, b2, lse, scale, need_qk, need_v, need_mix):
    _check(q, k, v, w1, b1, w2, b2, scale)
    _require_like_q("grad_out", grad_out, q.shape, _AS_Q, q)


def _require_like_q(name, tensor, shape, meaning, q):
    require_tensor("mixed_head_attention", name, tensor, [shape], meaning, q.dtype, ("q", q))


register(
    "mixed_head_attention",
    module="mixed_head_attention",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("q", "k", "v", "w1", "b1", "w2", "b2"),
    flops=_flops,
)
register(
    "mixed_head_attention_backward",
    module="mixed_head_attention",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
