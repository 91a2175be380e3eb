"""Pixels read pooled tokens at two scales: the queries are depthwise convolutions of the map."""

import math

import torch
from torch import Tensor

from ._maps import (
    require_like,
    require_map,
    require_parameter,
    require_pixels,
    widened,
)
from ._registration import register, require


def group_propagate(
    x: Tensor,
    w3: Tensor,
    b3: Tensor,
    w5: Tensor,
    b5: Tensor,
    kv3: Tensor,
    kv5: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Sum two cross-attentions from every pixel to a few tokens of its image, in one pass.

    ``y = attention(DW3x3(x) + b3, kv3) + attention(DW5x5(x) + b5, kv5)``, where head by head
    ``attention(q, kv)_i = sum_g softmax_g(scale * <q_i, k_g>) v_g``. The convolutions have stride 1
    and zero padding; neither they, nor weights, nor branches are ever in memory.

    Args:
        x: ``(B, H, W, C)``, ``C = h * d``, at least one pixel. float32, bfloat16, float16, or
            float64 (CPU); any strides, fastest with the channels side by side.
        w3: ``(3, 3, C)``. float32 (float64 beside float64); 16-bit ones are converted.
        b3: ``(C,)`` in the dtype of ``w3``.
        w5: ``(5, 5, C)``, likewise.
        b5: ``(C,)``, likewise.
        kv3: Keys and values of the first branch, ``(B, G, 2, h, d)`` in ``x``'s dtype, ``G >= 1``;
            meant for few tokens.
        kv5: Those of the second, of the same shape.
        scale: Factor of the scores; ``d**-0.5`` if ``None``.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: MCGA ("Multi-scale Convolutions Meet Group Attention for Dense Prediction Tasks"),
        Sec. 3.2, Eq. 2.
    """
    scale = kv3.shape[-1] ** -0.5 if scale is None else scale
    parameters = (widened(t) for t in (w3, b3, w5, b5))
    return torch.ops.hybrid.group_propagate(x, *parameters, kv3, kv5, scale)


def _fake(x, w3, b3, w5, b5, kv3, kv5, scale):
    return x.new_empty(x.shape)


def _fake_backward(grad, x, w3, b3, w5, b5, kv3, kv5, scale, need_x, need_conv, need_kv):
    needs = (need_x, *(need_conv,) * 4, need_kv, need_kv)
    tensors = (x, w3, b3, w5, b5, kv3, kv5)
    return tuple(
        tensor.new_empty(tensor.shape if need else (0,))
        for tensor, need in zip(tensors, needs, strict=True)
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    needs = ctx.needs_input_grad[:7]
    grads = torch.ops.hybrid.group_propagate_backward(
        grad, *ctx.saved_tensors, ctx.scale, needs[0], any(needs[1:5]), any(needs[5:])
    )
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None


TAPS = 9 + 25


def _flops(x, w3, b3, w5, b5, kv3, *_, **__):
    """Both stencils, and scores and weighed values of both branches."""
    return 2 * x.numel() * (TAPS + 4 * kv3.shape[1])


def _flops_backward(grad, x, w3, b3, w5, b5, kv3, kv5, scale, need_x, need_conv, need_kv, **_):
    """Stencils again and of what is asked for; scores and the gradients of weights, then those of
    queries, and of keys and values."""
    needs_query = need_x or need_conv
    per_token = 4 + 2 * needs_query + 4 * need_kv
    return 2 * x.numel() * (TAPS * (1 + need_x + need_conv) + per_token * kv3.shape[1])


def _check(x, w3, b3, w5, b5, kv3, kv5, scale):
    op = "group_propagate"
    require_map(op, "x", x)
    require_pixels(op, x)
    B, C = x.shape[0], x.shape[3]
    shape = tuple(kv3.shape)
    require(
        len(shape) == 5 and shape[1] >= 1 and shape[3] * shape[4] == C >= 1,
        f"{op}: kv3 has shape {shape}; expected (B, G, 2, heads, head width) with at least one "
        f"token, and heads times head width the channels of x, {C}",
    )
    tokens = (B, shape[1], 2, *shape[3:])
    for side, weight, bias, kv in ((3, w3, b3, kv3), (5, w5, b5, kv5)):
        require_parameter(op, f"w{side}", weight, (side, side, C), "(side, side, C)", x)
        require_parameter(op, f"b{side}", bias, (C,), "(C,)", x)
        require_like(op, f"kv{side}", kv, tokens, "(B, G, 2, heads, head width)", x)
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")


def _check_backward(grad, x, w3, b3, w5, b5, kv3, kv5, scale, need_x, need_conv, need_kv):
    _check(x, w3, b3, w5, b5, kv3, kv5, scale)
    require_like("group_propagate", "grad", grad, x.shape, "(B, H, W, C), as x", x)


register(
    "group_propagate",
    module="group_propagate",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x", "kv3", "kv5"),
    flops=_flops,
)
register(
    "group_propagate_backward",
    module="group_propagate",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
