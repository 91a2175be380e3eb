"""The whole C-MHSA of EMSNet: what generates logits and values, and the attention itself."""

import math

import torch
from torch import Tensor

from ._maps import parameter_dtype, require_like, require_map, require_pixels
from ._registration import register, require

SIDE = 3
PAIRS = SIDE**4  # of output and input slots


def conv_attention_fused(
    x: Tensor,
    dw_weight: Tensor,
    logit_weight: Tensor,
    logit_bias: Tensor | None,
    value_weight: Tensor,
    heads: int,
    scale: float = 1.0,
) -> Tensor:
    """Convolutional attention whose logits come from a strided depthwise convolution of x.

    ``y = conv_attention(value_weight x, logit_weight dw(x) + logit_bias)`` with 3x3 windows of
    stride 2 and padding 1, and ``dw`` of the same geometry. The logits, by far the largest tensor
    of the composed form, never exist in memory.

    Args:
        x: ``(B, H, W, C)``, with at least one pixel. float32, bfloat16, float16, or float64 (CPU);
            any strides, fastest with the channels side by side.
        dw_weight: Kernels ``(3, 3, C)`` of ``dw``, like all parameters in ``x``'s dtype.
        logit_weight: ``(81 * heads, C)``, rows (head, output slot, input slot).
        logit_bias: ``(81 * heads,)``, or ``None``.
        value_weight: ``(C, C)``.
        heads: Divides ``C``; head ``n`` has the ``n``-th ``C / heads`` channels.
        scale: Factor of the logits; 1 in EMSNet.

    Returns:
        ``(B, H, W, C)``, contiguous, in ``x``'s dtype.

    Raises:
        ValueError, RuntimeError: An argument has the wrong shape, dtype, device or range.

    Source: EMSNet ("Efficient Vision Transformers with Multi-Scale and Partial Attentions"), Eq.
        3.9 and 3.10; projecting values before the unfolding is the same, and less work.
    """
    return torch.ops.hybrid.conv_attention_fused(
        x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale
    )


def _fake(x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale):
    return x.new_empty(x.shape)


def _fake_backward(
    grad_out,
    x,
    dw_weight,
    logit_weight,
    logit_bias,
    value_weight,
    heads,
    scale,
    need_x,
    need_dw,
    need_logit,
    need_value,
):
    dtype = parameter_dtype(x)
    need_bias = need_logit and logit_bias is not None
    return (
        x.new_empty(x.shape if need_x else (0,)),
        x.new_empty(dw_weight.shape if need_dw else (0,), dtype=dtype),
        x.new_empty(logit_weight.shape if need_logit else (0,), dtype=dtype),
        x.new_empty(logit_bias.shape if need_bias else (0,), dtype=dtype),
        x.new_empty(value_weight.shape if need_value else (0,), dtype=dtype),
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.heads, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_out):
    need_x, need_dw, need_weight, need_bias, need_value = ctx.needs_input_grad[:5]
    tensors = ctx.saved_tensors
    grads = torch.ops.hybrid.conv_attention_fused_backward(
        grad_out,
        *tensors,
        ctx.heads,
        ctx.scale,
        need_x,
        need_dw,
        need_weight or need_bias,
        need_value,
    )
    needs = ctx.needs_input_grad[:5]
    given = (
        grad.to(tensor.dtype) if need else None
        for grad, tensor, need in zip(grads, tensors, needs, strict=True)
    )
    return *given, None, None


def _flops(x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale, **_):
    """Slots outside the map included."""
    B, H, W, C = x.shape
    windows = B * -(-H // 2) * -(-W // 2)
    per_window = SIDE**2 * C + logit_weight.numel() + PAIRS * C
    return 2 * (windows * per_window + x.numel() * C)


def _flops_backward(
    grad_out,
    x,
    dw_weight,
    logit_weight,
    logit_bias,
    value_weight,
    heads,
    scale,
    need_x,
    need_dw,
    need_logit,
    need_value,
    **_,
):
    """Products as large as the forward's; those computed again are left out."""
    B, H, W, C = x.shape
    windows = B * -(-H // 2) * -(-W // 2)
    mixing, logits, pooling = PAIRS * C, logit_weight.numel(), SIDE**2 * C
    per_window = (need_x or need_value) * mixing  # dV
    per_window += (need_x or need_dw or need_logit) * mixing  # dS
    per_window += ((need_x or need_dw) + need_logit) * logits  # dD, dM
    per_window += (need_x + need_dw) * pooling
    return 2 * (windows * per_window + (need_x + need_value) * x.numel() * C)


def _check(x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale):
    op = "conv_attention_fused"
    require_map(op, "x", x)
    require_pixels(op, x)
    C = x.shape[3]
    require(C >= 1, f"{op}: x has shape {tuple(x.shape)}; expected at least one channel")
    require(
        heads >= 1 and C % heads == 0,
        f"{op}: heads = {heads}; expected a divisor of the {C} channels of x",
    )
    require(math.isfinite(scale), f"{op}: scale = {scale}; expected a finite number")
    rows = PAIRS * heads
    require_like(op, "dw_weight", dw_weight, (SIDE, SIDE, C), "(3, 3, C)", x)
    require_like(op, "logit_weight", logit_weight, (rows, C), "(81 * heads, C)", x)
    if logit_bias is not None:
        require_like(op, "logit_bias", logit_bias, (rows,), "(81 * heads,)", x)
    require_like(op, "value_weight", value_weight, (C, C), "(C, C)", x)


def _check_backward(grad_out, x, *rest):
    _check(x, *rest[:-4])
    require_like("conv_attention_fused", "grad_out", grad_out, x.shape, "(B, H, W, C), as x", x)


register(
    "conv_attention_fused",
    module="conv_attention_fused",
    check=_check,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    autocast=("x", "dw_weight", "logit_weight", "logit_bias", "value_weight"),
    flops=_flops,
)
register(
    "conv_attention_fused_backward",
    module="conv_attention_fused",
    check=_check_backward,
    fake=_fake_backward,
    flops=_flops_backward,
)
