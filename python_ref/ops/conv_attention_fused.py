"""The whole C-MHSA operator of EMSNet, thesis Sec. 3.3, Eq. 3.9 and 3.10."""

import torch
import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.conv_attention import conv_attention, conv_attention_backward
from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype

SIDE, STRIDE, PADDING = 3, 2, 1


def conv_attention_fused(
    x: Tensor,
    dw_weight: Tensor,
    logit_weight: Tensor,
    logit_bias: Tensor | None,
    value_weight: Tensor,
    heads: int,
    scale: float,
) -> Tensor:
    """C-MHSA: logits from a strided depthwise convolution of x, values from a 1x1 of x.

    y = conv_attention(N x, M dw(x) + m) with 3x3 windows of stride 2. The paper unfolds before it
    projects the values; without a bias the two commute, and this order needs fewer products.

    Args:
        x: feature map (B, H, W, C), any floating dtype.
        dw_weight: kernels of dw (3, 3, C); stride 2, one zero on every side.
        logit_weight: M (81 * h, C), rows (head, output slot, input slot).
        logit_bias: m (81 * h,) or None.
        value_weight: N (C, C).
        heads: h, divides C.
        scale: factor of the logits.

    Returns:
        y (B, H, W, C) in x's dtype.

    Raises:
        ValueError: shapes do not fit, or the map is empty.
    """
    _check(x, dw_weight, logit_weight, logit_bias, value_weight, heads)
    pooled = depthwise(x, dw_weight, stride=STRIDE)
    logits = F.linear(pooled, logit_weight, logit_bias)
    return conv_attention(F.linear(x, value_weight), _per_head(logits, heads), scale)


def conv_attention_fused_backward(
    grad_out: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    logit_weight: Tensor,
    logit_bias: Tensor | None,
    value_weight: Tensor,
    heads: int,
    scale: float,
    need_x: bool,
    need_dw: bool,
    need_logit: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `conv_attention_fused` from x alone; logits and values are computed again.

    With dS and dV of `conv_attention` and D = dw(x): dD = M^T dS, dM = dS D^T, dm = sum of dS,
    dN = dV x^T, and dx = N^T dV + dw^T(dD). Computed in float32 (float64 for float64).

    Args:
        grad_out: gradient of y, (B, H, W, C).
        x, dw_weight, logit_weight, logit_bias, value_weight, heads, scale: as in the forward.
        need_x, need_dw, need_logit, need_value: which gradients to compute; need_logit stands for
            weight and bias.

    Returns:
        (dx, ddw, dM, dm, dN), dx in x's dtype and the others in float32 (float64); what is not
        needed has shape (0,).
    """
    _check(x, dw_weight, logit_weight, logit_bias, value_weight, heads)
    dtype, wide = x.dtype, statistics_dtype(x)
    x, grad_out, dw_weight, logit_weight, value_weight = (
        t.to(wide) for t in (x, grad_out, dw_weight, logit_weight, value_weight)
    )
    pooled = depthwise(x, dw_weight, stride=STRIDE)
    bias = None if logit_bias is None else logit_bias.to(wide)
    logits = _per_head(F.linear(pooled, logit_weight, bias), heads)
    grad_v, grad_logits = conv_attention_backward(
        grad_out,
        F.linear(x, value_weight),
        logits,
        scale,
        SIDE,
        STRIDE,
        PADDING,
        need_v=need_x or need_value,
        need_logits=need_x or need_dw or need_logit,
    )
    grad_logits = grad_logits.flatten(3) if grad_logits.ndim == 6 else grad_logits
    grad_x, grad_dw, grad_logit, grad_bias, grad_value = (x.new_empty(0) for _ in range(5))
    if need_x or need_dw:
        grad_pooled = grad_logits @ logit_weight
    if need_x:
        through_dw = depthwise_backward_input(grad_pooled, dw_weight, *x.shape[1:3], STRIDE)
        grad_x = grad_v @ value_weight + through_dw
    if need_dw:
        grad_dw = depthwise_backward_weight(grad_pooled, x, SIDE, STRIDE)
    if need_logit:
        grad_logit = torch.einsum("bijs,bijc->sc", grad_logits, pooled)
    if need_logit and bias is not None:
        grad_bias = grad_logits.sum(dim=(0, 1, 2))
    if need_value:
        grad_value = torch.einsum("bhwd,bhwc->dc", grad_v, x)
    return grad_x.to(dtype), grad_dw, grad_logit, grad_bias, grad_value


def _per_head(logits: Tensor, heads: int) -> Tensor:
    """(B, H2, W2, 81 * h) -> (B, H2, W2, h, 9, 9)."""
    return logits.unflatten(-1, (heads, SIDE**2, SIDE**2))


def _check(
    x: Tensor,
    dw_weight: Tensor,
    logit_weight: Tensor,
    logit_bias: Tensor | None,
    value_weight: Tensor,
    heads: int,
) -> None:
    check_depthwise(x, dw_weight, SIDE, "dw_weight")
    channels, rows = x.shape[3], SIDE**4 * heads
    if heads < 1 or channels % heads:
        raise ValueError(f"heads must divide x's {channels} channels, got {heads}")
    for name, parameter, expected in (
        ("logit_weight", logit_weight, (rows, channels)),
        ("logit_bias", logit_bias, (rows,)),
        ("value_weight", value_weight, (channels, channels)),
    ):
        if parameter is not None and tuple(parameter.shape) != expected:
            raise ValueError(f"{name} must be {expected}, got {tuple(parameter.shape)}")
