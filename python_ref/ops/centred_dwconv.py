"""Depthwise convolution of a map without its mean, EMSNet's thesis Sec. 3.3, Eq. 3.1 and 3.12.

What `whiten_conv` does after it has mixed the channels.
"""

from torch import Tensor

from python_ref.ops.depthwise import (
    check_depthwise,
    depthwise,
    depthwise_backward_input,
    depthwise_backward_weight,
)
from python_ref.ops.precision import statistics_dtype


def centred_dwconv(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """y = dw(x - mean(x)), the mean over all pixels, per image and channel.

    Outside the map the convolution sees zeros, not the negative mean.

    Args:
        x: feature map (B, H, W, C), any floating dtype, any strides.
        weight: kernels (3, 3, C).

    Returns:
        y (B, H, W, C) in x's dtype, and the mean (B, C) in float32 (float64 for float64).

    Raises:
        ValueError: shapes do not fit.
    """
    _check(x, weight)
    mean = x.mean(dim=(1, 2), dtype=statistics_dtype(x))
    return depthwise(x - mean[:, None, None].to(x.dtype), weight), mean


def centred_dwconv_out(x: Tensor, weight: Tensor) -> Tensor:
    """`centred_dwconv` without the mean."""
    return centred_dwconv(x, weight)[0]


def centred_dwconv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `centred_dwconv`: dx = dd - mean(dd), dd being the gradient of x - mean(x).

    Computed in float32 (float64 for float64).

    Args:
        grad: gradient of y, (B, H, W, C).
        x, weight: as in the forward.
        mean: what the forward returned.
        need_x, need_weight: which gradients to compute.

    Returns:
        (dx in x's dtype, dweight); what is not needed has shape (0,).
    """
    _check(x, weight)
    wide = statistics_dtype(x)
    grad_x, grad_weight = x.new_empty(0), x.new_empty(0, dtype=wide)
    grad = grad.to(wide)
    if need_weight:
        grad_weight = depthwise_backward_weight(grad, x.to(wide) - mean[:, None, None], 3)
    if need_x:
        centred = depthwise_backward_input(grad, weight.to(wide), *x.shape[1:3])
        grad_x = (centred - centred.mean(dim=(1, 2), keepdim=True)).to(x.dtype)
    return grad_x, grad_weight


def _check(x: Tensor, weight: Tensor) -> None:
    check_depthwise(x, weight, 3)
    if 0 in x.shape[1:]:
        raise ValueError(f"x must be (B, H, W, C) with H, W, C > 0, got shape {tuple(x.shape)}")
