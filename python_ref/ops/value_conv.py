"""Parallel convolution path, MSCSA Eqs. 8-9: position from a stencil over the values."""

import torch.nn.functional as F
from torch import Tensor

from python_ref.ops.activation import DERIVATIVES
from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype


def value_conv(
    out: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """z = out + DWConv3x3(hardswish(v)) + bias, and for inference hardswish(scale * z + shift).

    Scale and shift are the folded norm that follows; training needs z itself, for its statistics.

    Args:
        out: output of the attention (B, H, W, C), any floating dtype, any strides.
        v: values of the finest scale (B, H, W, C), in out's dtype.
        weight: kernel (3, 3, C), zero padding 1.
        bias: (C,).
        scale, shift: (C,) each, or both None.

    Returns:
        (B, H, W, C) in out's dtype.

    Raises:
        ValueError: a shape does not fit, or only one of scale and shift is given.
    """
    _check(out, v, weight, bias, scale, shift)
    z = out + depthwise(F.hardswish(v), weight, bias)
    if scale is None or shift is None:
        return z
    return F.hardswish((scale * z + shift).to(z.dtype))


def value_conv_backward(
    grad: Tensor,
    out: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    need_out: bool,
    need_v: bool,
    need_parameters: bool,
    need_affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `value_conv`, in float32 (float64 for float64); z is computed again.

    With t = scale * z + shift and dt = grad * hardswish'(t): dscale = sum dt * z, dshift = sum dt
    and dz = scale * dt; without them dz = grad. Then dout = dz, dv = (transposed stencil of dz) *
    hardswish'(v), dweight[a, b] = sum dz * tap of hardswish(v), dbias = sum dz, the sums over
    images and pixels.

    Returns:
        (dout, dv, dweight, dbias, dscale, dshift); what is not needed has shape (0,).
    """
    _check(out, v, weight, bias, scale, shift)
    wide = statistics_dtype(out)
    none, none_parameter = out.new_empty(0), out.new_empty(0, dtype=wide)
    taps, values, grad_z = weight.to(wide), v.to(wide), grad.to(wide)
    grad_v, grad_weight, grad_bias = none, none_parameter, none_parameter
    grad_scale, grad_shift = none_parameter, none_parameter
    if scale is not None and shift is not None:
        z = out.to(wide) + depthwise(F.hardswish(values), taps, bias.to(wide))
        grad_t = grad_z * DERIVATIVES["hardswish"](scale * z + shift)
        grad_z = scale * grad_t
        if need_affine:
            grad_scale = (grad_t * z).sum(dim=(0, 1, 2))
            grad_shift = grad_t.sum(dim=(0, 1, 2))
    if need_v:
        grad_hidden = depthwise_backward_input(grad_z, taps, *v.shape[1:3])
        grad_v = (grad_hidden * DERIVATIVES["hardswish"](values)).to(v.dtype)
    if need_parameters:
        grad_weight = depthwise_backward_weight(grad_z, F.hardswish(values), 3)
        grad_bias = grad_z.sum(dim=(0, 1, 2))
    grad_out = grad_z.to(out.dtype) if need_out else none
    return grad_out, grad_v, grad_weight, grad_bias, grad_scale, grad_shift


def _check(
    out: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
) -> None:
    if out.ndim != 4 or out.shape != v.shape:
        raise ValueError(
            f"out and v must both be (B, H, W, C), got {tuple(out.shape)} and {tuple(v.shape)}"
        )
    check_depthwise(v, weight, 3)
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together, or both be None for training")
    for name, vector in (("bias", bias), ("scale", scale), ("shift", shift)):
        if vector is not None and tuple(vector.shape) != (v.shape[-1],):
            raise ValueError(f"{name} must be (C,) = ({v.shape[-1]},), got {tuple(vector.shape)}")
