"""Depthwise 3x3 convolution with bias and activation: the middle of many MLPs.

MSCSA Sec. 3.4 (ReLU6); PVTv2, P2T, Shunted and TopFormer use the same stencil.
"""

from torch import Tensor

from python_ref.ops.activation import ACTIVATIONS, DERIVATIVES, check_activation
from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype


def dwconv_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
    """y = act(DWConv3x3(x) + bias), stride 1, zero padding 1.

    A residual inside, act(x + DWConv3x3(x)), is the same with 1 added to the centre tap.

    Args:
        x: map (B, H, W, C), any floating dtype, any strides.
        weight: kernel (3, 3, C).
        bias: (C,) or None.
        act: "none", "relu", "relu6", "gelu" (the exact one) or "hardswish".

    Returns:
        y (B, H, W, C) in x's dtype.

    Raises:
        ValueError: a shape does not fit, or act is unknown.
    """
    _check(x, weight, bias, act)
    return ACTIVATIONS[act](depthwise(x, weight, bias)).contiguous()


def dwconv_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    act: str,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `dwconv_act`; the pre-activation t is computed again.

    With dt = grad * act'(t): dx is the transposed stencil of dt, dweight[a, b] the sum over images
    and pixels of dt times the tap, dbias the sum of dt. In float32 (float64 for float64).

    Returns:
        (dx, dweight, dbias); what is not needed has shape (0,).
    """
    _check(x, weight, bias, act)
    wide = statistics_dtype(x)
    none, none_parameter = x.new_empty(0), x.new_empty(0, dtype=wide)
    taps, values = weight.to(wide), x.to(wide)
    pre_activation = depthwise(values, taps, None if bias is None else bias.to(wide))
    grad = grad.to(wide) * DERIVATIVES[act](pre_activation)
    grad_x = none
    if need_x:
        grad_x = depthwise_backward_input(grad, taps, *x.shape[1:3]).to(x.dtype).contiguous()
    return (
        grad_x,
        depthwise_backward_weight(grad, values, 3) if need_weight else none_parameter,
        grad.sum(dim=(0, 1, 2)) if need_bias and bias is not None else none_parameter,
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> None:
    check_depthwise(x, weight, 3)
    check_activation(act)
    if bias is not None and tuple(bias.shape) != (x.shape[-1],):
        raise ValueError(f"bias must be (C,) = ({x.shape[-1]},), got {tuple(bias.shape)}")
